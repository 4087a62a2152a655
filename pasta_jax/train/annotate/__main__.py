"""Annotates answers: `python -m pasta_jax.train.annotate --annotator=rules --input=IN --output=OUT`."""

import logging
import sys

from absl import app, flags

from pasta_jax import runtime

try:
  from pasta_jax.train.annotate import flags as annotate_flags
  from pasta_jax.train.annotate.run import run
except ImportError as e:
  sys.exit(f"error: {e}")

flags.adopt_module_key_flags(annotate_flags)


def _run() -> None:
  logging.getLogger("httpx2").setLevel(logging.WARNING)  # else a line for every request
  run(annotate_flags.options_from_flags())


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  app.run(main)
