"""Compiles a training step for TPUs that need not be there, and shows what it takes of a chip's memory.

    python -m pasta_jax.eval.aot_train --config=gemma-2b --topology=v5e:2x2 --mesh=fsdp:4
    python -m pasta_jax.eval.aot_train --config=gemma-7b --topology=v5e:4x4 --mesh=fsdp:16

The step of train/step.py: weights, AdamW's state and gradients in float32, computation in bfloat16. The
compiler's figures, not measurements (docs/tpu.md). Needs libtpu: `pip install 'pasta_jax[tpu]'`.
"""

import json
import math
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from pasta_jax import runtime

_CONFIG = flags.DEFINE_string("config", "gemma-2b", "A preset, e.g. gemma-7b (model/presets.py).")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "A slice, e.g. v5e:4x4 or v5p:2x2x1.")
_MESH = flags.DEFINE_string("mesh", "fsdp:-1", "As config.mesh of a run.")
_ROWS = flags.DEFINE_integer("rows", 0, "Rows of a step; 0: one per chip and part.", lower_bound=0)
_LENGTH = flags.DEFINE_integer("length", 1024, "Tokens of a row.", lower_bound=16)
_ACCUMULATE = flags.DEFINE_integer("accumulate", 1, "As config.accumulate.", lower_bound=1)
_LORA = flags.DEFINE_bool("lora", False, "LoRA instead of all parameters.")
_REMAT = flags.DEFINE_enum("remat", "full", ["none", "dots", "full"], "As config.remat.")
_LOGITS = flags.DEFINE_integer("logits_tokens", 2048, "As config.logits_tokens.", lower_bound=1)
_LAYERS = flags.DEFINE_integer("layers", 0, "Only so many layers; 0: all.", lower_bound=0)
_JSON = flags.DEFINE_string("json", "", "Write the figures here.")


def compile_for(
  name: str,
  topology: str,
  mesh: str,
  *,
  rows: int = 0,
  length: int = 1024,
  accumulate: int = 1,
  lora: bool = False,
  remat: str = "full",
  logits_tokens: int = 2048,
  layers: int = 0,
) -> dict[str, Any]:
  """Compiles one training step; bytes are per chip.

  Args:
    name: a preset, which gets rows for the marks.
    topology, mesh: of the slice.
    rows: of a step; 0: one per chip of the data and fsdp axes, and part.
    layers: only so many; 0: all.

  Raises:
    ValueError: no such slice, a mesh that does not fit it, or a step that does not fit the chips.
  """
  from pasta_jax.eval.aot_target import describe
  from pasta_jax.model.marks import ROWS
  from pasta_jax.model.presets import preset
  from pasta_jax.model.sharding import make_mesh
  from pasta_jax.train.config import Config
  from pasta_jax.train.step import Program

  target = describe(topology)
  devices = make_mesh(mesh, target.devices)
  shards = devices.shape["data"] * devices.shape["fsdp"]
  model = preset(name)
  model = model.replace(vocab_size=-(-(model.vocab_size + 1) // ROWS) * ROWS)
  if layers:
    model = model.replace(num_layers=layers)
  config = Config(
    model=name,
    lora=lora,
    batch_rows=rows or shards * accumulate,
    length=length,
    accumulate=accumulate,
    remat=remat,
    logits_tokens=logits_tokens,
    dtype="bfloat16",
    mesh=mesh,
    steps=1000,
  )
  program = Program(config, model, model.vocab_size, model.vocab_size - ROWS, config.steps, devices)
  shardings = program.shardings(program.frozen)
  frozen = {
    n: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16, sharding=shardings[n]) for n, s in program.frozen.items()
  }
  started = time.perf_counter()
  lowered = program.jit_train_step.lower(frozen, program.abstract_state(), program.abstract_batch())
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    line = " ".join(str(e).split())[:300]
    raise ValueError(f"{name} on {topology}: the TPU compiler cannot compile the step: {line}") from None
  memory = compiled.memory_analysis()
  held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  total = held + memory.temp_size_in_bytes
  return {
    "config": name,
    "basis": "the TPU compiler's figures, not a measurement",
    "topology": topology,
    "mesh": dict(devices.shape),
    "chips": math.prod(devices.shape.values()),
    "layers": model.num_layers,
    "trained": "lora" if lora else "all parameters",
    "rows": config.batch_rows,
    "length": length,
    "remat": remat,
    "held_bytes": held,
    "temporary_bytes": memory.temp_size_in_bytes,
    "bytes_per_chip": total,
    "hbm_bytes_per_chip": target.chip.hbm_bytes,
    "fits": bool(total <= target.chip.hbm_bytes),
    "compile_s": time.perf_counter() - started,
  }


def line(figures: dict[str, Any]) -> str:
  """The figures for people."""

  def gb(name: str) -> str:
    return f"{figures[name] / 1e9:.2f} GB"

  return (
    f"{figures['config']}, {figures['trained']}, on {figures['topology']} ({figures['chips']} chips, mesh "
    f"{figures['mesh']}), {figures['rows']} x {figures['length']} tokens: {gb('bytes_per_chip')} of "
    f"{gb('hbm_bytes_per_chip')} per chip ({gb('held_bytes')} weights and optimiser, "
    f"{gb('temporary_bytes')} temporary): {'fits' if figures['fits'] else 'does not fit'}; "
    f"compiled in {figures['compile_s']:.0f} s"
  )


def _run() -> None:
  # The TPU's compiler is asked, never a TPU: JAX would look for one, for minutes where there is none.
  jax.config.update("jax_platforms", "cpu")
  figures = compile_for(
    _CONFIG.value,
    _TOPOLOGY.value,
    _MESH.value,
    rows=_ROWS.value,
    length=_LENGTH.value,
    accumulate=_ACCUMULATE.value,
    lora=_LORA.value,
    remat=_REMAT.value,
    logits_tokens=_LOGITS.value,
    layers=_LAYERS.value,
  )
  print(line(figures))
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  app.run(main)
