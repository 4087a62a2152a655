"""Training on meshes: eight devices give the loss of one, two processes too; any mesh resumes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pasta_jax.model.adapter import load_adapter
from pasta_jax.runtime import run_main
from pasta_jax.train import loop, setup
from pasta_jax.train.packing import Loader
from tests.fake_devices import environment
from tests.train_toy import losses, run, small, toy, write_rows

MESHES = ("data:2,fsdp:2,tensor:2", "fsdp:8", "data:4,tensor:2")
TERMINATED = 143


def start(devices: int, *args) -> subprocess.Popen:
  command = [sys.executable, __file__, *map(str, args)]
  pipe = subprocess.PIPE
  return subprocess.Popen(command, env=environment(devices), stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, status: int = 0) -> str:
  try:
    out, _ = process.communicate(timeout=400)
  finally:
    process.kill()
  assert process.returncode == status, out
  return out


def all_parameters(data: str, **changes):
  return small(data, batch_rows=8, steps=6, save_every=2, lora=False, holdout=0.0, **changes)


def with_lora(data: str, **changes):
  return small(data, batch_rows=8, steps=16, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 48)


@pytest.fixture(scope="module")
def lora_of_one(data, tmp_path_factory):
  """The run with LoRA on one device: its losses and last evaluation."""
  folder = tmp_path_factory.mktemp("run") / "one"
  evaluation = run(with_lora(data), folder).evaluation
  return losses(folder), evaluation


def losses_of(folder, config):
  run(config, folder)
  return losses(folder)


@pytest.mark.devices
def test_meshes_of_eight_devices_give_the_losses_of_one_and_resume_each_other(data, lora_of_one, tmp_path):
  other = start(8, "meshes", data, tmp_path)
  expected = losses_of(tmp_path / "one", all_parameters(data))
  seen = json.loads(finish(other).splitlines()[-1])
  # Where there is an axis for it the vocabulary is split: the table, the logits and the marks' rows.
  assert seen["split"] == [["tensor" in mesh, False] for mesh in (*MESHES, MESHES[0])]
  assert seen["resumed"] == pytest.approx(expected, rel=1e-5, abs=1e-5)
  assert seen["lora"] == pytest.approx(lora_of_one[0][:4], rel=1e-5, abs=1e-5)


@pytest.mark.devices
def test_two_processes_train_the_run_of_one_also_where_one_was_told_to_end(data, lora_of_one, tmp_path):
  for status in (TERMINATED, 0):
    with socket.socket() as s:
      s.bind(("127.0.0.1", 0))
      port = s.getsockname()[1]
    told = 1 if status else -1
    processes = [start(2, "process", data, tmp_path / "two", port, n, told) for n in range(2)]
    for out in [finish(p, status) for p in processes]:
      assert "4 devices" in out
      if status:
        assert "terminated: saved after step " in out
    done = losses(tmp_path / "two")
    if status:
      assert 2 < len(done) < 16
    assert done == pytest.approx(lora_of_one[0][: len(done)], rel=1e-5, abs=1e-5)
  assert len(done) == 16
  ours = load_adapter(tmp_path / "two" / "adapter.npz")
  assert ours.metadata["evaluation"] == pytest.approx(lora_of_one[1], rel=1e-4)


def on_meshes(data: str, folder: Path) -> None:
  take, compile_step, split = Loader.next, loop.compile_step, []

  def see_the_table(run):
    table = (run.frozen or run.state["params"])["embed"].sharding.spec
    split.append([table[0] == "tensor", table[1] == "tensor"])
    return compile_step(run)

  def next_until(stop):
    def take_one(self):
      if (self.state.epoch, self.state.index) == stop:
        raise InterruptedError
      return take(self)

    return take_one

  loop.compile_step = see_the_table
  # Two steps on each mesh: an epoch has two batches.
  for mesh, stop in zip(MESHES, ((1, 0), (2, 0), None), strict=True):
    Loader.next = next_until(stop)  # type: ignore[method-assign]
    with contextlib.suppress(InterruptedError):
      run(all_parameters(data, mesh=mesh), folder / "resumed")
  # With LoRA the steps alone: what a run does beside them is tested above, and in several processes.
  setup.load_model = toy
  lora = setup.set_up(with_lora(data, mesh=MESHES[0]))
  step, lora_losses = see_the_table(lora), []
  for _ in range(4):
    lora.state, out = step(lora.frozen, lora.state, lora.program.place_batch(take(lora.loader)))
    lora_losses.append(float(out["loss"]))
  print(json.dumps({"split": split, "resumed": losses(folder / "resumed"), "lora": lora_losses}))


def in_a_process(data: str, folder: Path, port: int, process: int, told: int) -> None:
  import jax

  take = Loader.next

  def next_slowly(self):
    """From the third step on steps come slowly: processes take a second or two to agree where to stop."""
    at = 2 * self.state.epoch + self.state.index
    if at == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    if at >= 2:
      time.sleep(0.7)
    return take(self)

  if process == told:
    Loader.next = next_slowly  # type: ignore[method-assign]

  def go() -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    print(f"{jax.device_count()} devices")
    run(with_lora(data, mesh="data:2,tensor:2"), folder)

  sys.exit(run_main(go))


if __name__ == "__main__":
  kind, rows, workdir, *rest = sys.argv[1:]
  if kind == "meshes":
    on_meshes(rows, Path(workdir))
  else:
    in_a_process(rows, Path(workdir), *map(int, rest))
