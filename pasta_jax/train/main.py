"""Stage 1: `python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m.py --workdir=runs/stage1`."""

import sys

from absl import app, flags
from ml_collections import config_flags

from pasta_jax import runtime

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A Python file with get_config(); --config.NAME=VALUE changes a field."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: metrics, checkpoints, the result.")
_CACHE = flags.DEFINE_string(
  "compilation_cache", runtime.default_cache_folder(), "Folder for compiled programs; empty turns it off."
)


def _run() -> None:
  runtime.use_compilation_cache(_CACHE.value)
  from pasta_jax.train.config import Config
  from pasta_jax.train.loop import train

  outcome = train(Config.of(_CONFIG.value.to_dict()), _WORKDIR.value)
  print(outcome.result)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
