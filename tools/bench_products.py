"""What a matrix product costs on CPU by layout, library and number of rows: python tools/bench_products.py

For the shapes of SmolLM2-135M's layers, milliseconds per 30 layers: weights stored [out, in] or [in, out],
by XLA's default library (YNNPACK) or Eigen. Then the read bandwidth of memory with huge pages and without.
"""

import concurrent.futures
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

LAYERS, REPEATS = 30, 9
SHAPES = {"qkv": (576, 960), "o": (576, 576), "gate_up": (576, 3072), "down": (1536, 576)}
ROWS = (1, 2, 4, 8, 16)
LIBRARIES = {"default": None, "Eigen": {"xla_cpu_experimental_ynn_fusion_type": ""}}


def product(axis: int) -> Callable:
  """x . w over the given axis of w."""

  def run(x, weights):
    for w in weights:
      y = jax.lax.dot_general(x, w, (((1,), (axis,)), ((), ())))
      x = x + 1e-6 * y[:, :1]  # each product waits for the one before, as layers do
    return x

  return run


def products() -> None:
  runs = {}
  for name, (inputs, outputs) in SHAPES.items():
    for layout, axis in (("[out, in]", 1), ("[in, out]", 0)):
      shape = (inputs, outputs) if axis == 0 else (outputs, inputs)
      weights = [jax.random.normal(jax.random.key(i), shape) for i in range(LAYERS)]
      for library, options in LIBRARIES.items():
        for rows in ROWS:
          x = jnp.full((rows, inputs), 0.01)
          compiled = jax.jit(product(axis)).lower(x, weights).compile(compiler_options=options)
          jax.block_until_ready(compiled(x, weights))
          runs[name, layout, library, rows] = (compiled, x, weights, [])
  for _ in range(REPEATS):  # in turns, so that a drift of the machine's speed meets all of them
    for compiled, x, weights, seconds in runs.values():
      start = time.perf_counter()
      jax.block_until_ready(compiled(x, weights))
      seconds.append(time.perf_counter() - start)
  print(f"{'':10}{'':12}{'':10}" + "".join(f"{n:>8} rows" for n in ROWS))
  for name in SHAPES:
    for layout in ("[out, in]", "[in, out]"):
      for library in LIBRARIES:
        ms = [1e3 * statistics.median(runs[name, layout, library, n][3]) for n in ROWS]
        print(f"{name:10}{layout:12}{library:10}" + "".join(f"{x:10.2f} ms" for x in ms))


def pages() -> None:
  pool = concurrent.futures.ThreadPoolExecutor(2)
  for what, x in (
    ("NumPy's memory (huge pages)", np.ones(1 << 27, np.float32)),
    ("XLA's memory", np.asarray(jnp.ones((1 << 27,), jnp.float32))),
  ):
    best = 0.0
    for _ in range(8):
      start = time.perf_counter()
      list(pool.map(np.max, np.array_split(x, 2)))
      best = max(best, x.nbytes / (time.perf_counter() - start))
    print(f"read bandwidth of {what}: {best / 1e9:.1f} GB/s")


if __name__ == "__main__":
  products()
  pages()
