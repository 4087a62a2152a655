"""Compiles a run's training step for TPUs that need not be there: what it takes of a chip's memory.

    python -m pasta_jax.eval.aot_train --config=configs/stage1_gemma_7b_v5e.py --topology=v5e:4x4
    python -m pasta_jax.eval.aot_train --config=configs/stage1_gemma_7b_v5e.py --topology=v5e:2x2 \
      --config.model=gemma-2b --config.mesh=fsdp:4 --config.batch_rows=4

`--config` is what `train.main` takes, so that what is compiled is what the run would compile: the step of
train/step.py. `config.model` has to be a preset (model/presets.py); neither weights nor data are read. The
compiler's figures, not measurements (docs/tpu.md). Needs libtpu: `pip install 'pasta_jax[tpu]'`.
"""

import json
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from pasta_jax import runtime
from pasta_jax.train.config import Config
from pasta_jax.train.flags import parse

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A Python file with get_config(); --config.NAME=VALUE changes a field."
)
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "A slice, e.g. v5e:4x4 or v5p:2x2x1.")
_LAYERS = flags.DEFINE_integer("layers", 0, "Only so many layers; 0: all.", lower_bound=0)
_JSON = flags.DEFINE_string("json", "", "Write the figures here.")


def lower_step(config: Config, devices: Sequence[Any], layers: int = 0) -> tuple[Any, Any]:
  """The program of a run on these devices, and its training step, lowered but not compiled.

  Args:
    config: of the run; its model is a preset, which gets rows for the marks.
    devices: of the whole mesh; need not be there.
    layers: only so many; 0: all.

  Raises:
    ValueError: no such preset, or a mesh or rows that do not fit.
  """
  from pasta_jax.model.marks import ROWS
  from pasta_jax.model.presets import preset
  from pasta_jax.model.sharding import make_mesh
  from pasta_jax.train.setup import check_rows_divide
  from pasta_jax.train.step import Program

  mesh = make_mesh(config.mesh, devices)
  check_rows_divide(config, mesh)
  model = preset(config.model)
  model = model.replace(vocab_size=-(-(model.vocab_size + 1) // ROWS) * ROWS)
  if layers:
    model = model.replace(num_layers=layers)
  first_mark = None if config.twin else model.vocab_size - ROWS
  steps = config.steps or 1000  # epochs are counted on the data; the number is one constant of the step
  program = Program(config, model, model.vocab_size, first_mark, steps, mesh)
  shardings = program.shardings(program.frozen)
  frozen = {
    n: jax.ShapeDtypeStruct(s.shape, program.compute_dtype, sharding=shardings[n])
    for n, s in program.frozen.items()
  }
  return program, program.jit_train_step.lower(frozen, program.abstract_state(), program.abstract_batch())


def compile_for(config: Config, topology: str, layers: int = 0) -> dict[str, Any]:
  """Compiles one training step for a slice; bytes are per chip.

  Args:
    config, layers: see `lower_step`.

  Raises:
    ValueError: no such slice, a mesh that does not fit it, or a step that does not fit the chips.
  """
  from pasta_jax.eval.aot_target import describe

  target = describe(topology)
  started = time.perf_counter()
  program, lowered = lower_step(config, target.devices, layers)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    line = " ".join(str(e).split())[:300]
    raise ValueError(
      f"{config.model} on {topology}: the TPU compiler cannot compile the step: {line}"
    ) from None
  memory = compiled.memory_analysis()
  held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  total = held + memory.temp_size_in_bytes
  return {
    "model": config.model,
    "basis": "the TPU compiler's figures, not a measurement",
    "topology": topology,
    "mesh": dict(program.mesh.shape),
    "chips": math.prod(program.mesh.shape.values()),
    "layers": program.model.num_layers,
    "trained": "lora" if config.lora else "all parameters",
    "computed_in": program.compute_dtype.name,
    "rows": config.batch_rows,
    "length": config.length,
    "remat": config.remat,
    "held_bytes": held,
    "temporary_bytes": memory.temp_size_in_bytes,
    "bytes_per_chip": total,
    "hbm_bytes_per_chip": target.chip.hbm_bytes,
    "fits": bool(total <= target.chip.hbm_bytes),
    "compile_s": time.perf_counter() - started,
    "config": config.as_dict(),
  }


def line(figures: dict[str, Any]) -> str:
  """The figures for people."""

  def gb(name: str) -> str:
    return f"{figures[name] / 1e9:.2f} GB"

  return (
    f"{figures['model']}, {figures['trained']}, on {figures['topology']} ({figures['chips']} chips, mesh "
    f"{figures['mesh']}), {figures['rows']} x {figures['length']} tokens: {gb('bytes_per_chip')} of "
    f"{gb('hbm_bytes_per_chip')} per chip ({gb('held_bytes')} weights and optimiser, "
    f"{gb('temporary_bytes')} temporary): {'fits' if figures['fits'] else 'does not fit'}; "
    f"compiled in {figures['compile_s']:.0f} s"
  )


def _run() -> None:
  # The TPU's compiler is asked, never a TPU: JAX would look for one, for minutes where there is none.
  jax.config.update("jax_platforms", "cpu")
  config = Config.of(_CONFIG.value.to_dict())
  figures = compile_for(config, _TOPOLOGY.value, _LAYERS.value)
  print(line(figures))
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


def main(argv: list[str]) -> None:
  del argv
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=parse)
