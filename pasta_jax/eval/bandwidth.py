"""The machine's read bandwidth: what bounds a decode step, which reads every weight once."""

import concurrent.futures
import os
import time

import jax
import jax.numpy as jnp
import numpy as np


def read_bandwidth(size_bytes: int = 1 << 30, repeats: int = 5) -> float:
  """Bytes per second that the default device reads from its main memory, the best of several passes.

  On CPU, NumPy sums disjoint parts in one thread per core; on an accelerator, one jitted reduction.
  """
  if jax.default_backend() == "cpu":
    return _cpu_bandwidth(size_bytes, repeats)
  x = jnp.ones((size_bytes // 4,), jnp.float32)
  total = jax.jit(jnp.max)
  total(x).block_until_ready()
  return max(size_bytes / _seconds(lambda: total(x).block_until_ready()) for _ in range(repeats))


def _cpu_bandwidth(size_bytes: int, repeats: int) -> float:
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  x = np.ones(size_bytes // 4, np.float32)
  parts = np.array_split(x, cores)
  best = 0.0
  with concurrent.futures.ThreadPoolExecutor(cores) as pool:
    # Two kernels, since which one is the faster reader depends on the build of NumPy.
    for kernel in (np.max, lambda part: np.dot(part, part)):
      for _ in range(repeats):
        best = max(best, size_bytes / _seconds(lambda k=kernel: list(pool.map(k, parts))))
  return best


def _seconds(run) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start
