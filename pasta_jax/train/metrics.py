"""Where a run's figures go: a JSONL file that survives interruption, TensorBoard, a progress bar."""

import collections
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from pasta_jax.train.flops import peak_flops, step_flops

METRICS = "metrics.jsonl"
_WINDOW = 20  # steps that the speed is averaged over


class MetricsFile:
  """Lines of metrics, one JSON object each, with `step` in every one.

  A resumed run goes on from a checkpoint, so that lines of later steps are dropped when it opens the file. So
  is an evaluation after `from_step` that the checkpoint lacks (not `evaluated`): it is made again.

  Raises:
    OSError: with one line, when the file cannot be written.
  """

  def __init__(self, path: str | os.PathLike[str], from_step: int, evaluated: bool):
    self.path = Path(path)

    def stays(line: dict[str, Any]) -> bool:
      step = line.get("step", 0)
      made_again = step == from_step and not evaluated and any(k.startswith("eval_") for k in line)
      return step <= from_step and not made_again

    with self._errors():
      if self.path.exists():
        kept = [json.dumps(v) for v in read_metrics(self.path) if stays(v)]
        beside = self.path.with_name(f".{self.path.name}.writing")
        try:
          beside.write_text("".join(f"{line}\n" for line in kept))
          os.replace(beside, self.path)
        finally:
          beside.unlink(missing_ok=True)
      self._file = self.path.open("a")

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    try:
      yield
    except OSError as e:
      what = f"{self.path}: cannot be written: {e.strerror or e}"
      raise OSError(f"{what}; the same command goes on from the last checkpoint") from None

  def write(self, values: dict[str, Any]) -> None:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    with self._errors():
      self._file.write(json.dumps(clean) + "\n")
      self._file.flush()

  def close(self) -> None:
    with self._errors():
      self._file.close()


class Recorder:
  """Takes a run's figures: metrics.jsonl, TensorBoard's event files where tensorboardX is installed, stderr.

  Only the first of several processes writes.
  """

  def __init__(self, folder: Path, program: Any, done: int, evaluated: bool):
    """Args:
    folder: of the run.
    program: step.Program.
    done: steps that were done before.
    evaluated: whether the checkpoint after them has an evaluation.
    """
    config = program.config
    self._program, self._every, self._writes = program, config.log_every, jax.process_index() == 0
    trained = sum(s.size for s in program.trained.values())
    devices = list(program.mesh.devices.flat)
    self._flops = step_flops(program.model, trained, config.length)
    self._peak = peak_flops(program.mesh.local_devices[0], program.compute_dtype) * len(devices)
    self._clock: collections.deque[tuple[float, float]] = collections.deque(maxlen=_WINDOW)
    self._start_clock()
    self._file = MetricsFile(folder / METRICS, done, evaluated) if self._writes else None
    self._board = _tensorboard(folder / "tensorboard", done) if self._writes else None
    self._progress = Progress(program.steps, done, config.log_every, self._writes)

  def __enter__(self) -> "Recorder":
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    self._progress.close()
    for sink in (self._file, self._board):
      if sink is None:
        continue
      # What ends a run is told, rather than that its last lines did not fit on the same full disk either.
      with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
        sink.close()

  def step(self, step: int, line: dict[str, float], tokens: float) -> None:
    """A step's metrics and how many tokens it was fed."""
    self._clock.append((time.perf_counter(), tokens))
    seconds = self._clock[-1][0] - self._clock[0][0]
    rate = sum(t for _, t in list(self._clock)[1:]) / max(seconds, 1e-9)
    used = 100 * rate * self._flops / self._peak
    text = f"loss {line['loss']:.4f}, {rate:.0f} tokens/s, {used:.0f} % of peak flops"
    self._progress.step(step, text)
    if step % self._every == 0 or step in (1, self._program.steps):
      learning_rate = float(self._program.schedule(step - 1))
      speed = {"tokens_per_second": rate, "peak_flops_percent": used}
      self._write(step, line | {"learning_rate": learning_rate} | speed)

  def evaluation(self, step: int, metrics: dict[str, float]) -> None:
    self._write(step, {f"eval_{name}": value for name, value in metrics.items()})
    shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    self._progress.say(f"step {step}, held out: {shown}")
    self._start_clock()

  def _start_clock(self) -> None:
    self._clock.clear()
    self._clock.append((time.perf_counter(), 0.0))

  def _write(self, step: int, values: dict[str, float]) -> None:
    if self._file is not None:
      self._file.write({"step": step} | values)
    if self._board is not None:
      for name, value in values.items():
        self._board.add_scalar(name.replace("eval_", "eval/", 1), value, step)


def _tensorboard(folder: Path, done: int) -> Any:
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    return None
  return SummaryWriter(str(folder), purge_step=done + 1, write_to_disk=True)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The lines of a metrics file; one that was cut short is left out."""
  lines = []
  for line in Path(path).read_text().splitlines():
    with contextlib.suppress(ValueError):
      lines.append(json.loads(line))
  return lines


class Progress:
  """A bar on stderr where `rich` is installed and stderr is a terminal; otherwise a line now and then."""

  def __init__(self, total: int, done: int, every: int, shown: bool = True):
    self._shown = shown
    self._every, self._total, self._began, self._first = every, total, time.perf_counter(), done
    self._bar: Any = None
    if shown and sys.stderr.isatty():
      try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
      except ImportError:
        return
      self._bar = Bar(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        get_time=time.perf_counter,
      )
      self._task = self._bar.add_task("steps", total=total, completed=done, text="")
      self._bar.start()

  def step(self, step: int, text: str) -> None:
    """After a step; `text` has its figures."""
    if self._bar is not None:
      self._bar.update(self._task, completed=step, text=text)
    elif self._shown and (step % self._every == 0 or step == self._total):
      left = (time.perf_counter() - self._began) / max(step - self._first, 1) * (self._total - step)
      print(f"step {step} of {self._total}: {text}, {_clock(left)} left", file=sys.stderr, flush=True)

  def say(self, text: str) -> None:
    if self._bar is not None:
      self._bar.console.print(text, highlight=False)
    elif self._shown:
      print(text, file=sys.stderr, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.stop()


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}"
