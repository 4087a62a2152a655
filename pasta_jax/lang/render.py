"""The forms of a document: reading text, annotated text, and JSON, which is read back here.

{"parts": [
  {"text": "Two ways to travel:\\n\\n- "},
  {"topic": "by train", "tokens": 20, "body": "**Train.** Slower, but ..."},
  {"sync": true}
]}
"""

import difflib
import json
from collections.abc import Callable
from typing import Any

from pasta_jax.lang.document import Chunk, Document, Part, Sync, Text, problems

_FORMS = ("text",), ("topic", "tokens", "body"), ("sync",)
_KEYS = tuple(k for form in _FORMS for k in form)


def to_json(document: Document) -> dict[str, Any]:
  """The document as values that `json.dumps` takes."""
  return {"parts": [_part_to_json(p) for p in document.parts]}


def _part_to_json(part: Part) -> dict[str, Any]:
  if isinstance(part, Text):
    return {"text": part.text}
  if isinstance(part, Sync):
    return {"sync": True}
  return {"topic": part.topic, "tokens": part.tokens, "body": part.body}


def from_json(value: Any) -> Document:
  """The document that `to_json` gave; neighbouring texts are joined.

  Raises:
    ValueError: the value is none, or the document has problems; one line says where.
  """
  if not isinstance(value, dict) or set(value) != {"parts"} or not isinstance(value["parts"], list):
    raise ValueError('a document is {"parts": [...]}')
  document = Document.of([_part_from_json(n, p) for n, p in enumerate(value["parts"])])
  if found := problems(document):
    raise ValueError(found[0])
  return document


def _part_from_json(number: int, value: Any) -> Part:
  where = f"part {number}"
  if not isinstance(value, dict):
    raise ValueError(f"{where}: not an object")
  for key in value:
    if key not in _KEYS:
      near = difflib.get_close_matches(str(key), _KEYS, 1)
      raise ValueError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
  keys = next((f for f in _FORMS if set(f) == set(value)), None)
  if keys is None:
    raise ValueError(f"{where}: has {sorted(value)}; needs text, or topic, tokens and body, or sync")
  for key in keys:
    kind: type = {"tokens": int, "sync": bool}.get(key, str)
    if type(value[key]) is not kind:
      raise ValueError(f"{where}: {key} is {value[key]!r}, not a {_TYPES[kind]}")
  if keys == ("sync",):
    if not value["sync"]:
      raise ValueError(f"{where}: sync is false; leave the part out")
    return Sync()
  return Text(value["text"]) if keys == ("text",) else Chunk(**value)


_TYPES = {int: "whole number", bool: "truth value", str: "string"}

RENDERERS: dict[str, Callable[[Document], str]] = {
  "plain": lambda d: d.plain,
  "annotated": lambda d: d.annotated,
  "json": lambda d: json.dumps(to_json(d), ensure_ascii=False),
}


def render(document: Document, form: str) -> str:
  """A document as text in one of the forms: "plain", "annotated", "json".

  Raises:
    ValueError: an unknown form.
  """
  if form not in RENDERERS:
    raise ValueError(f"form must be one of {', '.join(RENDERERS)}, got {form!r}")
  return RENDERERS[form](document)
