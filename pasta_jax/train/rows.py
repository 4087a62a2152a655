"""Rows to train on: {"prompt" or "messages", "document"} from JSONL, read strictly, and the held-out part.

Other keys of a row are left alone. `document` is the answer in PASTA-LANG; its `tokens` attributes are
computed anew for the tokenizer in use, wherever it is laid out.
"""

import dataclasses
import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pasta_jax.lang.document import Document
from pasta_jax.lang.document import problems as document_problems

_SHOWN = 5  # problems that a message quotes


class RowsError(ValueError):
  """Rows that cannot be trained on, with the first problems, file and line."""


@dataclasses.dataclass(frozen=True)
class Row:
  """A prompt and its answer.

  Attributes:
    where: "file:line".
    prompt: text, or messages as {"role": ..., "content": ...}.
    document: the answer.
  """

  where: str
  prompt: str | tuple[dict[str, str], ...]
  document: Document

  @property
  def messages(self) -> list[dict[str, str]]:
    if isinstance(self.prompt, str):
      return [{"role": "user", "content": self.prompt}]
    return list(self.prompt)


@dataclasses.dataclass(frozen=True)
class Report:
  """What a file held.

  Attributes:
    path: the file.
    rows: good rows.
    split: those whose answer has chunks.
    repeated: rows left out since a row with the same prompt and document stood before them.
    problems: of bad rows, each with its line.
    too_long: where rows stand that do not fit a packed row.
    cut: where rows stand whose topics were cut, see packing.lay_out.
    slow: good rows that are not trained on, since their theoretical speedup is less than asked for.
  """

  path: str
  rows: int
  split: int
  repeated: int
  problems: tuple[str, ...]
  too_long: tuple[str, ...] = ()
  cut: tuple[str, ...] = ()
  slow: int = 0

  def __str__(self) -> str:
    text = f"{self.path}: {self.rows} rows, {self.split} with chunks"
    if self.repeated:
      text += f", {self.repeated} repeated rows left out"
    if self.slow:
      text += f", {self.slow} slower than asked for left out"
    if self.problems:
      more = len(self.problems) - _SHOWN
      text += f", {len(self.problems)} bad: " + "; ".join(self.problems[:_SHOWN])
      text += f"; and {more} more" if more > 0 else ""
    return text

  def check(self) -> None:
    """Raises RowsError where rows are bad."""
    if self.problems:
      raise RowsError(f"{self}; mend them, or leave them out with skip_bad_rows=True")


def read_rows(path: str, *, skip_bad: bool = False) -> tuple[list[Row], Report]:
  """Reads a JSONL file, `.gz` or not.

  Args:
    skip_bad: leave bad rows out, and count them, instead of raising.

  Raises:
    RowsError: bad rows, no rows, or a file that cannot be read.
  """
  rows: list[Row] = []
  problems: list[str] = []
  seen = set()
  repeated = 0
  for line, raw in enumerate(_lines(path), start=1):
    if not raw.strip():
      continue
    try:
      row = parse_row(f"{Path(path).name}:{line}", raw)
    except ValueError as e:
      problems.append(f"line {line}: {e}")
      continue
    key = (prompt_text(row.prompt), row.document)
    repeated += key in seen
    if key not in seen:
      rows.append(row)
    seen.add(key)
  split = sum(r.document.splits for r in rows)
  report = Report(str(path), len(rows), split, repeated, tuple(problems))
  if not skip_bad:
    report.check()
  if not rows:
    raise RowsError(f"{path}: holds no rows to train on")
  return rows, report


def _lines(path: str) -> list[bytes]:
  try:
    with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as f:
      return f.read().splitlines()
  except (OSError, EOFError) as e:
    raise RowsError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from None


def parse_row(where: str, raw: bytes) -> Row:
  """One line.

  Raises:
    ValueError: what is wrong with it.
  """
  try:
    values = json.loads(raw.decode("utf-8"))
  except UnicodeDecodeError as e:
    raise ValueError(f"not UTF-8 at byte {e.start}") from None
  except (ValueError, RecursionError) as e:
    raise ValueError(f"not JSON: {e}") from None
  if not isinstance(values, dict):
    raise ValueError("not a JSON object")
  return Row(where, _prompt(values), _document(values))


def _prompt(values: dict[str, Any]) -> str | tuple[dict[str, str], ...]:
  if ("prompt" in values) == ("messages" in values):
    raise ValueError('needs one of "prompt" and "messages"')
  if "prompt" in values:
    if not isinstance(values["prompt"], str) or not values["prompt"].strip():
      raise ValueError('"prompt" is not a text, or an empty one')
    return values["prompt"]
  messages = values["messages"]
  good = (
    isinstance(messages, list)
    and messages
    and all(
      isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
      for m in messages
    )
  )
  if not good:
    raise ValueError('"messages" is not a list of {"role": ..., "content": ...}')
  if messages[-1]["role"] == "assistant":
    raise ValueError('"messages" ends with the assistant\'s turn; that belongs into "document"')
  return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def _document(values: dict[str, Any]) -> Document:
  from pasta_jax.lang.parse import parse

  text = values.get("document")
  if not isinstance(text, str):
    raise ValueError('needs a "document", a text')
  document = parse(text)
  if found := document_problems(document):
    raise ValueError(f"document: {found[0]}")
  if not document.plain.strip():
    raise ValueError('"document" is empty')
  return document


def prompt_text(prompt: str | Sequence[dict[str, str]]) -> str:
  """A prompt as one text: what tells whether two are the same."""
  if isinstance(prompt, str):
    prompt = [{"role": "user", "content": prompt}]
  return "\n".join(f"{m['role']}: {' '.join(m['content'].split())}" for m in prompt).casefold()


def is_held_out(prompt: str | Sequence[dict[str, str]], fraction: float) -> bool:
  """Whether a prompt belongs to the held-out part.

  Decided by a hash of its text alone (case and white space do not count): the same in every file, run and
  order, so that a prompt is never trained on in one place and evaluated in another.
  """
  digest = hashlib.sha256(prompt_text(prompt).encode("utf-8", "replace")).digest()
  return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_rows(rows: Iterable[Row], fraction: float) -> tuple[list[Row], list[Row]]:
  """The rows to train on, and the held-out ones."""
  parts: tuple[list[Row], list[Row]] = ([], [])
  for row in rows:
    parts[is_held_out(row.prompt, fraction)].append(row)
  return parts
