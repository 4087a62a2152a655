"""In what dtype matrix products are the fastest, by platform."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


def resolve_dtype(name: str, platform: str | None = None) -> Any:
  """A dtype as it is named, or for "auto" bfloat16 wherever matrix products are the faster for it.

  Args:
    platform: of the devices; None: of JAX's default ones.
  """
  if name != "auto":
    return jnp.dtype(name)
  on_cpu = (platform or jax.default_backend()) == "cpu"
  return jnp.dtype(jnp.float32 if on_cpu and not cpu_multiplies_bfloat16() else jnp.bfloat16)


@functools.cache
def cpu_multiplies_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
  """Whether this CPU has instructions for products in bfloat16 that XLA uses: AVX512-BF16."""
  try:
    return "avx512_bf16" in Path(cpuinfo).read_text().split()
  except OSError:  # not Linux
    return False
