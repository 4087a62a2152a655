"""Repair: any text becomes a document, by the rules below, and each use of a rule is reported.

A text that the strict parser accepts is returned as it is. Otherwise marks are looked for in lenient spelling
and these rules are applied; what is left is text, and is kept as it is:

RULES

The reading text changes in three places only: marks vanish, whitespace between a promise and its `<async>`
vanishes, and a promise that stands apart moves to its chunk, which shows nothing. Repair of what repair
returned changes nothing.
"""

import collections
import dataclasses
import re
from collections.abc import Callable

from pasta_jax.lang.document import (
  TOPIC_WORDS,
  Chunk,
  Document,
  Part,
  Sync,
  Text,
  unescape,
)
from pasta_jax.lang.grammar import Kind
from pasta_jax.lang.marks import rounded
from pasta_jax.lang.parse import ParseError, parse
from pasta_jax.lang.tags import OPEN, Lines, Tag, closing_of, lenient_tags

RULES = {
  "spelling": "a mark in other case, quotes, spaces or attributes, or without its end, is read as the mark",
  "no mark": "what begins like a mark and does not go on like one is text, and is escaped",
  "cut mark": "a mark that the end of the text cuts off is removed",
  "stray mark": "a closing mark that closes nothing is removed: </async>, </promise>, </sync>",
  "missing async": "a promise that text and </async> follow gets an <async>",
  "missing promise": "a chunk without promise gets one, of the attributes of its <async> or made of its body",
  "gap": "whitespace between a promise and its <async> is removed",
  "promise apart": "a promise that other text parts from its chunk moves to it, the oldest first",
  "promise without chunk": "a promise that no chunk keeps is removed",
  "unclosed chunk": "a chunk without </async> ends before the next mark, its bullet and the space before",
  "nested chunk": "marks inside a chunk are removed, their text stays",
  "empty chunk": "a chunk without a body is removed, its promise too",
  "sync without chunk": "a sync is removed where no chunk was opened since the last one",
  "topic": "a topic is cut to three words of printable characters; without one, the body's first words",
  "tokens": "a length is rounded up to tens, within 10 to 320; without one, the body is counted",
}

__doc__ = (__doc__ or "").replace("RULES\n", "\n".join(f"    {k:<22} {v}" for k, v in RULES.items()) + "\n")


@dataclasses.dataclass(frozen=True)
class Repair:
  """One use of a rule.

  Attributes:
    offset: index of the character where it was needed.
    line, column: the same, both from 1.
    rule: a key of RULES.
    done: what was done, in words.
  """

  offset: int
  line: int
  column: int
  rule: str
  done: str

  def __str__(self) -> str:
    return f"line {self.line}, column {self.column}: {self.rule}: {self.done}"


