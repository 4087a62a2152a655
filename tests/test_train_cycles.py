"""A run of more cycles of the learning rate goes on from a finished one of fewer."""

import json

import pytest

from pasta_jax.train.checkpoints import FolderError, claim
from tests.train_toy import losses, run, small, write_rows


def test_a_finished_run_goes_on_as_the_first_cycle_of_a_longer_one_bit_for_bit(tmp_path):
  data = write_rows(tmp_path / "rows.jsonl")
  twice = small(data, steps=6, cycles=2)
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  run(twice, whole)
  run(small(data, steps=3), parts)
  assert run(twice, parts).step == 6
  assert losses(parts) == losses(whole)
  assert json.loads((parts / "run.json").read_text())["config"]["cycles"] == 2
  with pytest.raises(FolderError, match=r"config\.(steps is 6|cycles is 2)"):
    run(small(data, steps=3), parts)


@pytest.mark.parametrize("changes", [{"steps": 8}, {"steps": 7, "cycles": 2}, {"steps": 6, "cycles": 1}])
def test_a_run_that_does_not_begin_alike_is_refused(tmp_path, changes):
  data = write_rows(tmp_path / "rows.jsonl")
  folder = tmp_path / "run"
  with claim(folder, small(data, steps=3), [data]):
    (folder / "metrics.jsonl").write_text("{}\n")
  with (
    pytest.raises(FolderError, match=r"config\.(steps|cycles) is"),
    claim(folder, small(data, **changes), [data]),
  ):
    pass


def test_a_run_of_a_version_that_had_fewer_settings_goes_on(tmp_path):
  data = write_rows(tmp_path / "rows.jsonl")
  folder = tmp_path / "run"
  with claim(folder, small(data), [data]):
    (folder / "metrics.jsonl").write_text("{}\n")
  path = folder / "run.json"
  values = json.loads(path.read_text())
  del values["config"]["cycles"]
  path.write_text(json.dumps(values))
  with claim(folder, small(data), [data]) as begun:
    assert begun
