"""Published sizes by name: `preset("gemma2-9b")`. Values from the models' own configuration files."""

from pasta_jax.model.config import ModelConfig, RopeScaling, _nearest


def _gemma1(name, d, f, n, h, k) -> ModelConfig:
  return ModelConfig(
    family="gemma", name=name, vocab_size=256_000, num_layers=n, d_model=d, d_ff=f, num_heads=h,
    num_kv_heads=k, head_dim=256, norm_eps=1e-6, norm_offset=1.0, activation="gelu_tanh",
    scale_embeddings=True, max_len=8192,
  )  # fmt: skip


def _gemma2(name, d, f, n, h, k, e, query_scalar) -> ModelConfig:
  return ModelConfig(
    family="gemma2", name=name, vocab_size=256_000, num_layers=n, d_model=d, d_ff=f, num_heads=h,
    num_kv_heads=k, head_dim=e, norm_eps=1e-6, norm_offset=1.0, activation="gelu_tanh",
    scale_embeddings=True, post_norms=True, query_scale=query_scalar**-0.5, attn_softcap=50.0,
    final_softcap=30.0, sliding_window=4096, sliding_pattern=2, max_len=8192,
  )  # fmt: skip


def _gemma3(name, d, f, n, h, k, e, query_scalar, window, rope_factor, max_len, vocab) -> ModelConfig:
  return ModelConfig(
    family="gemma3", name=name, vocab_size=vocab, num_layers=n, d_model=d, d_ff=f, num_heads=h,
    num_kv_heads=k, head_dim=e, norm_eps=1e-6, norm_offset=1.0, activation="gelu_tanh",
    scale_embeddings=True, post_norms=True, qk_norm=True, query_scale=query_scalar**-0.5,
    sliding_window=window, sliding_pattern=6, rope_theta=1e6, rope_local_theta=1e4,
    rope_scaling=RopeScaling("linear", rope_factor) if rope_factor else None, max_len=max_len,
  )  # fmt: skip


def _llama(name, v, d, f, n, h, k, e, theta, *, tied=False, factor=0.0, max_len=8192, eps=1e-5):
  return ModelConfig(
    family="llama", name=name, vocab_size=v, num_layers=n, d_model=d, d_ff=f, num_heads=h,
    num_kv_heads=k, head_dim=e, norm_eps=eps, tied_embeddings=tied, rope_theta=theta,
    rope_scaling=RopeScaling("llama3", factor) if factor else None, max_len=max_len,
  )  # fmt: skip


def _qwen2(name, v, d, f, n, h, k, e, *, tied, eps=1e-6) -> ModelConfig:
  return ModelConfig(
    family="qwen2", name=name, vocab_size=v, num_layers=n, d_model=d, d_ff=f, num_heads=h,
    num_kv_heads=k, head_dim=e, norm_eps=eps, tied_embeddings=tied, qkv_bias=True, rope_theta=1e6,
    max_len=32_768,
  )  # fmt: skip


def _qwen3(name, d, f, n, h, k, *, tied) -> ModelConfig:
  return ModelConfig(
    family="qwen3", name=name, vocab_size=151_936, num_layers=n, d_model=d, d_ff=f, num_heads=h,
    num_kv_heads=k, head_dim=128, norm_eps=1e-6, tied_embeddings=tied, qk_norm=True, rope_theta=1e6,
    max_len=40_960,
  )  # fmt: skip


