"""`eval.speed`: mistakes cost one line before anything is measured, and random weights are measured too."""

import json
import subprocess
import sys

from tests.command_lines import environment, outcomes

# In a process of its own: a program's flags are defined once.
_MEASURE = """
import functools, json
from absl import flags
from pasta_jax.eval import bandwidth, speed, speed_widths
from pasta_jax.model import weights
from tests.toy import TOY

weights.preset = lambda name: TOY.replace(vocab_size=400, num_layers=1, name=name)
bandwidth.read_bandwidth = lambda: 1e9
speed.measure_startup = lambda *_: {"first_token_s": 2.0, "peak_rss_mb": 3.0, "peak_rss_run_mb": 4.0}
measure = functools.partial(speed_widths.measure_widths, widths=(1, 2), attended=64, rounds=1)
speed_widths.measure_widths = measure
flags.FLAGS(["speed", "--nopeers", "--max_len=192", "--lanes=2", "--new_tokens=4", "--repeats=1"])
figures = speed.measure("random:toy")
print(speed.table(figures))
print(json.dumps(figures))
"""


def test_a_mistake_is_one_line_before_anything_is_measured(tmp_path):
  (tmp_path / "none.jsonl").write_text('{"prompt": "a", "document": "No chunks."}\n')
  none = tmp_path / "none"
  lines = {
    (f"--json={none / 'x.json'}",): f"--json {none / 'x.json'}: {none} is no folder; make it first",
    (f"--documents={none}",): f"{none}: cannot be read: No such file",
    (f"--documents={tmp_path / 'none.jsonl'}",): "has no document with chunks",
    (
      "--model=smollm2-135n",
      "--parts=sequential",
    ): "--model smollm2-135n: no preset named 'smollm2-135n'",
    ("--model=smollm2-135n", "--parts=widths"): "no preset named 'smollm2-135n'; did you",
  }
  for (status, stderr), wanted in zip(outcomes("pasta_jax.eval.speed", lines), lines.values(), strict=True):
    assert status == 1
    assert wanted in stderr
    assert len(stderr.strip().splitlines()) == 1, stderr


def test_random_weights_are_measured_but_for_what_needs_text():
  done = subprocess.run(
    [sys.executable, "-c", _MEASURE],
    env=environment(), capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "reads no text: documents and throughput are left out" in done.stderr
  *table, last = done.stdout.splitlines()
  figures = json.loads(last)
  assert set(figures) >= {"sequential", "width_ms", "length_ms", "overhead_percent"}
  assert not {"documents", "throughput"} & set(figures)
  s = figures["sequential"]
  wanted = {"ms_per_step", "floor_ms", "first_token_s", "prefill_ms", "hf_ms", "llama_cpp_ms", "peak_rss_mb"}
  assert wanted <= set(s)
  assert s["hf_ms"] is s["llama_cpp_ms"] is None
  assert (s["first_token_s"], figures["prompt_tokens"], figures["new_tokens"]) == (2.0, 64, 4)
  assert 0 < s["ms_per_step_min"] <= s["ms_per_step"]
  assert set(figures["width_ms"]) == {"1", "2"}
  assert any("llama.cpp" in line and "not installed" in line for line in table)
  assert any("width  2" in line for line in table)
