"""`python -m pasta_jax.train.main` as a user runs it: flags, their errors, the project's configurations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pasta_jax.train.config import Config, config_dict

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "stage1_smollm2_135m_first.py")


def main(*flags: str) -> subprocess.CompletedProcess:
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "pasta_jax.train.main", *flags]
  return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--config.learning_rte=1"], 'Did you mean "learning_rate"'),
    (["--config.learning_rate=fast"], "could not convert string to float"),
    (["--config.schedule=cosin"], "did you mean 'cosine'?"),
    (["--config.data=('none.jsonl',)"], "none.jsonl: no such file; config.data or config.adapter names it"),
    (
      ["--config.adapter=none_{kind}.npz"],
      "none_pasta.npz: no such file; config.data or config.adapter names",
    ),
    (["extra"], "unexpected argument 'extra'"),
    (["--processes=2", "--process=0"], "--processes and --process without --coordinator"),
    (["--process=0"], "--process without --coordinator"),
    (["--coordinator=localhost:1", "--processes=2", "--process=2"], "they count from 0"),
  ],
)
def test_mistakes_end_with_one_line(tmp_path, flags, message):
  done = main(f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", "--compilation_cache=", *flags)
  assert done.returncode == 1
  assert message in done.stderr
  assert done.stderr.count("\n") == 1
  assert not (tmp_path / "run").exists()


def test_the_projects_configurations_are_good():
  files = sorted((ROOT / "configs").glob("*.py"))
  assert files
  for file in files:
    space: dict = {}
    exec(compile(file.read_text(), file, "exec"), space)
    config = Config.of(space["get_config"]().to_dict())
    assert Config.of(config_dict(config).to_dict()) == config
    assert Config.of(config.as_dict()) == config


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"learning_rte": 1}, "did you mean 'learning_rate'?"),
    ({"lora_targets": ("q", "dwn")}, "did you mean 'down'?"),
    ({"class_weights": {"marks": 2.0}}, "did you mean 'mark'?"),
    ({"mesh": "fsd:2"}, "did you mean 'fsdp'?"),
    ({"data_weights": (1.0, 2.0)}, "one per file"),
    ({"batch_rows": 4, "accumulate": 3}, "a divisor of batch_rows 4"),
    ({"learning_rate": -1.0}, "config.learning_rate must be above 0"),
    ({"holdout": 1.0}, "config.holdout"),
    ({"epochs": 0.0}, "config.epochs"),
    ({"length": 0}, "config.length must be at least 1"),
    ({"positions": "pred"}, "did you mean 'pred10'?"),
    ({"data_text_weights": (-1.0,)}, "config.data_text_weights must be >= 0"),
    ({"data_min_speedup": (1.0, 2.0)}, "config.data_min_speedup must be 1 numbers, one per file"),
    ({"promise_bias": (0.0,)}, "config.promise_bias must be two numbers"),
    ({"promise_bias": -1.0, "lora": False}, "config.promise_bias must be (0, 0) where lora is False"),
  ],
)
def test_values_that_do_not_fit_are_refused_with_their_name(changes, message):
  with pytest.raises(ValueError, match=r"config|LoRA|mesh") as e:
    Config.of(changes)
  assert message in str(e.value)