_CONFIGS = (
  _gemma1("gemma-2b", 2048, 16384, 18, 8, 1),
  _gemma1("gemma-7b", 3072, 24576, 28, 16, 16),
  _gemma2("gemma2-2b", 2304, 9216, 26, 8, 4, 256, 256),
  _gemma2("gemma2-9b", 3584, 14336, 42, 16, 8, 256, 256),
  _gemma2("gemma2-27b", 4608, 36864, 46, 32, 16, 128, 144),
  _gemma3("gemma3-270m", 640, 2048, 18, 4, 1, 256, 256, 512, 0, 32_768, 262_144),
  _gemma3("gemma3-1b", 1152, 6912, 26, 4, 1, 256, 256, 512, 0, 32_768, 262_144),
  _gemma3("gemma3-4b", 2560, 10240, 34, 8, 4, 256, 256, 1024, 8, 131_072, 262_208),
  _gemma3("gemma3-12b", 3840, 15360, 48, 16, 8, 256, 256, 1024, 8, 131_072, 262_208),
  _gemma3("gemma3-27b", 5376, 21504, 62, 32, 16, 128, 168, 1024, 8, 131_072, 262_208),
  _llama("llama2-7b", 32_000, 4096, 11008, 32, 32, 32, 128, 1e4, max_len=4096),
  _llama("llama2-13b", 32_000, 5120, 13824, 40, 40, 40, 128, 1e4, max_len=4096),
  _llama("llama2-70b", 32_000, 8192, 28672, 80, 64, 8, 128, 1e4, max_len=4096),
  _llama("llama3-8b", 128_256, 4096, 14336, 32, 32, 8, 128, 5e5),
  _llama("llama3-70b", 128_256, 8192, 28672, 80, 64, 8, 128, 5e5),
  _llama("llama3.1-8b", 128_256, 4096, 14336, 32, 32, 8, 128, 5e5, factor=8.0, max_len=131_072),
  _llama("llama3.1-70b", 128_256, 8192, 28672, 80, 64, 8, 128, 5e5, factor=8.0, max_len=131_072),
  _llama("llama3.2-1b", 128_256, 2048, 8192, 16, 32, 8, 64, 5e5, tied=True, factor=32.0, max_len=131_072),
  _llama("llama3.2-3b", 128_256, 3072, 8192, 28, 24, 8, 128, 5e5, tied=True, factor=32.0, max_len=131_072),
  _llama("smollm2-135m", 49_152, 576, 1536, 30, 9, 3, 64, 1e5, tied=True),
  _llama("smollm2-360m", 49_152, 960, 2560, 32, 15, 5, 64, 1e5, tied=True),
  _llama("smollm2-1.7b", 49_152, 2048, 8192, 24, 32, 32, 64, 130_000.0, tied=True),
  _qwen2("qwen2.5-0.5b", 151_936, 896, 4864, 24, 14, 2, 64, tied=True),
  _qwen2("qwen2.5-1.5b", 151_936, 1536, 8960, 28, 12, 2, 128, tied=True),
  _qwen2("qwen2.5-3b", 151_936, 2048, 11008, 36, 16, 2, 128, tied=True),
  _qwen2("qwen2.5-7b", 152_064, 3584, 18944, 28, 28, 4, 128, tied=False),
  _qwen2("qwen2.5-14b", 152_064, 5120, 13824, 48, 40, 8, 128, tied=False, eps=1e-5),
  _qwen2("qwen2.5-32b", 152_064, 5120, 27648, 64, 40, 8, 128, tied=False, eps=1e-5),
  _qwen2("qwen2.5-72b", 152_064, 8192, 29568, 80, 64, 8, 128, tied=False, eps=1e-5),
  _qwen3("qwen3-0.6b", 1024, 3072, 28, 16, 8, tied=True),
  _qwen3("qwen3-1.7b", 2048, 6144, 28, 16, 8, tied=True),
  _qwen3("qwen3-4b", 2560, 9728, 36, 32, 8, tied=True),
  _qwen3("qwen3-8b", 4096, 12288, 36, 32, 8, tied=False),
  _qwen3("qwen3-14b", 5120, 17408, 40, 40, 8, tied=False),
  _qwen3("qwen3-32b", 5120, 25600, 64, 64, 8, tied=False),
)

PRESETS: dict[str, ModelConfig] = {c.name: c for c in _CONFIGS}


def preset(name: str) -> ModelConfig:
  """The published configuration called `name`.

  Raises:
    ValueError: no such preset; the nearest name is in the message.
  """
  if name not in PRESETS:
    raise ValueError(f"no preset named {name!r}{_nearest(name, PRESETS)}")
  return PRESETS[name]
