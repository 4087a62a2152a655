"""Training on meshes: eight devices give the loss of one, two processes too; any mesh resumes."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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


def settings(data: str, **changes):
  return small(data, batch_rows=8, steps=4, save_every=2, eval_every=2, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("one")
  data = write_rows(folder / "rows.jsonl", 48)
  return data, {lora: losses_of(folder / str(lora), settings(data, lora=lora)) for lora in (True, False)}


def losses_of(folder, config):
  run(config, folder)
  return losses(folder)


@pytest.mark.devices
def test_three_meshes_of_eight_devices_give_the_losses_of_one_device_and_resume_each_other(whole, tmp_path):
  data, expected = whole
  seen = json.loads(finish(start(8, "meshes", data, tmp_path)).splitlines()[-1])
  for mesh in MESHES:
    for lora in (True, False):
      assert seen[f"{mesh} {lora}"] == pytest.approx(expected[lora], rel=1e-5, abs=1e-5), (mesh, lora)
  assert seen["moved"] == pytest.approx(expected[False], rel=1e-5, abs=1e-5)


@pytest.mark.devices
def test_two_processes_train_the_run_of_one(whole, tmp_path):
  data, expected = whole
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  processes = [start(2, "process", data, tmp_path / "run", port, n) for n in range(2)]
  for out in [finish(p) for p in processes]:
    assert "4 devices" in out
  assert losses(tmp_path / "run") == pytest.approx(expected[True], rel=1e-5, abs=1e-5)
  assert (tmp_path / "run" / "adapter.npz").exists()


def on_meshes(data: str, folder: Path) -> None:
  seen = {}
  for mesh in MESHES:
    for lora in (True, False):
      config = settings(data, mesh=mesh, lora=lora)
      seen[f"{mesh} {lora}"] = losses_of(folder / f"{mesh}-{lora}".replace(":", ""), config)
  # Two steps on one mesh, the rest on another.
  config = settings(data, mesh=MESHES[0], lora=False)
  take = Loader.next

  def stop(self):
    if self.state.index == 2 or self.state.epoch:
      raise InterruptedError
    return take(self)

  Loader.next = stop  # type: ignore[method-assign]
  with contextlib.suppress(InterruptedError):
    run(config, folder / "moved")
  Loader.next = take  # type: ignore[method-assign]
  seen["moved"] = losses_of(folder / "moved", dataclasses.replace(config, mesh=MESHES[1]))
  print(json.dumps(seen))


def in_a_process(data: str, folder: Path, port: int, process: int) -> None:
  import jax

  jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
  print(f"{jax.device_count()} devices")
  run(settings(data, mesh="data:2,tensor:2"), folder)


if __name__ == "__main__":
  kind, data, folder, *rest = sys.argv[1:]
  if kind == "meshes":
    on_meshes(data, Path(folder))
  else:
    in_a_process(data, Path(folder), *map(int, rest))
