"""pasta_jax: learned asynchronous decoding (PASTA) in JAX."""

__version__ = "0.1.0"
