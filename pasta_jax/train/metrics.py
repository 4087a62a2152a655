"""Where a run's figures go: a JSONL file that survives interruption, and a line or bar for people."""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any


class MetricsFile:
  """Lines of metrics, one JSON object each, with `step` in every one.

  A resumed run goes on from a checkpoint, so that lines of later steps are dropped when it opens the file.
  """

  def __init__(self, path: str | os.PathLike[str], from_step: int):
    self.path = Path(path)
    kept = []
    if self.path.exists():
      for line in self.path.read_text().splitlines():
        try:
          values = json.loads(line)
        except ValueError:
          continue  # cut short when the run was killed
        if values.get("step", 0) <= from_step:
          kept.append(line)
      beside = self.path.with_name(f".{self.path.name}.writing")
      beside.write_text("".join(f"{line}\n" for line in kept))
      os.replace(beside, self.path)
    self._file = self.path.open("a")

  def write(self, values: dict[str, Any]) -> None:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    self._file.write(json.dumps(clean) + "\n")
    self._file.flush()

  def close(self) -> None:
    self._file.close()


class Progress:
  """A bar on stderr where `rich` is installed and stderr is a terminal; otherwise a line now and then."""

  def __init__(self, total: int, done: int, every: int):
    self._every, self._total, self._began, self._first = every, total, time.perf_counter(), done
    self._bar: Any = None
    if sys.stderr.isatty():
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
      )
      self._task = self._bar.add_task("steps", total=total, completed=done, text="")
      self._bar.start()

  def step(self, step: int, text: str) -> None:
    """After a step; `text` has its figures."""
    if self._bar is not None:
      self._bar.update(self._task, completed=step, text=text)
    elif step % self._every == 0 or step == self._total:
      left = (time.perf_counter() - self._began) / max(step - self._first, 1) * (self._total - step)
      print(f"step {step} of {self._total}: {text}, {_clock(left)} left", file=sys.stderr, flush=True)

  def say(self, text: str) -> None:
    if self._bar is not None:
      self._bar.console.print(text, highlight=False)
    else:
      print(text, file=sys.stderr, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.stop()


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}"
