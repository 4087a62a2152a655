"""A run's training step compiles for TPUs that are not there, and says what it takes of a chip's memory."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_devices import environment

LIBTPU = importlib.util.find_spec("libtpu") is not None
ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT / 'configs' / 'stage1_gemma_7b_v5e.py'}"

# The lowered step of what `--config` gives, on fake CPU devices.
LOWER = """
import json, sys
import jax
from absl import app
from pasta_jax.eval import aot_train
from pasta_jax.model.memory import device_bytes
from pasta_jax.train.config import Config
from pasta_jax.train.flags import parse

def main(_):
  program, lowered = aot_train.lower_step(Config.of(aot_train._CONFIG.value.to_dict()), jax.devices())
  held = device_bytes((program.abstract_state(), program.abstract_batch()))
  print(json.dumps({
    "mesh": dict(program.mesh.shape),
    "held_bytes": held / len(jax.devices()),  # fake devices share the memory of one
    "results": len(jax.tree.leaves(lowered.out_info)),
    "config": program.config.as_dict(),
  }))

app.run(main, flags_parser=parse)
"""


def aot(*flags: str) -> subprocess.CompletedProcess:
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  command = [sys.executable, "-m", "pasta_jax.eval.aot_train", *flags]
  return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.devices
def test_the_step_of_gemma_7b_is_that_of_its_configuration_and_holds_what_the_page_says(tmp_path):
  command = [sys.executable, "-c", LOWER, CONFIG, "--config.seed=7"]
  done = subprocess.run(command, env=environment(16), capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  seen = json.loads(done.stdout)
  space: dict = {}
  exec(Path(CONFIG.partition("=")[2]).read_text(), space)
  expected = json.loads(json.dumps(space["get_config"]().to_dict()))
  assert seen["config"] == expected | {"seed": 7}
  assert seen["mesh"] == {"data": 1, "fsdp": 16, "tensor": 1}
  assert seen["results"] > 0
  row = re.search(r"^\| gemma-7b, `--topology=v5e:4x4` \| (\S+) GB", (ROOT / "docs/tpu.md").read_text(), re.M)
  assert f"{seen['held_bytes'] / 1e9:.2f}" == row[1]


@pytest.mark.skipif(not LIBTPU, reason="the TPU compiler is not installed: pip install 'pasta_jax[tpu]'")
def test_two_layers_of_gemma_2b_compile_for_four_chips(tmp_path):
  path = tmp_path / "figures.json"
  done = aot(
    CONFIG,
    "--config.model=gemma-2b",
    "--config.mesh=fsdp:4",
    "--config.batch_rows=4",
    "--topology=v5e:2x2",
    "--layers=2",
    f"--json={path}",
  )
  assert done.returncode == 0, done.stderr
  figures = json.loads(path.read_text())
  assert figures["chips"] == 4
  assert figures["fits"]
  assert (figures["trained"], figures["computed_in"]) == ("all parameters", "bfloat16")
  # Float32 weights and AdamW's two moments, over four chips.
  assert figures["held_bytes"] > 3 * 4 * (256_000 * 2048 + 2 * 3 * 16384 * 2048) / 4
  assert "per chip" in done.stdout


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_line_says_what_to_install():
  done = aot(CONFIG)
  assert done.returncode == 1
  assert done.stderr.count("\n") == 1
  assert "pip install" in done.stderr
