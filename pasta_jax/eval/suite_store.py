"""The folder of an evaluation: one JSONL file per model and set, each whole or a journal to go on with.

run.json                       what all rows depend on
answers.pasta.held_out.jsonl   done
answers.twin.held_out.jsonl.partial   interrupted; see decode/journal.py
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pasta_jax.decode.journal import OutputError, open_journal, partial_path
from pasta_jax.decode.progress import Progress

Row = dict[str, Any]
# From the numbers of rows that are not there yet to those rows, in any order.
Compute = Callable[[Sequence[int]], Iterable[tuple[int, Row]]]

_RUN = "run.json"


class Store:
  """Rows of an evaluation.

  Args:
    folder: made if it is not there.
    run: what the rows depend on; JSON values.
    resume: go on with a run that is there.

  Raises:
    OutputError: the folder holds a run, and `resume` is false or it is another one.
  """

  def __init__(self, folder: str | os.PathLike[str], run: dict[str, Any], resume: bool):
    self.folder, self._run = Path(folder), json.loads(json.dumps(run))
    header = self.folder / _RUN
    if not header.exists():
      return
    if not resume:
      raise OutputError(f"{self.folder} holds an evaluation; add --resume to go on, or name another folder")
    try:
      before = json.loads(header.read_text(encoding="utf-8"))
      changed = [name for name in self._run if before.get(name) != self._run[name]]
    except (ValueError, AttributeError):
      raise OutputError(f"{header} is damaged; name another folder") from None
    if changed:
      raise OutputError(
        f"{self.folder} holds an evaluation with another {', '.join(changed)}; use the same flags,"
        " or name another folder"
      )

  def path(self, name: str) -> Path:
    return self.folder / f"{name}.jsonl"

  def done(self, name: str) -> bool:
    """Whether all rows of a file are there."""
    return self.path(name).exists()

  def rows(self, name: str, count: int, compute: Compute) -> list[Row]:
    """The rows 0 to `count` - 1 of a file; those that are not there yet are computed and kept one by one.

    A progress bar counts what the rows have under "tokens".

    Raises:
      OutputError: what is there cannot be read, or not written.
    """
    path = self.path(name)
    if path.exists():
      return self._read(path, count)
    self._write_header()
    journal = open_journal(path, self._run, resume=True)
    try:
      missing = [n for n in range(count) if n not in journal.rows]
      tokens, started = 0, time.perf_counter()
      with Progress(count, len(journal.rows)) as bar:
        for number, row in compute(missing) if missing else ():
          journal.add(number, row)
          tokens += row.get("tokens", 0)
          bar(tokens / (time.perf_counter() - started))
    except KeyboardInterrupt as e:
      e.args = (f"{len(journal.rows)} of {count} rows are kept in {journal.partial}; go on with --resume",)
      raise
    except OSError as e:
      raise OSError(f"{e}; finished rows are kept in {journal.partial}, go on with --resume") from e
    finally:
      journal.close()
      self._drop_header_of_nothing()
    journal.finish()
    return [journal.rows[n] for n in range(count)]

  def _read(self, path: Path, count: int) -> list[Row]:
    try:
      rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    except ValueError:
      rows = []
    if len(rows) != count or not all(isinstance(r, dict) for r in rows):
      raise OutputError(f"{path}: is not {count} whole rows; remove it to make it anew")
    return rows

  def _write_header(self) -> None:
    self.folder.mkdir(parents=True, exist_ok=True)
    if not (self.folder / _RUN).exists():
      write_whole(self.folder / _RUN, json.dumps(self._run, indent=1) + "\n")

  def _drop_header_of_nothing(self) -> None:
    """A run that failed before its first row leaves nothing behind."""
    if not any(self.folder.glob("*.jsonl")) and not any(self.folder.glob(partial_path(Path("*.jsonl")).name)):
      (self.folder / _RUN).unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
  """Writes a file beside its place and renames it; an older one is replaced."""
  path = Path(path)
  beside = path.with_name(path.name + ".writing")
  try:
    with open(beside, "w", encoding="utf-8", errors="replace") as f:
      f.write(text)
      f.flush()
      os.fsync(f.fileno())
    os.replace(beside, path)
  finally:
    beside.unlink(missing_ok=True)
