"""How far a file of prompts has come."""

import sys
from typing import Any


class Progress:
  """A progress bar on stderr where `rich` is installed and stderr is a terminal; otherwise silent."""

  def __init__(self, total: int, done: int):
    self._bar: Any = None
    if sys.stderr.isatty():
      try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
      except ImportError:
        return
      self._bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} tokens/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
      )
      self._task = self._bar.add_task("rows", total=total, completed=done, rate=0.0)

  def __enter__(self):
    if self._bar is not None:
      self._bar.start()
    return self._step

  def _step(self, rate: float) -> None:
    if self._bar is not None:
      self._bar.update(self._task, advance=1, rate=rate)

  def __exit__(self, *_: Any) -> None:
    if self._bar is not None:
      self._bar.stop()
