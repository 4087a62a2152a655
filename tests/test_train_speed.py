"""The table of eval/speed_train.py."""

import json
import os
import subprocess
import sys

SCRIPT = """
import json, sys
from pasta_jax.eval.speed_train import table
for torch in (None, 200.0):
  figures = json.loads(sys.argv[1])
  figures |= {"torch_full_tokens_per_second": torch, "full_over_torch": torch and 300 / torch}
  print(table(figures))
"""


def test_the_table_has_all_speeds_and_ratios():
  figures = {
    "rows": 4,
    "length": 256,
    "full": {"tokens_per_second": 300.0, "loader_seconds": 0.001},
    "lora": {"tokens_per_second": 450.0},
    "lora_over_full": 1.5,
    "step_over_loader": 3413.3,
  }
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
  # In a process of its own: a program's flags are defined once.
  command = [sys.executable, "-c", SCRIPT, json.dumps(figures)]
  done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
  assert done.returncode == 0, done.stderr
  without, with_torch = done.stdout.split("| step |")[1:]
  for text in (without, with_torch):
    assert "| all parameters | 300 |" in text
    assert "| LoRA | 450 |" in text
    assert "| loader alone | 1024000 |" in text
    assert "| LoRA over all parameters | 1.50 |" in text
    assert "| loader over a step with all parameters | 3413.30 |" in text
  assert "| torch, all parameters | 200 |" in with_torch
  assert "| all parameters over torch | 1.50 |" in with_torch
  assert "| torch, all parameters | not measured |" in without
  assert "over torch" not in without
