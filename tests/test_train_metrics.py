"""A run's figures on a clock that the test holds: speed, share of peak flops, time left."""

import io
import json
import sys
import types

import pytest

from pasta_jax.model.sharding import make_mesh
from pasta_jax.train import metrics
from pasta_jax.train.metrics import METRICS, Progress, Recorder, read_metrics
from pasta_jax.train.step import Program
from tests.train_toy import CFG, small

STEPS = 40


class Clock:
  """Stands in for the module `time`."""

  def __init__(self):
    self.now = 1000.0

  def perf_counter(self) -> float:
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(metrics, "time", clock)
  # A token takes 5e6 operations, of 1e9 that the device does in a second.
  monkeypatch.setattr(metrics, "step_flops", lambda *_: 5e6)
  monkeypatch.setattr(metrics, "peak_flops", lambda *_: 1e9)
  return clock


def recorder(folder, done=0, **changes):
  config = small("rows.jsonl", steps=STEPS, **changes)
  return Recorder(folder, Program(config, CFG, 293, 257, STEPS, make_mesh("")), done, True)


def test_lines_have_speed_share_of_peak_and_time_left(clock, tmp_path, capsys):
  with recorder(tmp_path, log_every=2) as r:
    for step in (1, 2):
      clock.now += 5
      r.step(step, {"loss": 1.25}, 500.0)
    clock.now += 1000
    r.evaluation(2, {"loss": 2.0, "nothing": float("nan")})
    clock.now += 2
    r.step(3, {"loss": 1.0}, 300.0)
    clock.now += 2
    r.step(4, {"loss": 1.0}, 100.0)
  assert capsys.readouterr().err.splitlines() == [
    "step 2 of 40: loss 1.2500, 100 tokens/s, 50 % of peak flops, 0:03:10 left",
    "step 2, held out: loss 2.000, nothing nan",
    # The evaluation's time is in what is left, and not in the speed.
    "step 4 of 40: loss 1.0000, 100 tokens/s, 50 % of peak flops, 2:32:06 left",
  ]
  lines = read_metrics(tmp_path / METRICS)
  assert [line["step"] for line in lines] == [1, 2, 2, 4]
  for line in (lines[0], lines[1], lines[3]):
    assert line["tokens_per_second"] == pytest.approx(100)
    assert line["peak_flops_percent"] == pytest.approx(50)
  assert lines[2] == {"step": 2, "eval_loss": 2.0, "eval_nothing": None}


def test_the_speed_is_that_of_the_last_steps_and_a_resumed_run_counts_its_own(clock, tmp_path, capsys):
  with recorder(tmp_path, done=10, log_every=1) as r:
    for step in range(11, 31):
      clock.now += 10 if step == 11 else 1
      r.step(step, {"loss": 1.0}, 20.0)
  last = capsys.readouterr().err.splitlines()[-1]
  # Twenty steps in 29 seconds, ten steps to go; the slow first one is no longer in the speed.
  assert last == "step 30 of 40: loss 1.0000, 20 tokens/s, 10 % of peak flops, 0:00:14 left"
  assert read_metrics(tmp_path / METRICS)[-1]["tokens_per_second"] == pytest.approx(20)


def test_the_flops_are_those_of_the_run_over_all_its_devices(tmp_path, monkeypatch):
  asked = {}
  monkeypatch.setattr(metrics, "step_flops", lambda *args: asked.setdefault("step", args) and 5e6)
  monkeypatch.setattr(metrics, "peak_flops", lambda *args: asked.setdefault("peak", args) and 1e9)
  with recorder(tmp_path, lora=False, length=64) as r:
    table = r._program.trained
    assert asked["step"] == (CFG, sum(spec.size for spec in table.values()), 64)
    assert asked["peak"][1] == r._program.compute_dtype
    grid = types.SimpleNamespace(devices=types.SimpleNamespace(flat=[0] * 8), local_devices=[0])
    program = types.SimpleNamespace(
      config=r._program.config, trained=table, mesh=grid, model=CFG, compute_dtype="float32", steps=STEPS
    )
    with Recorder(tmp_path, program, 0, True) as of_eight:
      assert of_eight._peak == 8e9


def test_in_a_terminal_there_is_a_bar(clock, monkeypatch):
  pytest.importorskip("rich", reason="the bar needs the extra `train`")
  terminal = io.StringIO()
  terminal.isatty = lambda: True  # type: ignore[method-assign]
  monkeypatch.setattr(sys, "stderr", terminal)
  for name, value in (("COLUMNS", "120"), ("TERM", "xterm"), ("NO_COLOR", "1")):
    monkeypatch.setenv(name, value)
  progress = Progress(STEPS, 10, 1)
  for step in (11, 12):
    clock.now += 3
    progress.step(step, f"loss {step}.5")
  progress.say("step 12, held out: loss 2.000")
  progress.close()
  lines = terminal.getvalue().replace("\r", "\n").splitlines()
  bar = [line for line in lines if "12/40" in line][-1]
  assert "loss 12.5" in bar
  assert "0:01:24" in bar  # 28 steps of 3 seconds
  assert any("step 12, held out: loss 2.000" in line for line in lines)


def test_lines_that_no_json_could_hold_are_null(tmp_path):
  file = metrics.MetricsFile(tmp_path / METRICS, 0, True)
  file.write({"step": 1, "loss": float("inf")})
  file.close()
  assert json.loads((tmp_path / METRICS).read_text()) == {"step": 1, "loss": None}
