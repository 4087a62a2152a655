"""One process that loads a model and answers: when its first token came, and its peak memory.

Run in a process of its own by `eval.speed`: `python -m pasta_jax.eval.startup --model=...`. Prints JSON, or
one line on stderr.
"""

import json
import os
import sys
import time

import jax
from absl import app, flags

from pasta_jax import runtime
from pasta_jax.model.memory import peak_rss_bytes

_MODEL = flags.DEFINE_string("model", "smollm2-135m", "As in decode.main.")
_DTYPE = flags.DEFINE_string("dtype", "auto", "As in decode.main.")
_PROMPT = flags.DEFINE_string("prompt", "Name three rivers.", "What to answer.")
_MAX_LEN = flags.DEFINE_integer("max_len", 1024, "As in decode.main.")
_NEW = flags.DEFINE_integer("max_new_tokens", 32, "As in decode.main.")
_CACHE = flags.DEFINE_string("compilation_cache", runtime.default_cache_folder(), "As in decode.main.")


def process_age() -> float:
  """Seconds since this process started, imports and interpreter included (Linux; else since import)."""
  try:
    with open("/proc/self/stat", encoding="ascii") as f:
      ticks = int(f.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
  except (OSError, AttributeError):
    return time.perf_counter() - _IMPORTED


_IMPORTED = time.perf_counter()


def _run() -> None:
  runtime.use_compilation_cache(_CACHE.value)
  from pasta_jax.decode.engine import Engine
  from pasta_jax.decode.requests import Request
  from pasta_jax.model.dtypes import resolve_dtype
  from pasta_jax.model.tokenizer_ids import with_ids
  from pasta_jax.model.weights import load_model

  model = with_ids(load_model(_MODEL.value, dtype=resolve_dtype(_DTYPE.value, few=True)))
  jax.block_until_ready(model.params)
  loaded_s, loaded_peak = process_age(), peak_rss_bytes()
  engine = Engine(model, max_len=_MAX_LEN.value, take=True)
  first_s = None
  for _ in engine.stream(Request(_PROMPT.value, max_new_tokens=_NEW.value)):
    first_s = first_s or process_age()
  figures = {
    "loaded_s": loaded_s,
    "first_token_s": first_s,
    "peak_rss_mb": loaded_peak / 1e6,
    "peak_rss_run_mb": peak_rss_bytes() / 1e6,
  }
  print(json.dumps(figures))


def main(argv: list[str]) -> None:
  del argv
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  app.run(main)
