"""What every test runs under: arrays of different ranks never broadcast silently."""

import os

import jax

# For the processes that tests start; the line below is for this one, where jax is imported already.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
jax.config.update("jax_numpy_rank_promotion", "raise")
