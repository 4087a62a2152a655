"""Marks as they are spelt in a text: where each stands, and which `<async>` belongs to which `</async>`.

Two readings of the same text. The strict one knows a single spelling of each mark. The lenient one, for
repair, also takes what people and models write instead: `<Sync />`, `<promise tokens=20 topic='by train'>`.
Both look at each character a bounded number of times.
"""

import bisect
import dataclasses
import html
import re
from collections.abc import Sequence

from pasta_jax.lang.document import MARK_NAME, unescape_attribute
from pasta_jax.lang.grammar import Kind
from pasta_jax.lang.marks import ASYNC, END_ASYNC, SYNC

# The kind of `<async>`, which no thread draws: the table has no name for it.
OPEN = Kind(0)


@dataclasses.dataclass(frozen=True, slots=True)
class Tag:
  """A mark in a text.

  Attributes:
    start, end: its span.
    kind: Kind.PROMISE, OPEN, Kind.CLOSE, Kind.SYNC; Kind.OTHER: a mark's name, but no mark (`</sync>`).
    topic, tokens: what a promise says, entities replaced; None where it does not.
    flaw: where the spelling goes wrong, and what should be there; None for the spelling of strict documents.
    empty: `<async/>`, a chunk without a body.
    cut: the end of the text cuts the mark off; its kind is Kind.OTHER.
  """

  start: int
  end: int
  kind: Kind
  topic: str | None = None
  tokens: str | None = None
  flaw: tuple[int, str] | None = None
  empty: bool = False
  cut: bool = False


class Lines:
  """Lines and columns of a text's offsets, both from 1; only a line feed ends a line."""

  def __init__(self, text: str):
    self._text = text
    self._starts: list[int] | None = None

  def at(self, offset: int) -> tuple[int, int]:
    if self._starts is None:
      self._starts = [0, *(m.end() for m in re.finditer("\n", self._text))]
    line = bisect.bisect_right(self._starts, offset)
    return line, offset - self._starts[line - 1] + 1


def shown(text: str, offset: int) -> str:
  """What stands at an offset, short, on one line."""
  if offset >= len(text):
    return "the end of the text"
  piece = text[offset : offset + 24]
  return ascii(piece) if not piece.isprintable() else repr(piece)


# --- Strict.

_STRICT = re.compile(rf"<(?={MARK_NAME})")
_EXTENT = re.compile(r"<[^<>]*+>|</?[a-z]++")
_TOPIC = re.compile(r'[^"<]*+')
_DIGITS = re.compile(r"[0-9]*+")
_PROMISE_HEAD, _PROMISE_MIDDLE, _PROMISE_TAIL = '<promise topic="', '" tokens="', '"/>'
_PLAIN = ((SYNC, Kind.SYNC), (END_ASYNC, Kind.CLOSE), (ASYNC, OPEN))


def strict_tags(text: str) -> list[Tag]:
  """Every mark of a text, misspelt ones with their flaw."""
  tags = []
  at = 0
  while m := _STRICT.search(text, at):
    tags.append(_strict_tag(text, m.start()))
    at = tags[-1].end
  return tags


def _strict_tag(text: str, start: int) -> Tag:
  for spelling, kind in _PLAIN:
    if text.startswith(spelling, start):
      return Tag(start, start + len(spelling), kind)
  if text.startswith("<promise", start):
    return _strict_promise(text, start)
  extent = _EXTENT.match(text, start)
  assert extent is not None  # a mark's name stands here
  for spelling, kind in _PLAIN:
    name = spelling.rstrip("/>")
    if text.startswith(name, start):
      rest = spelling.removeprefix(name)
      good = start + len(name)
      return Tag(start, extent.end(), kind, flaw=(good, f"{rest} to end {spelling}"))
  return Tag(start, extent.end(), Kind.OTHER, flaw=(start, "text or a mark (this is none)"))


def _strict_promise(text: str, start: int) -> Tag:
  at = start
  values: list[str] = []
  for literal, value in ((_PROMISE_HEAD, _TOPIC), (_PROMISE_MIDDLE, _DIGITS), (_PROMISE_TAIL, None)):
    if not text.startswith(literal, at):
      common = next(i for i in range(len(literal)) if text[at + i : at + i + 1] != literal[i])
      if literal[: common + 1][-2:].isalpha():
        common = literal.rfind(" ", 0, common) + 1  # another word stands there
      flaw = (at + common, _wanted(text, at + common, literal, inside=len(values) == 1))
      extent = _EXTENT.match(text, start)
      assert extent is not None
      return Tag(start, extent.end(), Kind.PROMISE, flaw=flaw)
    at += len(literal)
    if value is not None:
      m = value.match(text, at)
      assert m is not None  # it matches nothing, too
      values.append(m[0])
      at = m.end()
  return Tag(start, at, Kind.PROMISE, unescape_attribute(values[0]), values[1])


