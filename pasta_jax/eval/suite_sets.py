"""The prompts of an evaluation: the held-out part of a training file, and files of prompts alone."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from pasta_jax.lang.document import Document
from pasta_jax.train.rows import is_held_out, read_rows
from pasta_jax.train.setup import find_file

HELD_OUT = "held_out"

Prompt = str | tuple[dict[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Item:
  """A prompt.

  Attributes:
    id: what it is called in files and on pages.
    prompt: text, or messages as {"role": ..., "content": ...}.
    document: the reference answer, if there is one.
  """

  id: str
  prompt: Prompt
  document: Document | None = None

  @property
  def text(self) -> str:
    """The prompt for people."""
    if isinstance(self.prompt, str):
      return self.prompt
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in self.prompt)


@dataclasses.dataclass(frozen=True)
class PromptSet:
  """Prompts whose figures are reported together.

  Attributes:
    name: "held_out", or the file's name without its ending.
    path: the file.
    items: in the order of the file.
  """

  name: str
  path: str
  items: tuple[Item, ...]

  @property
  def has_references(self) -> bool:
    return all(item.document is not None for item in self.items)


def held_out_set(path: str, fraction: float, count: int = 0) -> PromptSet:
  """The held-out rows of a file of {"prompt" or "messages", "document"}.

  Args:
    fraction: that training holds out, see train.rows.is_held_out.
    count: so many at most, the same sample each time; 0: all.

  Raises:
    ValueError: bad rows, or none that is held out.
  """
  rows = [row for row in read_rows(find_file(path))[0] if is_held_out(row.prompt, fraction)]
  if not rows:
    raise ValueError(f"{path}: no prompt falls into the held-out {fraction:g}; raise --holdout")
  items = [Item(row.where.rpartition(":")[2], row.prompt, row.document) for row in rows]
  return PromptSet(HELD_OUT, path, _sample(items, count))


def prompt_set(path: str, count: int = 0) -> PromptSet:
  """A file of {"prompt"}, {"messages"} or {"turns"}, of which the first is asked.

  A row is called by its "question_id" or "id", else by its line.

  Args:
    count: as in `held_out_set`.

  Raises:
    ValueError: a row of another form, with its line, or no rows.
  """
  try:
    lines = Path(path).read_bytes().splitlines()
  except OSError as e:
    raise ValueError(f"{path}: cannot be read: {e.strerror or e}") from None
  items = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      values = json.loads(line.decode("utf-8"))
      name = values.get("question_id", values.get("id", number)) if isinstance(values, dict) else number
      items.append(Item(str(name), _prompt(values)))
    except (ValueError, RecursionError) as e:
      raise ValueError(f"{path} line {number}: {e}") from None
  if not items:
    raise ValueError(f"{path}: holds no prompts")
  stem = Path(path).stem
  return PromptSet("prompts" if stem == HELD_OUT else stem, path, _sample(items, count))


def _prompt(values: Any) -> Prompt:
  keys = [k for k in ("prompt", "messages", "turns") if isinstance(values, dict) and k in values]
  if len(keys) != 1:
    raise ValueError('needs one of "prompt", "messages" and "turns"')
  value = values[keys[0]]
  if keys == ["messages"]:
    good = isinstance(value, list) and all(
      isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
      for m in value
    )
    if not good or not value:
      raise ValueError('"messages" is not a list of {"role": ..., "content": ...}')
    return tuple({"role": m["role"], "content": m["content"]} for m in value)
  text = value[0] if keys == ["turns"] and isinstance(value, list) and value else value
  if not isinstance(text, str) or not text.strip():
    raise ValueError(f'"{keys[0]}" holds no text')
  return text


def _sample(items: list[Item], count: int) -> tuple[Item, ...]:
  if not count or count >= len(items):
    return tuple(items)
  kept = sorted(random.Random(0).sample(range(len(items)), count))
  return tuple(items[i] for i in kept)
