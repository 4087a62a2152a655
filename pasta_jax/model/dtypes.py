"""In what dtype matrix products are the fastest, by platform."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


def resolve_dtype(name: str, platform: str | None = None, few: bool = False) -> Any:
  """A dtype as it is named, or for "auto" bfloat16 wherever matrix products are the faster for it.

  Args:
    platform: of the devices; None: of JAX's default ones.
    few: a few answers are wanted. XLA on CPU sets a product in bfloat16 up when it is first run, a third of a
      second for each width and attended length of a decoder: more than a few answers save.
  """
  if name != "auto":
    return jnp.dtype(name)
  on_cpu = (platform or jax.default_backend()) == "cpu"
  return jnp.dtype(jnp.float32 if on_cpu and (few or not cpu_multiplies_bfloat16()) else jnp.bfloat16)


@functools.cache
def cpu_multiplies_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
  """Whether this CPU has instructions for products in bfloat16 that XLA uses: AVX512-BF16."""
  try:
    return "avx512_bf16" in Path(cpuinfo).read_text().split()
  except OSError:  # not Linux
    return False
