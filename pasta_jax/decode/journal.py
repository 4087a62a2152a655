"""Rows of output that survive an interruption: a journal beside the output file.

Finished rows are appended to `OUT.partial` in the order in which they finish. When all are there, the output
is written in input order beside its place and renamed, and the journal goes. So `OUT` is whole or absent.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any, TextIO


class OutputError(ValueError):
  """An output file that cannot be used, with one line that says why and what to do."""


@dataclasses.dataclass
class Journal:
  """Finished rows by their number.

  Attributes:
    path: the output file.
    rows: finished rows; grows with `add`.
  """

  path: pathlib.Path
  rows: dict[int, dict[str, Any]]
  _file: TextIO

  @property
  def partial(self) -> pathlib.Path:
    return partial_path(self.path)

  @property
  def errors(self) -> int:
    """Rows that have an error."""
    return sum("error" in row for row in self.rows.values())

  def add(self, number: int, row: dict[str, Any]) -> None:
    """Keeps a finished row."""
    self._file.write(json_line({"row": number, "output": row}))
    self._file.flush()
    self.rows[number] = row

  def finish(self) -> None:
    """Writes the output in order and removes the journal."""
    beside = self.path.with_name(self.path.name + ".writing")
    try:
      with open(beside, "w", encoding="utf-8") as f:
        for number in sorted(self.rows):
          f.write(json_line(self.rows[number]))
        f.flush()
        os.fsync(f.fileno())
      os.replace(beside, self.path)
    finally:
      beside.unlink(missing_ok=True)
    self._file.close()
    self.partial.unlink(missing_ok=True)

  def close(self) -> None:
    """Leaves the rows to a later run; without any nothing is left, as of a mistake at the start."""
    # Every row has been flushed, or has failed to be: its bytes would only fail again here.
    with contextlib.suppress(OSError):
      self._file.close()
      if not self.rows:
        self.partial.unlink(missing_ok=True)


def json_line(value: Any) -> str:
  """`value` as a line of JSON that has bytes in UTF-8: as legible as it can be, escaped where it cannot."""
  text = json.dumps(value, ensure_ascii=False)
  try:
    text.encode()
  except UnicodeEncodeError:  # half of a surrogate pair, which JSON can name and UTF-8 cannot
    text = json.dumps(value)
  return text + "\n"


def partial_path(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + ".partial")


def open_journal(path: str | os.PathLike, run: dict[str, Any], resume: bool) -> Journal:
  """Starts a journal, or goes on with one.

  Args:
    path: the output file.
    run: what the rows depend on; a journal of another run is not continued.
    resume: go on with the journal that is there, if any.

  Raises:
    OutputError: the output is there already, or a journal is and `resume` is false, or it is another run's.
  """
  out = pathlib.Path(path)
  partial = partial_path(out)
  if out.exists():
    raise OutputError(f"{out} is there already; remove it or name another file")
  if partial.exists() and not resume:
    raise OutputError(f"{partial} holds rows of an interrupted run; add --resume, or remove it to start anew")
  rows: dict[int, dict[str, Any]] = {}
  if partial.exists() and (kept := _read(partial, run, rows)):
    # A line that an interruption cut short goes before anything is written behind it.
    os.truncate(partial, kept)
    return Journal(out, rows, open(partial, "a", encoding="utf-8"))
  file = open(partial, "w", encoding="utf-8")  # noqa: SIM115 - the journal closes it
  file.write(json_line({"run": run}))
  file.flush()
  return Journal(out, rows, file)


def _read(partial: pathlib.Path, run: dict[str, Any], rows: dict[int, dict[str, Any]]) -> int:
  """Fills `rows`; returns the bytes of whole lines."""
  kept = 0
  with open(partial, "rb") as f:
    for n, line in enumerate(f):
      if not line.endswith(b"\n"):
        break
      try:
        entry = json.loads(line)
        if n:
          rows[int(entry["row"])] = dict(entry["output"])
        else:
          changed = [k for k in run if entry["run"].get(k) != run[k]]
      except (ValueError, KeyError, TypeError, AttributeError):
        raise OutputError(
          f"{partial}: line {n + 1} is not a journal line; remove the file to start anew"
        ) from None
      if not n and changed:
        raise OutputError(
          f"{partial} is of a run with another {', '.join(changed)};"
          " use the same flags, or remove it to start anew"
        )
      kept += len(line)
  return kept
