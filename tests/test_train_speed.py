"""The table of eval/speed_train.py, and the loader beside a step."""

import json
import os
import subprocess
import sys
import time

from pasta_jax.model.presets import preset
from pasta_jax.train.flops import step_flops
from pasta_jax.train.packing import Layout, Loader, lay_out_all
from pasta_jax.train.rows import read_rows
from pasta_jax.train.setup import find_file
from tests.toy import ByteTokenizer

SCRIPT = """
import json, sys
from pasta_jax.eval.speed_train import table
for torch in (None, 200.0):
  figures = json.loads(sys.argv[1])
  figures |= {"torch_full_tokens_per_second": torch, "full_over_torch": torch and 300 / torch}
  print(table(figures))
"""


TURNS = """
from unittest import mock
from pasta_jax.eval import speed_train
now, order = [0.0], []
def step(name, fresh, warm):
  def run(batch):
    now[0] += fresh if not order or order[-1][0] != name else warm
    order.append((name, batch))
  return run
with mock.patch.object(speed_train.time, "perf_counter", lambda: now[0]):
  print(speed_train.in_turns({"a": step("a", 50, 2), "b": step("b", 70, 3)}, list(range(5)), 2))
print("".join(f"{name}{batch}" for name, batch in order))
"""


def test_steps_go_in_turns_whose_first_does_not_count():
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", TURNS], env=env, capture_output=True, text=True, timeout=100)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split("\n")[:2] == ["{'a': 2.0, 'b': 3.0}", "a4a0a2a4b4b0b2b4a3a1a3b3b1b3"]


def test_the_table_has_all_speeds_and_ratios():
  figures = {
    "rows": 4,
    "length": 256,
    "full": {"tokens_per_second": 300.0},
    "loader_seconds": 0.001,
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


class Words(ByteTokenizer):
  """An id per word: a model's tokenizer gives about as many, and which ones costs the loader the same."""

  def encode(self, text, *, bos=False):
    return [len(word) % 256 for word in text.split()]


def test_a_batch_takes_the_loader_far_less_than_a_twentieth_of_a_step():
  rows = read_rows(find_file("data/seed.jsonl"))[0][::3]
  examples, *_ = lay_out_all(rows, Words(marks=True), Layout(), 512)
  assert len(examples) == len(rows)
  seconds = []
  for seed in range(2):
    loader = Loader([(examples, 1.0)], batch=4, length=512, seed=seed)
    start = time.thread_time()  # not the clock: others may be at work
    count = loader.batches_of(0)
    for _ in range(count):
      loader.next()
    seconds.append((time.thread_time() - start) / count)
  assert count > 50
  # No core does 1e12 operations in a second, so that a step of SmolLM2 takes longer than this.
  step = 4 * 512 * step_flops(preset("smollm2-135m"), 0, 512) / 1e12
  assert 20 * min(seconds) < step
  # It takes a fifth of a millisecond; what loops over tokens in Python, or their squares, takes far more.
  assert min(seconds) < 0.01