def _wanted(text: str, at: int, literal: str, inside: bool) -> str:
  if inside and text.startswith("<", at):
    return "&lt; for < in a topic"
  return f'{literal.removeprefix("<promise").strip()} of <promise topic="..." tokens="..."/>'


# --- Lenient.

# Whitespace is possessive everywhere: giving it back would make long runs quadratic.
_LENIENT = re.compile(r"<(\s*+)(/\s*+)?+((?ai:promise|async|sync))(?![\w-])")
_TAG_CHARS = 500  # of a misspelt mark, behind its name
_VALUE_CHARS = 200
_NAME = r"\s*+(?ai:(topic|tokens))\s*+[=:]\s*+"
_NEXT = r"\s(?ai:topic|tokens)\s*+="
_DOUBLE, _SINGLE = '"“”„«»', "'‘’‚`"


def _quoted(quotes: str) -> str:
  """A value between quotes, which may hold quotes that do not end it (driver's)."""
  stop = rf"[{quotes}]\s*+(?:/?\s*+>|\Z|,|(?ai:topic|tokens)\s*+=)|{_NEXT}"
  return rf"[{quotes}]((?:(?!{stop})[^<\n]){{0,{_VALUE_CHARS}}}+)(?={stop})[{quotes}]?"


_UNQUOTED = rf"[{_DOUBLE}{_SINGLE}]?([^\s<>/{_DOUBLE}{_SINGLE}]*+)[{_DOUBLE}{_SINGLE}]?"
_ATTRIBUTE = re.compile(rf"{_NAME}(?:{_quoted(_DOUBLE)}|{_quoted(_SINGLE)}|{_UNQUOTED})")
_END = re.compile(r"\s*+/?\s*+>")
_JUNK = re.compile(r"\s*+[^\s<>]++")
_SPACE = re.compile(r"\s*+")


def lenient_tags(text: str) -> tuple[list[Tag], list[int]]:
  """Every mark of a text, in any spelling that repair knows.

  Returns:
    The marks, and the offsets of what begins like a mark and is not complete enough to be one: text.
  """
  tags: list[Tag] = []
  rest: list[int] = []
  opens = list(_LENIENT.finditer(text))
  for m, after in zip(opens, [*(m.start() for m in opens[1:]), len(text)]):
    if (tag := _lenient_tag(text, m, after)) is not None:
      tags.append(tag)
    elif _STRICT.match(text, m.start()):
      rest.append(m.start())
  return tags, rest


def _lenient_tag(text: str, m: re.Match[str], after: int) -> Tag | None:
  start, closing, name = m.start(), m[2] is not None, m[3].lower()
  if not (m[1] or closing) and text.startswith(_PROMISE_HEAD, start):
    strict = _strict_promise(text, start)
    if strict.flaw is None:
      return strict
  values: dict[str, str] = {}
  at, limit = m.end(), min(after, m.end() + _TAG_CHARS)
  end = None
  while end is None:
    if e := _END.match(text, at, limit):
      end = e.end()
    elif a := _ATTRIBUTE.match(text, at, limit):
      value = next(v for v in a.groups()[1:] if v is not None)
      values.setdefault(a[1].lower(), html.unescape(value))
      at = a.end()
    elif j := _JUNK.match(text, at, limit):
      if "\n" in j[0]:
        break
      at = j.end()
    else:
      break
  if end is None:
    space = _SPACE.match(text, m.end() + text.startswith("/", m.end()))
    assert space is not None
    if values and not closing:
      end = at  # a promise whose end was forgotten
    elif space.end() == len(text) and not m[1]:
      return Tag(start, len(text), Kind.OTHER, flaw=(start, "a complete mark"), cut=True)
    else:
      return None
  if m[1] and name == "promise" and not values:
    return None
  whole = text[start:end]
  flaw = None if whole in (SYNC, ASYNC, END_ASYNC) else (start, "a mark of a document")
  kind = {"promise": Kind.PROMISE, "async": OPEN, "sync": Kind.SYNC}[name]
  if closing:
    kind = Kind.CLOSE if kind == OPEN else Kind.OTHER
  empty = kind == OPEN and whole[:-1].rstrip().endswith("/")
  return Tag(start, end, kind, values.get("topic"), values.get("tokens"), flaw, empty)


# --- Pairs.


def closing_of(tags: Sequence[Tag]) -> dict[int, int]:
  """For each `<async>` that has one, its `</async>`, innermost first; indices into `tags`."""
  pairs: dict[int, int] = {}
  stack: list[int] = []
  for n, tag in enumerate(tags):
    if tag.kind == OPEN and not tag.empty:
      stack.append(n)
    elif tag.kind == Kind.CLOSE and stack:
      pairs[stack.pop()] = n
  return pairs
