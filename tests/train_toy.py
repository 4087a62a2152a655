"""Training runs small enough for tests: rows of a few words, a model of bytes with one layer."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from pasta_jax.model.sharding import param_shardings
from pasta_jax.train import setup
from pasta_jax.train.config import Config
from pasta_jax.train.loop import Outcome, train
from tests.toy import TOY, toy_model

CFG = TOY.replace(num_layers=2)
ROWS = 296  # of the table: the 293 ids, a prime, and padding, so that a mesh can split it

_ANSWERS = (
  'Two: <promise topic="cat" tokens="10"/><async>a cat</async>, <promise topic="dog" tokens="10"/><async>a'
  " dog</async>.<sync/> Both.",
  "Hi there.",
  '<promise topic="one" tokens="20"/><async>the first</async> <promise topic="two" tokens="10"/><async>second'
  "</async>",
  "More, and more & more.",
)


def write_rows(path: Path, count: int = 24) -> str:
  """Rows with different prompts."""
  rows = [{"id": n, "prompt": f"Question {n}", "document": _ANSWERS[n % 4]} for n in range(count)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def small(data: str, **changes) -> Config:
  values = {
    "model": "toy",
    "data": (data,),
    "holdout": 0.25,
    "lora_rank": 2,
    "length": 128,
    "batch_rows": 4,
    "steps": 6,
    "learning_rate": 5e-3,
    "logits_tokens": 128,
    "log_every": 1,
    "dtype": "float32",  # equal to the last bits is what most tests ask for
  }
  return Config(**(values | changes))


def toy(source: str = "toy", *, dtype=None, mesh=None):
  """What stands in for `load_model`."""
  model = toy_model(marks=True, cfg=CFG, vocab_size=ROWS)
  if mesh is None:
    return model
  values = {name: np.asarray(x) for name, x in model.params.items()}
  params = {
    name: jax.make_array_from_callback(values[name].shape, sharding, values[name].__getitem__)
    for name, sharding in param_shardings(model.config, mesh).items()
  }
  return dataclasses.replace(model, params=params)


def run(config: Config, workdir) -> Outcome:
  """`train` with the toy model."""
  before, setup.load_model = setup.load_model, toy
  try:
    return train(config, str(workdir))
  finally:
    setup.load_model = before


def losses(workdir) -> list[float]:
  lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
  return [line["loss"] for line in lines if "loss" in line]
