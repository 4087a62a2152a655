"""Training on meshes: eight devices give the loss of one, two processes too; any mesh resumes."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pasta_jax.model.adapter import load_adapter
from pasta_jax.train.packing import Loader
from tests.train_toy import losses, run, small, write_rows

MESHES = ("data:2,fsdp:2,tensor:2", "fsdp:8", "data:4,tensor:2")


def environment(devices: int) -> dict[str, str]:
  flag = f"--xla_force_host_platform_device_count={devices}"
  return os.environ | {
    "XLA_FLAGS": flag,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(sys.path),
  }


def start(devices: int, *args) -> subprocess.Popen:
  command = [sys.executable, __file__, *map(str, args)]
  pipe = subprocess.PIPE
  return subprocess.Popen(command, env=environment(devices), stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
  try:
    out, _ = process.communicate(timeout=400)
  finally:
    process.kill()
  assert process.returncode == 0, out
  return out


def all_parameters(data: str, **changes):
  return small(data, batch_rows=8, steps=4, save_every=2, lora=False, holdout=0.0, **changes)


def with_lora(data: str, **changes):
  return small(data, batch_rows=8, steps=4, eval_every=2, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 48)


def losses_of(folder, config):
  run(config, folder)
  return losses(folder)


@pytest.mark.devices
def test_three_meshes_of_eight_devices_give_the_losses_of_one_and_resume_each_other(data, tmp_path):
  other = start(8, "meshes", data, tmp_path)
  expected = losses_of(tmp_path / "one", all_parameters(data))
  seen = json.loads(finish(other).splitlines()[-1])
  assert seen["resumed"] == pytest.approx(expected, rel=1e-5, abs=1e-5)
  assert seen["whole"] == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.devices
def test_two_processes_train_the_run_of_one(data, tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  processes = [start(2, "process", data, tmp_path / "two", port, n) for n in range(2)]
  expected = run(with_lora(data), tmp_path / "one").evaluation
  for out in [finish(p) for p in processes]:
    assert "4 devices" in out
  assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5, abs=1e-5)
  ours = load_adapter(tmp_path / "two" / "adapter.npz")
  assert ours.metadata["evaluation"] == pytest.approx(expected, rel=1e-4)


def on_meshes(data: str, folder: Path) -> None:
  take = Loader.next

  def stop_after_two(self):
    if (self.state.epoch, self.state.index) == (1, 0):  # an epoch has two batches
      raise InterruptedError
    return take(self)

  # Two steps on one mesh and two on another; all on a third.
  Loader.next = stop_after_two  # type: ignore[method-assign]
  with contextlib.suppress(InterruptedError):
    run(all_parameters(data, mesh=MESHES[0]), folder / "resumed")
  Loader.next = take  # type: ignore[method-assign]
  assert len(losses(folder / "resumed")) == 2
  seen = {
    "resumed": losses_of(folder / "resumed", all_parameters(data, mesh=MESHES[1])),
    "whole": losses_of(folder / "whole", all_parameters(data, mesh=MESHES[2])),
  }
  print(json.dumps(seen))


def in_a_process(data: str, folder: Path, port: int, process: int) -> None:
  import jax

  jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
  print(f"{jax.device_count()} devices")
  run(with_lora(data, mesh="data:2,tensor:2"), folder)


if __name__ == "__main__":
  kind, rows, workdir, *rest = sys.argv[1:]
  if kind == "meshes":
    on_meshes(rows, Path(workdir))
  else:
    in_a_process(rows, Path(workdir), *map(int, rest))
