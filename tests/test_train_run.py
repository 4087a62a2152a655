"""Whole runs: stopped at any moment and resumed, the losses are those of a run that was never stopped."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import pytest

from pasta_jax.model.adapter import load_adapter, with_adapter
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.memory import told_when_memory_runs_out
from pasta_jax.runtime import Terminated, run_main
from pasta_jax.train import loop, setup
from pasta_jax.train.checkpoints import Checkpoints, FolderError
from pasta_jax.train.packing import Loader
from pasta_jax.train.setup import set_up
from pasta_jax.train.step import Program
from pasta_jax.train.watch import DivergedError, Watch
from tests.train_toy import losses, run, small, toy, write_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
  """A run that was never stopped: its folder and outcome."""
  folder = tmp_path_factory.mktemp("run") / "whole"
  return folder, run(small(data, save_every=2, eval_every=3), folder)


def test_a_run_leaves_metrics_checkpoints_an_adapter_and_a_report(whole):
  folder, outcome = whole
  assert len(losses(folder)) == 6
  assert outcome.result == folder / "adapter.npz"
  adapter = load_adapter(outcome.result)
  assert adapter.metadata["steps"] == 6
  assert adapter.marks
  assert with_adapter(toy(), adapter).config == toy().config
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "eval_loss" in line] == [3, 6]
  assert {"eval_loss_text", "eval_loss_mark", "eval_recall_promise"} <= set(lines[-1])
  assert outcome.evaluation["loss"] == lines[-1]["eval_loss"]
  assert "config" in json.loads((folder / "run.json").read_text())
  assert "held out" in (folder / "report.md").read_text()


def test_the_plots_are_pictures(whole):
  pytest.importorskip("matplotlib", reason="plots need the extra `train`")
  for name in ("loss.png", "marks.png", "speed.png"):
    assert (whole[0] / name).read_bytes().startswith(b"\x89PNG")
    assert name in (whole[0] / "report.md").read_text()


def test_tensorboard_has_the_losses(whole):
  pytest.importorskip("tensorboardX", reason="TensorBoard's files need the extra `train`")
  files = list((whole[0] / "tensorboard").iterdir())
  assert len(files) == 1
  assert b"eval/loss_text" in files[0].read_bytes()


def test_the_newest_checkpoints_are_kept_and_the_best_with_its_adapter(data, tmp_path, monkeypatch):
  given = iter([3.0, 1.0, 2.0, 4.0, 5.0])
  config = small(data, eval_every=1)
  monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": next(given)})
  with pytest.raises(StopIteration):  # ended while step 6 is evaluated
    run(config, tmp_path)
  with Checkpoints(tmp_path, 2) as checkpoints:
    assert checkpoints.steps == [2, 4, 5]
  given = iter([1.5])
  run(config, tmp_path)
  with Checkpoints(tmp_path, 2) as checkpoints:
    assert checkpoints.steps == [2, 5, 6]
  best, last = (load_adapter(tmp_path / name) for name in ("adapter.best.npz", "adapter.npz"))
  assert (best.metadata["steps"], last.metadata["steps"]) == (2, 6)
  assert best.metadata["evaluation"] == {"loss": 1.0}
  assert any(not np.array_equal(x, last.arrays[name]) for name, x in best.arrays.items())


def test_a_held_out_loss_that_is_no_number_stops_and_is_not_saved(data, tmp_path, monkeypatch):
  given = iter([1.0, float("nan")])
  monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": next(given)})
  with pytest.raises(DivergedError, match=r"step 6: the held-out loss is nan; .* checkpoint is step 3"):
    run(small(data, eval_every=3), tmp_path)
  with Checkpoints(tmp_path, 2) as checkpoints:
    assert checkpoints.steps == [3]
  assert load_adapter(tmp_path / "adapter.best.npz").metadata["steps"] == 3


def written(folder):
  """All lines of metrics but for the times in them."""
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [
    {k: v for k, v in line.items() if k not in ("tokens_per_second", "peak_flops_percent")} for line in lines
  ]


def test_sigterm_saves_at_once_and_the_same_command_goes_on_bit_for_bit(data, whole, tmp_path, monkeypatch):
  next_batch = Loader.next

  def stop_in_the_third(self):
    if (self.state.epoch, self.state.index) == (1, 0):  # an epoch has two batches
      os.kill(os.getpid(), signal.SIGTERM)
    return next_batch(self)

  config = small(data, save_every=2, eval_every=3)
  with monkeypatch.context() as patch:
    patch.setattr(Loader, "next", stop_in_the_third)
    patch.setattr(loop, "evaluate", lambda *_: pytest.fail("evaluated before saving"))
    with pytest.raises(Terminated, match="saved after step 3 of 6"):
      run(config, tmp_path / "run")
  assert written(tmp_path / "run") == written(whole[0])[:3]
  with monkeypatch.context() as patch:
    patch.setattr(Loader, "next", lambda self: 1 / 0)
    for _ in range(2):
      with pytest.raises(ZeroDivisionError):  # what step 3 lacks has been evaluated, and no checkpoint has it
        run(config, tmp_path / "run")
      assert written(tmp_path / "run") == written(whole[0])[:4]
  run(config, tmp_path / "run")
  assert written(tmp_path / "run") == written(whole[0])
  same = (load_adapter(folder / "adapter.npz").arrays for folder in (tmp_path / "run", whole[0]))
  assert all(np.array_equal(a, b) for a, b in zip(*map(dict.values, same), strict=True))


def test_sigterm_in_an_evaluation_cuts_it_short_also_the_last_and_the_resumed_one(
  data, whole, tmp_path, monkeypatch
):
  config, folder = small(data, save_every=2, eval_every=3), tmp_path / "run"
  evaluate, rest = loop.evaluate, [3, 6]

  def stopped(batches, go, controls):
    """An evaluation that SIGTERM reaches at its first batch."""

    def stop(batch):
      os.kill(os.getpid(), signal.SIGTERM)
      return go(batch)

    return evaluate(batches, stop, controls)

  monkeypatch.setattr(loop, "evaluate", stopped)
  for _ in range(2):
    with pytest.raises(Terminated, match="saved after step 3 of 6"):
      run(config, folder)
  monkeypatch.setattr(loop, "evaluate", lambda *args: (evaluate if rest.pop(0) == 3 else stopped)(*args))
  with pytest.raises(Terminated, match="saved after step 6 of 6"):
    run(config, folder)
  monkeypatch.setattr(loop, "evaluate", evaluate)
  for _ in range(2):
    assert run(config, folder).evaluation == whole[1].evaluation
    assert written(folder) == written(whole[0])


def test_killed_outright_it_goes_on_from_the_last_checkpoint_bit_for_bit(data, whole, tmp_path):
  script = textwrap.dedent(
    """
    import os, signal, sys
    from pasta_jax.train import loop
    from tests.train_toy import run, small
    class Recorder(loop.Recorder):
      def step(self, step, *rest):
        super().step(step, *rest)
        if step == 5:
          os.kill(os.getpid(), signal.SIGKILL)
    loop.Recorder = Recorder
    run(small(sys.argv[1], save_every=2, eval_every=3), sys.argv[2])
    """
  )
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", script, data, str(tmp_path / "run")]
  done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert losses(tmp_path / "run") == losses(whole[0])[:5]
  run(small(data, save_every=2, eval_every=3), tmp_path / "run")
  assert losses(tmp_path / "run") == losses(whole[0])


def test_a_full_disk_is_one_line_wherever_it_comes_and_with_room_again_it_goes_on_bit_for_bit(
  data, whole, tmp_path, monkeypatch
):
  config, folder = small(data, save_every=2, eval_every=3), tmp_path / "run"
  savez, step, save = np.savez, loop.Recorder.step, Checkpoints.save
  full = types.SimpleNamespace(flush=lambda: None, close=lambda: None)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)

  def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def adapter_full(file, **arrays):
    if ".adapter.npz." in file.name:
      file.write(b"PK")
      no_space()
    savez(file, **arrays)

  def metrics_full(self, number, *rest):
    if number == 4:
      self._file._file.close()
      self._file._file = full
    step(self, number, *rest)

  def checkpoint_full(self, number, *rest):
    if number == 4:  # Orbax writes in threads, and not in Python: a limit on the size of files stands in
      resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    save(self, number, *rest)
    self.wait()

  full.write = no_space
  ignore = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    for where, name, stand_in, message in (
      (np, "savez", adapter_full, r"run/adapter\.npz: cannot be written: No space left"),
      (loop.Recorder, "step", metrics_full, r"run/metrics\.jsonl: cannot be written: No space left"),
      (Checkpoints, "save", checkpoint_full, r"run/checkpoints: cannot be written"),
    ):
      with monkeypatch.context() as patch:
        patch.setattr(where, name, stand_in)
        with pytest.raises((OSError, WeightsError), match=message) as e:
          run(config, folder)
      assert "\n" not in str(e.value)
      assert not [file for file in os.listdir(folder) if file.endswith(".writing")]
      assert len(losses(folder)) >= 3
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignore)
  run(config, folder)
  assert written(folder) == written(whole[0])


def test_a_finished_run_is_not_trained_again(whole, data, monkeypatch):
  monkeypatch.setattr(Loader, "next", lambda self: pytest.fail("a batch was taken"))
  outcome = run(small(data, save_every=2, eval_every=3), whole[0])
  assert outcome.step == 6
  assert outcome.evaluation["loss"] == whole[1].evaluation["loss"]


def test_a_folder_of_another_run_is_refused(whole, data, tmp_path):
  with pytest.raises(FolderError, match=r"config\.learning_rate is 0\.005, this one's 0\.1"):
    run(small(data, learning_rate=0.1), whole[0])
  other = write_rows(tmp_path / "other.jsonl", 20)
  with pytest.raises(FolderError, match="belongs to another run"):
    run(small(other, save_every=2, eval_every=3), whole[0])
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.txt").write_text("x")
  with pytest.raises(FolderError, match="holds files, but no run"):
    run(small(data), tmp_path / "mine")
  assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_an_implicit_transfer_in_the_loop_of_steps_is_an_error(data, tmp_path, monkeypatch):
  def not_placed(program, batch):
    return {name: x.reshape(program.abstract_batch()[name].shape) for name, x in batch.items()}

  monkeypatch.setattr(Program, "place_batch", not_placed)
  with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
    run(small(data), tmp_path)


def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(data, tmp_path, monkeypatch):
  next_batch = Loader.next

  def poison(self):
    batch = next_batch(self)
    if self.state.epoch * self.batches_of(0) + self.state.index == 4:
      batch["weight"][:] = np.nan
    return batch

  monkeypatch.setattr(Loader, "next", poison)
  with pytest.raises(DivergedError, match=r"step 4: the loss is nan; the last good checkpoint is step 3"):
    run(small(data, save_every=3), tmp_path / "run")
  with Checkpoints(tmp_path / "run", 2) as checkpoints:
    assert checkpoints.steps == [3]


def test_a_loss_that_runs_away_stops_and_one_hard_batch_does_not():
  watch = Watch(3.0)
  for step in range(100):
    watch.see(step, 30.0 if step == 50 else 2.0, 1.0)
  other = Watch(3.0)
  other.state = json.loads(json.dumps(watch.state))
  assert other.state == watch.state
  for step in range(100):
    other.see(step, 3.5, 1.0)
  with pytest.raises(DivergedError, match="the loss diverges"):
    [other.see(step, 9.0, 1.0) for step in range(100)]
  with pytest.raises(DivergedError, match="the gradient is inf"):
    watch.see(1, 2.0, float("inf"))


def test_a_step_that_cannot_fit_fails_before_the_first(data, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, "device_bytes_free", lambda device: 1000)
  with pytest.raises(ValueError, match=r"a step needs .* GB beside the weights"):
    run(small(data), tmp_path / "run")


@pytest.mark.parametrize("lora", [True, False])
def test_weights_and_optimiser_that_cannot_fit_fail_before_they_are_made(data, monkeypatch, lora):
  config, size = small(data, lora=lora), sum(x.nbytes for x in toy().params.values())
  trained = 4 * sum(s.size for s in set_up(config, toy()).program.trained.values())
  assert lora or trained == size
  # AdamW has two numbers beside each that is trained; what was loaded is used again.
  need = (3 if lora else 2) * trained
  monkeypatch.setattr(setup, "device_bytes_free", lambda device: need + 64)
  set_up(config, toy())
  monkeypatch.setattr(setup, "device_bytes_free", lambda device: need - 64)
  monkeypatch.setattr(Program, "new_state", lambda *_: pytest.fail("the state was made"))
  with pytest.raises(ValueError, match=r"the optimiser's state need .* GB of memory, .* are free") as e:
    set_up(config, toy())
  assert "\n" not in str(e.value)
  assert ("config.lora=True" in str(e.value)) != lora


def test_a_device_without_memory_left_is_one_line(data, tmp_path, monkeypatch, capsys):
  def full(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes")

  monkeypatch.setattr(Loader, "next", full)
  assert run_main(lambda: run(small(data), tmp_path / "run")) == 1
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith(
    "error: not enough memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes; use"
  )
  assert run_main(full) == 1
  assert capsys.readouterr().err.count("\n") == 1
  with pytest.raises(RuntimeError, match="defect"), told_when_memory_runs_out(""):
    raise RuntimeError("a defect")


def test_all_parameters_give_a_model_folder(data, tmp_path, monkeypatch):
  from pasta_jax.model.checkpoint import load_checkpoint

  outcome = run(small(data, lora=False, steps=2), tmp_path / "run")
  config, params = load_checkpoint(outcome.result)
  assert config == toy().config
  assert any(not np.array_equal(params[n], x) for n, x in toy().params.items())
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, toy().params)
