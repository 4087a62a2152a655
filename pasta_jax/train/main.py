"""Stage 1: `python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m.py --workdir=runs/stage1`.

The same command again goes on where an interrupted run stopped.
"""

import sys

from absl import app, flags
from ml_collections import config_flags

from pasta_jax import runtime
from pasta_jax.train.flags import parse

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A Python file with get_config(); --config.NAME=VALUE changes a field."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: metrics, checkpoints, the result.")
_CACHE = flags.DEFINE_string(
  "compilation_cache", runtime.default_cache_folder(), "Folder for compiled programs; empty turns it off."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "One of several processes; on Cloud TPU and Slurm they find each other."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where they do not.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0.", lower_bound=0)


def _check_processes() -> None:
  """Raises ValueError for flags of several processes that would start this one alone."""
  given = [f"--{f.name}" for f in (_PROCESSES, _PROCESS) if f.value is not None]
  if given and not (_DISTRIBUTED.value or _COORDINATOR.value):
    raise ValueError(
      f"{' and '.join(given)} without --coordinator; give it, or --distributed where there is none"
    )
  count, number = _PROCESSES.value, _PROCESS.value
  if count is not None and number is not None and number >= count:
    raise ValueError(f"--process={number} of --processes={count}: they count from 0")


def _run() -> None:
  _check_processes()
  runtime.use_compilation_cache(_CACHE.value)
  from pasta_jax.train.config import Config
  from pasta_jax.train.loop import train

  config = Config.of(_CONFIG.value.to_dict())
  if _DISTRIBUTED.value or _COORDINATOR.value:
    import jax

    jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  print(train(config, str(_WORKDIR.value)).result)


def main(argv: list[str]) -> None:
  del argv
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  runtime.on_huge_pages()
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=parse)
