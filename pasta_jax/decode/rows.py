"""Prompts from a JSONL file, answers to another: bad rows become rows with an error, the rest goes on."""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.journal import Journal
from pasta_jax.decode.requests import Request, RequestError, Result


@dataclasses.dataclass(frozen=True)
class InputRow:
  """A line of the input.

  Attributes:
    line: its number, from 1.
    values: its keys, all carried to the output; empty where the line is no JSON object.
    error: what is wrong with it, or None.
  """

  line: int
  values: dict[str, Any]
  error: str | None


def read_rows(path: str) -> list[InputRow]:
  """Every line that is not blank.

  Raises:
    OSError: the file cannot be read.
  """
  rows = []
  with open(path, "rb") as f:
    for n, raw in enumerate(f, start=1):
      if raw.strip():
        rows.append(_parse(n, raw))
  return rows


def _parse(line: int, raw: bytes) -> InputRow:
  try:
    values = json.loads(raw.decode("utf-8"))
  except UnicodeDecodeError as e:
    return InputRow(line, {}, f"line {line}: not UTF-8 at byte {e.start}")
  except (ValueError, RecursionError) as e:
    return InputRow(line, {}, f"line {line}: not JSON: {e}")
  if not isinstance(values, dict):
    return InputRow(line, {}, f"line {line}: not a JSON object")
  return InputRow(line, values, _problem(line, values))


def _problem(line: int, values: dict[str, Any]) -> str | None:
  if ("prompt" in values) == ("messages" in values):
    return f'line {line}: needs one of "prompt" and "messages"'
  if "prompt" in values:
    return None if isinstance(values["prompt"], str) else f'line {line}: "prompt" is not a string'
  messages = values["messages"]
  good = (
    isinstance(messages, list)
    and messages
    and all(
      isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
      for m in messages
    )
  )
  return None if good else f'line {line}: "messages" is not a list of {{"role": ..., "content": ...}}'


def file_digest(path: str) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def output_row(values: dict[str, Any], result: Result) -> dict[str, Any]:
  """An input row's keys with the answer's; of one that may have marks, also its document and figures."""
  row = dict(values)
  row.update(
    text=result.text,
    finish_reason=result.finish_reason,
    tokens=result.tokens,
    seconds=round(result.seconds, 4),
  )
  if result.parallel is not None:
    row.update(result.parallel.row())
  if result.logprobs is not None:
    row["logprobs"] = [round(x, 5) for x in result.logprobs]
  return row


def answer_rows(
  engine: Engine,
  rows: list[InputRow],
  journal: Journal,
  make: Callable[[InputRow], Request],
  progress: Callable[[int], None] = lambda tokens: None,
) -> int:
  """Answers every row that the journal lacks.

  Args:
    make: the request of a row.
    progress: called after each row with the number of tokens it took.

  Returns:
    The number of rows in the whole output that have an error.
  """

  def fail(row: InputRow, message: str) -> None:
    print(message, file=sys.stderr)
    journal.add(row.line, {**row.values, "error": message})
    progress(0)

  def requests() -> Iterator[Request]:
    for row in rows:
      if row.line in journal.rows:
        continue
      if row.error:
        fail(row, row.error)
        continue
      try:
        request = make(row)
        engine.encode(request)
      except RequestError as e:
        fail(row, f"line {row.line}: {e}")
        continue
      yield dataclasses.replace(request, tag=row)

  for event in engine.serve(requests()):
    if event.result is not None:
      row = event.result.request.tag
      journal.add(row.line, output_row(row.values, event.result))
      progress(event.result.tokens)
  return journal.errors


def check_input(path: str) -> list[InputRow]:
  """`read_rows`, refusing a file without a single row.

  Raises:
    ValueError: nothing to do.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(f"--prompts_file {path}: no such file")
  rows = read_rows(path)
  if not rows:
    raise ValueError(f"--prompts_file {path} has no rows")
  return rows
