"""A run that goes on from the adapter of another."""

import dataclasses

import jax
import numpy as np
import pytest

from pasta_jax.model.adapter import load_adapter, save_adapter
from pasta_jax.model.errors import WeightsError
from pasta_jax.train import setup
from pasta_jax.train.checkpoints import FolderError
from pasta_jax.train.config import Config
from pasta_jax.train.forward import unstack
from pasta_jax.train.setup import set_up
from tests.train_toy import run, small, toy, write_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
  return run(small(data), tmp_path_factory.mktemp("first") / "run").result


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
  monkeypatch.setattr(setup, "load_model", toy)


def test_it_starts_where_the_other_ended_and_leaves_word_of_it(data, first, tmp_path):
  there = load_adapter(first)
  begun = set_up(small(data, adapter=str(first)))
  arrays = unstack(jax.device_get(begun.state["params"]))
  assert arrays.keys() == there.arrays.keys()
  for name, value in arrays.items():
    np.testing.assert_array_equal(value, there.arrays[name])
  new = unstack(jax.device_get(set_up(small(data)).state["params"]))
  assert any((new[name] != value).any() for name, value in arrays.items())

  second = small(data, adapter=str(first), steps=2, promise_bias=(0.0, -1.5))
  after = load_adapter(run(second, tmp_path / "second").result)
  assert after.metadata["before"] == there.metadata
  assert (there.promise_bias, after.promise_bias) == ((0, 0), (0, -1.5))
  assert after.metadata["steps"] == 2
  assert any((after.arrays[name] != value).any() for name, value in there.arrays.items())


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"lora_rank": 4}, "has lora_rank 2, config.lora_rank is 4"),
    ({"lora_targets": ("q", "v")}, "config.lora_targets is ('q', 'v')"),
    ({"twin": True}, "has twin False, config.twin is True"),
    ({"model": "other"}, "has model 'toy', config.model is 'other'"),
  ],
)
def test_another_kind_of_adapter_is_refused(data, first, changes, said):
  with pytest.raises(ValueError, match=r"config\.adapter") as e:
    set_up(small(data, adapter=str(first), **changes))
  assert said in str(e.value)
  assert "\n" not in str(e.value)


def test_a_folder_of_a_run_from_another_adapter_is_refused(data, first, tmp_path):
  beside = tmp_path / "begin.npz"
  beside.write_bytes(first.read_bytes())
  config = small(data, adapter=str(beside), steps=1)
  run(config, tmp_path / "run")
  run(config, tmp_path / "run")  # the same again: nothing to do
  save_adapter(beside, dataclasses.replace(load_adapter(first), metadata={}))
  with pytest.raises(FolderError, match="from another adapter"):
    run(config, tmp_path / "run")


def test_a_file_that_is_none_and_training_of_all_parameters_are_refused(data, tmp_path):
  with pytest.raises(WeightsError, match="no such file"):
    set_up(small(data, adapter=str(tmp_path / "none.npz")))
  with pytest.raises(ValueError, match=r"config\.adapter must be empty where lora is False"):
    Config(lora=False, adapter="x.npz")


def test_one_name_stands_for_both_kinds(data, first, tmp_path):
  (tmp_path / "of_pasta.npz").write_bytes(first.read_bytes())
  config = small(data, adapter=str(tmp_path / "of_{kind}.npz"))
  assert set_up(config).before == load_adapter(first).metadata
  with pytest.raises(WeightsError, match=r"of_twin\.npz: no such file"):
    set_up(dataclasses.replace(config, twin=True))
