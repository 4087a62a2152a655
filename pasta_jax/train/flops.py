"""How many floating-point operations training takes, and how many the devices could do."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.params import num_params

# Dense bfloat16 operations per second of one chip, from the makers' data sheets.
_PEAKS = {
  "tpu v4": 275e12,
  "tpu v5 lite": 197e12,
  "tpu v5e": 197e12,
  "tpu v5p": 459e12,
  "tpu v5": 459e12,
  "tpu v6 lite": 918e12,
  "tpu v6e": 918e12,
  "nvidia a100": 312e12,
  "nvidia h100": 989e12,
  "nvidia h200": 989e12,
}


def step_flops(cfg: ModelConfig, trained: int, length: int) -> float:
  """Operations per token that a step needs, rematerialisation not counted.

  A product costs 2 per weight forwards, 2 for the gradient of its input, and 2 for that of its weight where
  the weight is trained; attention over T tokens, half of them visible, 6 T H E a layer.

  Args:
    trained: trained parameters.
    length: T.
  """
  weights = num_params(cfg) - (0 if cfg.tied_embeddings else cfg.vocab_size * cfg.d_model)
  attention = 6.0 * length * cfg.num_heads * cfg.head_dim * cfg.num_layers
  return 4.0 * weights + (2.0 if trained >= weights else 6.0) * trained + attention


def peak_flops(device: Any, dtype: Any) -> float:
  """Operations per second of one device: its data sheet's in bfloat16, else what a matrix product reaches."""
  kind = device.device_kind.lower()
  known = [peak for name, peak in _PEAKS.items() if kind.startswith(name)]
  if known and jnp.dtype(dtype) == jnp.bfloat16:
    return known[0]
  size = 1024 if device.platform == "cpu" else 8192
  x = jax.device_put(jnp.ones((size, size), dtype), device)
  multiply = jax.jit(jnp.matmul)
  multiply(x, x).block_until_ready()
  best = float("inf")
  for _ in range(3):
    began = time.perf_counter()
    multiply(x, x).block_until_ready()
    best = min(best, time.perf_counter() - began)
  # Devices of one host's CPU share its cores: together they do no more than one.
  share = jax.local_device_count() if device.platform == "cpu" else 1
  return 2.0 * size**3 / best / share