def estimated_tokens(text: str) -> int:
  """Tokens of a text, where no tokenizer is at hand: one for four bytes of UTF-8."""
  return -(-len(text.encode("utf-8", errors="replace")) // 4)


def repair(text: str, count: Callable[[str], int] = estimated_tokens) -> tuple[Document, tuple[Repair, ...]]:
  """The document that a text means, whatever it says, and what was done to it, in order.

  Args:
    count: tokens of a body, for promises that do not tell.
  """
  try:
    return parse(text), ()
  except ParseError:
    return _Mender(text, count).mend()


class _Mender:
  def __init__(self, text: str, count: Callable[[str], int]):
    self.text, self.count = text, count
    self.lines = Lines(text)
    self.repairs: list[Repair] = []
    self.parts: list[Part] = []
    self.opened = False  # a chunk, since the last sync
    self.chunks = 0
    self.pending: collections.OrderedDict[int, Tag] = collections.OrderedDict()  # promises by tag number

  def done(self, offset: int, rule: str, what: str) -> None:
    self.repairs.append(Repair(offset, *self.lines.at(offset), rule, what))

  def shown(self, tag: Tag) -> str:
    piece = self.text[tag.start : tag.end]
    piece = piece if len(piece) <= 60 else piece[:57] + "..."
    return piece if piece.isprintable() else ascii(piece)[1:-1]

  def removed(self, tag: Tag, rule: str) -> None:
    self.done(tag.start, rule, f"removed {self.shown(tag)}")

  def mend(self) -> tuple[Document, tuple[Repair, ...]]:
    self.tags, rest = lenient_tags(self.text)
    for offset in rest:
      self.done(offset, "no mark", "escaped its <")
    self.pairs = closing_of(self.tags)
    for tag in self.tags:
      if tag.flaw is not None and tag.kind != Kind.OTHER:
        self.done(tag.start, "spelling", f"read {self.shown(tag)} as {_NAMES[tag.kind]}")
    number, at = 0, 0
    while number < len(self.tags):
      self.add_text(at, self.tags[number].start)
      number, at = self.take(number)
    self.add_text(at, len(self.text))
    for tag in self.pending.values():
      self.removed(tag, "promise without chunk")
    self.repairs.sort(key=lambda r: r.offset)
    return Document.of(self.parts), tuple(self.repairs)

  def add_text(self, start: int, end: int) -> None:
    if start < end:
      self.parts.append(Text(unescape(self.text[start:end])))

  def take(self, number: int) -> tuple[int, int]:
    """Deals with a mark outside of chunks; returns the number of the next one, and where its text begins."""
    tag = self.tags[number]
    if tag.kind == Kind.PROMISE:
      return self.take_promise(number)
    if tag.kind == OPEN:
      return self.take_chunk(number)
    if tag.kind == Kind.SYNC and self.opened:
      self.parts.append(Sync())
      self.opened = False
    elif tag.kind == Kind.SYNC:
      self.removed(tag, "sync without chunk")
    else:
      self.removed_other(tag)
    return number + 1, tag.end

  def removed_other(self, tag: Tag) -> None:
    self.removed(tag, "cut mark" if tag.cut else "stray mark")

  def take_promise(self, number: int) -> tuple[int, int]:
    tag = self.tags[number]
    following = self.tags[number + 1] if number + 1 < len(self.tags) else None
    if following is not None and following.kind == Kind.CLOSE:
      self.done(tag.end, "missing async", "inserted <async>")
      self.add_chunk(tag, unescape(self.text[tag.end : following.start]), tag.end)
      return number + 2, following.end
    self.pending[number] = tag
    if following is not None and following.kind == OPEN:
      gap = self.text[tag.end : following.start]
      if gap and not gap.strip():
        self.done(tag.end, "gap", "removed the whitespace")
        return number + 1, following.start
    return number + 1, tag.end

  def take_chunk(self, number: int) -> tuple[int, int]:
    tag = self.tags[number]
    body, after, at = self.body_of(number)
    before = self.pending.get(number - 1)
    beside = before is not None and not self.text[before.end : tag.start].strip()
    promise = self.pending.pop(number - 1) if beside else None
    if not body:
      self.removed(tag, "empty chunk")
      if promise is not None:
        self.removed(promise, "empty chunk")
    elif promise is not None:
      self.add_chunk(promise, body, tag.start)
    elif tag.topic is None and tag.tokens is None and self.pending:
      _, promise = self.pending.popitem(last=False)
      self.done(promise.start, "promise apart", f"moved {self.shown(promise)} to its chunk")
      self.add_chunk(promise, body, tag.start)
    else:
      topic, tokens = self.topic_of(tag.topic, body)[0], self.tokens_of(tag.tokens, body)[0]
      self.done(tag.start, "missing promise", f"inserted one of {tokens} tokens, {topic}")
      self.append(Chunk(topic, tokens, body))
    return after, at

  def body_of(self, number: int) -> tuple[str, int, int]:
    """The body of the chunk that a tag opens, the number of the tag after it, and where the text goes on."""
    tag = self.tags[number]
    if tag.empty:
      return "", number + 1, tag.end
    close = self.pairs.get(number)
    pieces: list[str] = []
    at, after = tag.end, number + 1
    while after < len(self.tags) and after != close:
      inner = self.tags[after]
      if close is None and inner.kind in (Kind.PROMISE, OPEN, Kind.SYNC):
        break
      pieces.append(unescape(self.text[at : inner.start]))
      if inner.kind == Kind.OTHER:
        self.removed_other(inner)
      else:
        self.removed(inner, "nested chunk")
      at, after = inner.end, after + 1
    if close is not None:
      pieces.append(unescape(self.text[at : self.tags[close].start]))
      return "".join(pieces), after + 1, self.tags[close].end
    last = self.text[at : self.tags[after].start if after < len(self.tags) else len(self.text)]
    end = at + _end_of_body(last, more=after < len(self.tags))
    self.done(end, "unclosed chunk", "inserted </async>")
    pieces.append(unescape(self.text[at:end]))
    return "".join(pieces), after, end

  def add_chunk(self, promise: Tag, body: str, offset: int) -> None:
    if not body:
      self.removed(promise, "empty chunk")
      return
    topic, topic_done = self.topic_of(promise.topic, body)
    tokens, tokens_done = self.tokens_of(promise.tokens, body)
    if topic_done:
      self.done(promise.start, "topic", topic_done)
    if tokens_done:
      self.done(promise.start, "tokens", tokens_done)
    self.append(Chunk(topic, tokens, body))

  def append(self, chunk: Chunk) -> None:
    self.parts.append(chunk)
    self.chunks += 1
    self.opened = True

  def topic_of(self, given: str | None, body: str) -> tuple[str, str]:
    """A valid topic, and what was done to the given one, or ""."""
    topic = " ".join(_printable(given or "").split()[:TOPIC_WORDS])
    if topic:
      return topic, "" if topic == given else f"made it {topic}"
    words = (w.strip(_PUNCTUATION) for w in _printable(body[:_TOPIC_FROM]).split())
    topic = " ".join([w for w in words if w][:TOPIC_WORDS]) or f"part {self.chunks + 1}"
    return topic, f"made one of the chunk's first words, {topic}"

  def tokens_of(self, given: str | None, body: str) -> tuple[int, str]:
    """A valid length, and what was done to the given one, or ""."""
    m = _NUMBER.match(given or "")
    if m is None:
      tokens = rounded(self.count(body))
      return tokens, f"counted {tokens}"
    tokens = rounded(int(m[1][:9] or 0))
    return tokens, "" if str(tokens) == given else f"{m[0].strip()[:20]} became {tokens}"


_NAMES = {Kind.PROMISE: "<promise .../>", OPEN: "<async>", Kind.CLOSE: "</async>", Kind.SYNC: "<sync/>"}
_NUMBER = re.compile(r"[\s~+]*+0*+([0-9]*+)(?<=[0-9])")
_PUNCTUATION = "*_#`\"'<>&.,:;!?()[]{}|-"
_TOPIC_FROM = 200  # characters of a body
_LEAD = re.compile(r"[ \t]*+(?:[-*+•]|[0-9]{1,3}[.)]|[A-Za-z][.)]|#{1,6})?+[ \t]*+[*_]{0,3}")


def _printable(text: str) -> str:
  return "".join(c if c.isprintable() else " " for c in text)


def _end_of_body(text: str, more: bool) -> int:
  """Where an unclosed chunk ends: before trailing whitespace, and before a bullet if a mark follows."""
  body = text
  line = text.rfind("\n") + 1
  if more and line and _LEAD.fullmatch(text, line):
    body = text[:line]
  return len(body.rstrip())
