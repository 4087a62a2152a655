"""Whose folder it is: a run claims it, whatever else is in it or wants it."""

import errno
import os
import subprocess
import sys
import textwrap

import pytest

from pasta_jax.train import setup
from pasta_jax.train.checkpoints import FolderError, claim
from pasta_jax.train.loop import train
from pasta_jax.train.rows import RowsError
from tests.train_toy import run, small, write_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def test_a_start_that_failed_does_not_keep_the_folder(data, tmp_path, monkeypatch):
  rows = tmp_path / "rows.jsonl"
  with open(data) as f:
    rows.write_text(f.read() + '{"prompt": "x"}\n')
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / ".run.json.writing").write_text("{")  # of a start that was killed
  with monkeypatch.context() as patch:
    patch.setattr(setup, "load_model", lambda *_, **__: pytest.fail("weights were loaded before bad rows"))
    with pytest.raises(RowsError, match='line 25: needs a "document"'):
      train(small(str(rows)), str(folder))
  assert not (folder / ".run.json.writing").exists()
  write_rows(rows)
  with pytest.raises(RowsError, match=r"config\.length"):
    run(small(str(rows), length=16), folder)
  run(small(str(rows)), folder)
  with pytest.raises(FolderError, match=r"its config\.length is 128"):
    run(small(str(rows), length=64), folder)
  with pytest.raises(FolderError, match="other data"):
    run(small(write_rows(rows, 20)), folder)


def test_a_folder_that_cannot_be_claimed_is_one_line_and_holds_nothing(data, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(os, "replace", full)
    with pytest.raises(FolderError, match="cannot be written: No space left on device"):
      run(small(data), tmp_path / "run")
  assert os.listdir(tmp_path / "run") == [".run.lock"]
  with claim(tmp_path / "run", small(data), [data]) as begun:
    assert not begun
  (tmp_path / "file").write_text("")
  with pytest.raises(FolderError, match="cannot be written: File exists"):
    run(small(data), tmp_path / "file")


def test_a_run_under_way_keeps_its_folder_until_it_ends_or_is_killed(data, tmp_path):
  folder, other = tmp_path / "run", small(data, learning_rate=0.1)
  script = textwrap.dedent(
    """
    import sys, time
    from pasta_jax.train import loop
    from tests.train_toy import run, small
    def compile_step(run):
      print("compiling", flush=True)  # nothing has been written but the claim
      time.sleep(600)
    loop.compile_step = compile_step
    run(small(sys.argv[1]), sys.argv[2])
    """
  )
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", script, data, str(folder)]
  process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
  try:
    assert process.stdout.readline() == "compiling\n"
    claimed = (folder / "run.json").read_text()
    for config in (small(data), other):
      with pytest.raises(FolderError, match=r"^a run is under way in .*/run; .* another --workdir$"):
        run(config, folder)
    assert (folder / "run.json").read_text() == claimed
  finally:
    process.kill()
    process.communicate()
  with claim(folder, other, [data]) as begun:
    assert not begun
    with pytest.raises(FolderError, match="under way"), claim(folder, other, [data]):
      pass
  with claim(folder, other, [data]) as begun:
    assert begun


@pytest.mark.parametrize("there", [True, False])
def test_where_files_cannot_be_locked_a_run_does_without(data, tmp_path, monkeypatch, there):
  fcntl = pytest.importorskip("fcntl")

  def none(*_):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", none)
  if not there:
    monkeypatch.setitem(sys.modules, "fcntl", None)
  for before in (False, True):
    with claim(tmp_path, small(data), [data]) as begun:
      assert begun == before
  assert (tmp_path / ".run.lock").exists() == there
