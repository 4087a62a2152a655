"""Documents from files: annotated text, the JSON form, or JSONL rows that hold annotated text."""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from pasta_jax.lang.document import Document
from pasta_jax.lang.parse import parse
from pasta_jax.lang.render import from_json

# Where a row keeps its document: data sets, and what decode.main writes.
ROW_KEYS = ("document", "annotated")


def read_documents(
  path: str, read: Callable[[str], Document] = parse, row: int | None = None
) -> Iterator[tuple[str, Document]]:
  """The documents of a file, each with its place: the path, or path and row.

  Args:
    path: `.jsonl` has rows with one of ROW_KEYS, `.json` a document as render.to_json gives it, anything
      else is annotated text; "-" is annotated text from standard input.
    read: from annotated text to a document.
    row: of JSONL, the line to read alone, from 1; None: all.

  Raises:
    ValueError: the file cannot be read, or holds no document; the message begins with the place.
  """
  if not path.endswith(".jsonl"):
    place = "standard input" if path == "-" else path
    yield place, _at(place, lambda: _whole(path, read))
    return
  last = 0
  with _opened(path) as f:
    for last, raw in enumerate(f, start=1):
      if raw.strip() and row in (None, last):
        place = f"{path} row {last}"
        yield place, _at(place, lambda raw=raw: _row(raw, read))  # type: ignore[misc]
      if row == last:
        if not raw.strip():
          raise ValueError(f"{path}: row {row} is blank")
        return
  if row is not None:
    raise ValueError(f"{path}: no row {row}; the file has {last}")


def _at(place: str, read: Callable[[], Document]) -> Document:
  try:
    return read()
  except UnicodeDecodeError as e:
    raise ValueError(f"{place}: not UTF-8 at byte {e.start}") from None
  except RecursionError:
    raise ValueError(f"{place}: JSON that is nested too deeply") from None
  except json.JSONDecodeError as e:
    raise ValueError(f"{place}: not JSON: {e}") from None
  except ValueError as e:
    raise ValueError(f"{place}: {str(e).removeprefix(f'{place}: ')}") from None


def _whole(path: str, read: Callable[[str], Document]) -> Document:
  if path == "-":
    return read(sys.stdin.buffer.read().decode("utf-8"))
  with _opened(path) as f:
    text = f.read().decode("utf-8")
  return from_json(json.loads(text)) if path.endswith(".json") else read(text)


def _opened(path: str) -> BinaryIO:
  try:
    return open(path, "rb")
  except OSError as e:
    raise ValueError(f"{path}: {e.strerror}") from None


def _row(raw: bytes, read: Callable[[str], Document]) -> Document:
  values: Any = json.loads(raw.decode("utf-8"))
  if not isinstance(values, dict):
    raise ValueError("not a JSON object")
  for key in ROW_KEYS:
    if isinstance(values.get(key), str):
      return read(values[key])
  raise ValueError(f"no string under {' or '.join(map(repr, ROW_KEYS))}")
