"""An evaluation small enough for tests: a toy model, adapters for it, held-out rows and a second file."""

import functools
import json
from pathlib import Path

import numpy as np

from pasta_jax.eval import suite_models, suite_stage1
from pasta_jax.eval.suite_options import Options
from pasta_jax.model.adapter import Adapter, save_adapter
from pasta_jax.model.lora import LoraConfig, adapter_table, first_mark
from tests.law import likes_marks
from tests.toy import toy_model
from tests.train_toy import write_rows

LORA = LoraConfig(rank=1, alpha=1.0, targets=("q",))


@functools.cache
def base_model():
  return toy_model(marks=True, num_layers=1)


def toy_adapter(marks: bool, seed: int = 0, **config) -> Adapter:
  """One that changes a little, and with marks makes about every answer split."""
  model = base_model()
  rng = np.random.default_rng(seed)
  table = adapter_table(model.config, LORA, marks)
  arrays = {name: 0.1 * rng.standard_normal(spec.shape, np.float32) for name, spec in table.items()}
  if marks:
    start = first_mark(model.tokenizer.controls)
    arrays["embed.rows"] = np.asarray(likes_marks(model)["embed"][start:])
  return Adapter(arrays, LORA, marks, "toy", {"config": {"holdout": 0.5, "positions": "pred10"} | config})


def toy_options(folder: Path, **changes) -> Options:
  """Options whose files lie in `folder`; the run goes into its folder `out`."""
  save_adapter(folder / "pasta.npz", toy_adapter(True))
  save_adapter(folder / "twin.npz", toy_adapter(False, seed=1))
  rows = [{"question_id": 7, "turns": ["What now?", "And then?"]}, {"prompt": "<b>$Bold</b> & more"}]
  (folder / "more.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  values = {
    "model": "toy",
    "adapter": str(folder / "pasta.npz"),
    "twin": str(folder / "twin.npz"),
    "heldout": write_rows(folder / "rows.jsonl"),
    "holdout": 0.25,
    "prompts": str(folder / "more.jsonl"),
    "output_dir": str(folder / "out"),
    "max_new_tokens": 48,
    "max_len": 160,
    "lanes": 2,
  }
  return Options(**(values | changes))


def run(options: Options, log=lambda line: None):
  """`suite_stage1.run` with the toy model."""
  before, suite_models.load_model = suite_models.load_model, lambda *_, **__: base_model()
  try:
    return suite_stage1.run(options, log)
  finally:
    suite_models.load_model = before
