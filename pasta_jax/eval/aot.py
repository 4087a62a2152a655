"""Compiles the decoder for TPUs that need not be there, and shows what the compiler foresees.

    python -m pasta_jax.eval.aot --config=gemma-2b --topology=v5e:1x1
    python -m pasta_jax.eval.aot --config=gemma-7b --topology=v5e:2x4 --mesh=tensor:8

Memory of a chip, operations, bytes, and the compiler's estimated milliseconds beside the time that HBM takes
to deliver weights and cache once. Estimates by the compiler, not measurements (docs/tpu.md). Needs libtpu:
`pip install 'pasta_jax[tpu]'`.
"""

import json
import pathlib
import sys
from functools import partial

import jax
from absl import app, flags

from pasta_jax import runtime

_CONFIG = flags.DEFINE_list("config", ["gemma-2b"], "Presets, e.g. gemma-2b,gemma-7b (model/presets.py).")
_TOPOLOGY = flags.DEFINE_list("topology", ["v5e:1x1"], "Slices, e.g. v5e:1x1,v5e:2x4,v5p:2x2x1,v6e:2x2.")
_MESH = flags.DEFINE_string("mesh", "", "As in decode.main, e.g. data:1,tensor:8; default: one chip.")
_REQUESTS = flags.DEFINE_integer("requests", 1, "Requests decoded at a time.", lower_bound=1)
_LANES = flags.DEFINE_integer("lanes", 8, "Lanes of a request; 1: the sequential decoder.", lower_bound=1)
_SLOTS = flags.DEFINE_integer("slots", 1024, "Slots of the cache, all of them attended to.", lower_bound=1)
_LAYERS = flags.DEFINE_integer("layers", 0, "Only so many layers; 0: all.", lower_bound=0)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of weights and cache.")
_PREFILL = flags.DEFINE_bool("prefill", True, "Compile the pieces of prompts too.")
_JSON = flags.DEFINE_string("json", "", "Write the figures here, as a list.")


def _run() -> None:
  # The TPU's compiler is asked, never a TPU: JAX would look for one, for minutes where there is none.
  jax.config.update("jax_platforms", "cpu")
  from pasta_jax.eval.aot_report import Decoder, report
  from pasta_jax.eval.aot_target import describe
  from pasta_jax.model.presets import preset

  configs = [preset(name) for name in _CONFIG.value]
  if _LAYERS.value:
    configs = [cfg.replace(num_layers=min(_LAYERS.value, cfg.num_layers)) for cfg in configs]
  targets = [describe(name) for name in _TOPOLOGY.value]
  decoder = Decoder(_REQUESTS.value, _LANES.value, _SLOTS.value, _DTYPE.value)
  all_figures = []
  for cfg in configs:
    for target in targets:
      all_figures.append(
        report(cfg, target, decoder, _MESH.value, _PREFILL.value, partial(print, flush=True))
      )
  if _JSON.value:
    path = pathlib.Path(_JSON.value)
    beside = path.with_name(path.name + ".writing")
    beside.write_text(json.dumps(all_figures, indent=1) + "\n")
    beside.replace(path)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  app.run(main)
