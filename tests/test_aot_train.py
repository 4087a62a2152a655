"""A training step compiles for TPUs that are not there, and says what it takes of a chip's memory."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

LIBTPU = importlib.util.find_spec("libtpu") is not None


def aot(*flags: str) -> subprocess.CompletedProcess:
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  command = [sys.executable, "-m", "pasta_jax.eval.aot_train", *flags]
  return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(not LIBTPU, reason="the TPU compiler is not installed: pip install 'pasta_jax[tpu]'")
def test_two_layers_of_gemma_2b_compile_for_four_chips(tmp_path):
  path = tmp_path / "figures.json"
  done = aot("--config=gemma-2b", "--topology=v5e:2x2", "--mesh=fsdp:4", "--layers=2", f"--json={path}")
  assert done.returncode == 0, done.stderr
  figures = json.loads(path.read_text())
  assert figures["chips"] == 4
  assert figures["fits"]
  # Float32 weights and AdamW's two moments, over four chips.
  assert figures["held_bytes"] > 3 * 4 * (256_000 * 2048 + 2 * 3 * 16384 * 2048) / 4
  assert "per chip" in done.stdout


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_line_says_what_to_install():
  done = aot()
  assert done.returncode == 1
  assert done.stderr.count("\n") == 1
  assert "pip install" in done.stderr
