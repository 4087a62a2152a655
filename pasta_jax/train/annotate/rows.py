"""Rows with a prompt and an answer, from JSONL in the shapes that data sets have."""

import dataclasses
import gzip
import json
import pathlib
from typing import Any

from pasta_jax.lang.document import Document
from pasta_jax.lang.parse import parse
from pasta_jax.train.annotate.normal import check_encodable, normalise

# Keys that are looked for where none is named, in this order; of a document the reading text is taken.
PROMPT_KEYS = ("prompt", "instruction", "question", "query", "input")
ANSWER_KEYS = ("answer", "response", "output", "completion", "document")
CONTEXT_KEYS = ("context", "input")


@dataclasses.dataclass(frozen=True)
class Keys:
  """Names of a row's keys; "" looks for the usual ones."""

  prompt: str = ""
  answer: str = ""
  context: str = ""


@dataclasses.dataclass(frozen=True)
class PairRow:
  """A line of the input.

  Attributes:
    line: its number, from 1.
    prompt: the prompt as text, for the annotator; of a conversation, its turns.
    answer: normalised.
    carried: what the output row has beside the document: "prompt" or "messages", and the keys of the input
      that are neither prompt, context nor answer.
    error: what is wrong with it, or None.
  """

  line: int
  prompt: str = ""
  answer: str = ""
  carried: dict[str, Any] = dataclasses.field(default_factory=dict)
  error: str | None = None


def read_pairs(path: str, keys: Keys | None = None) -> list[PairRow]:
  """Every line that is not blank; `.gz` files are unpacked.

  Raises:
    ValueError: there is no such file, or no row in it.
    OSError: the file cannot be read.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(f"--input {path}: no such file")
  rows = []
  opened = gzip.open if path.endswith(".gz") else open
  try:
    with opened(path, "rb") as f:
      for n, raw in enumerate(f, start=1):
        if raw.strip():
          rows.append(_row(n, raw, keys or Keys()))
  except (gzip.BadGzipFile, EOFError) as e:
    raise ValueError(f"--input {path}: not a whole gzip file: {e}") from None
  if not rows:
    raise ValueError(f"--input {path} has no rows")
  return rows


def read_documents(path: str) -> list[tuple[str, Document]]:
  """Prompts and documents of rows that have both.

  Raises:
    ValueError: a row is bad, with its line.
    OSError: the file cannot be read.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(f"--input {path}: no such file")
  rows = []
  with open(path, encoding="utf-8") as f:
    for n, line in enumerate(f, start=1):
      try:
        values = json.loads(line)
        rows.append((_string(values, "prompt"), parse(_string(values, "document"))))
      except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: line {n}: {e}") from None
  return rows


def _row(line: int, raw: bytes, keys: Keys) -> PairRow:
  try:
    values = json.loads(raw.decode("utf-8"))
  except UnicodeDecodeError as e:
    return PairRow(line, error=f"line {line}: not UTF-8 at byte {e.start}")
  except (ValueError, RecursionError) as e:
    return PairRow(line, error=f"line {line}: not JSON: {e}")
  if not isinstance(values, dict):
    return PairRow(line, error=f"line {line}: not a JSON object")
  try:
    return _conversation(line, values) if "messages" in values else _pair(line, values, keys)
  except ValueError as e:
    return PairRow(line, error=f"line {line}: {e}")


def _pair(line: int, values: dict[str, Any], keys: Keys) -> PairRow:
  prompt_key = _key(values, "prompt", keys.prompt, PROMPT_KEYS)
  answer_key = _key(values, "answer", keys.answer, tuple(k for k in ANSWER_KEYS if k != prompt_key))
  prompt, answer = _string(values, prompt_key), _string(values, answer_key)
  used = {prompt_key, answer_key}
  for key in [keys.context] if keys.context else CONTEXT_KEYS:
    if key in values and key not in used:
      used.add(key)
      if context := _string(values, key).strip():
        prompt = f"{prompt}\n\n{context}"
  if not prompt.strip():
    raise ValueError("the prompt is empty")
  check_encodable(prompt, "prompt")
  carried = {"prompt": prompt, **{k: v for k, v in values.items() if k not in used}}
  if answer_key == "document":
    answer = parse(answer).plain
  return PairRow(line, prompt, normalise(answer), carried)


def _conversation(line: int, values: dict[str, Any]) -> PairRow:
  messages = values["messages"]
  good = isinstance(messages, list) and all(
    isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
    for m in messages
  )
  if not good or len(messages) < 2 or messages[-1]["role"] != "assistant":
    raise ValueError(
      '"messages" is not a list of {"role": ..., "content": ...} that ends with the assistant\'s'
    )
  *before, last = messages
  turns = [m["content"] if len(before) == 1 else f"{m['role']}: {m['content']}" for m in before]
  prompt = "\n\n".join(turns)
  check_encodable(prompt, "prompt")
  carried = {"messages": before, **{k: v for k, v in values.items() if k != "messages"}}
  return PairRow(line, prompt, normalise(last["content"]), carried)


def _key(values: dict[str, Any], what: str, named: str, usual: tuple[str, ...]) -> str:
  if named and named not in values:
    raise ValueError(f'has no "{named}"')
  found = named or next((k for k in usual if k in values), None)
  if found is None:
    raise ValueError(f"no {what}; one of {', '.join(usual)}, or name it with --{what}_key")
  return found


def _string(values: dict[str, Any], key: str) -> str:
  if not isinstance(values[key], str):
    raise ValueError(f'"{key}" is not a string')
  return values[key]
