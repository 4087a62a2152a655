"""The strict parser: a text is a document in one way or has problems, each with its line and column.

    parse(document.annotated) == document

and parse(text).annotated == text, but for an & in a topic that could have been written &amp;.

docs/pasta_lang.ebnf is the grammar. What may stand where comes from the table in grammar.py.
"""

import dataclasses

from pasta_jax.lang.document import TOPIC_WORDS, Chunk, Document, Part, Sync, Text, topic_problem, unescape
from pasta_jax.lang.grammar import Kind, Phase, allowed_unbounded
from pasta_jax.lang.marks import LENGTHS
from pasta_jax.lang.tags import OPEN, Lines, Tag, closing_of, shown, strict_tags


@dataclasses.dataclass(frozen=True)
class Problem:
  """One thing that keeps a text from being a document.

  Attributes:
    offset: index of the character where it shows.
    line, column: the same, both from 1.
    expected, found: in words.
  """

  offset: int
  line: int
  column: int
  expected: str
  found: str

  def __str__(self) -> str:
    return f"line {self.line}, column {self.column}: expected {self.expected}, found {self.found}"


class ParseError(ValueError):
  """A text that is no document; one line says where and why.

  Attributes:
    problem: the first of its problems.
  """

  def __init__(self, problem: Problem):
    super().__init__(str(problem))
    self.problem = problem


def parse(text: str) -> Document:
  """The document that a text says.

  Raises:
    ParseError: it says none; `problems` lists everything that is wrong with it.
  """
  document, found = _Reader(text).read()
  if found:
    raise ParseError(found[0])
  return document


def problems(text: str) -> tuple[Problem, ...]:
  """Everything that keeps a text from being a document, in order; empty where `parse` succeeds."""
  return tuple(_Reader(text).read()[1])


_NAMES = {Kind.TEXT: "text", Kind.PROMISE: "<promise .../>", Kind.SYNC: "<sync/>", Kind.CLOSE: "</async>"}


def _names(kinds: Kind) -> str:
  names = [name for kind, name in _NAMES.items() if kinds & kind]
  return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


class _Reader:
  """Reads a text from mark to mark; after a problem it goes on with what was probably meant."""

  def __init__(self, text: str):
    self.text = text
    self.lines = Lines(text)
    self.found: list[Problem] = []
    self.parts: list[Part] = []
    self.phase = Phase.MAIN
    self.opened = False  # since the last sync
    self.promise: Tag | None = None  # read, and its chunk not yet
    self.kept: Tag | None = None  # the promise of the chunk
    self.body: list[str] = []
    self.depth = 0  # chunks inside the chunk
    self.open = -1  # number of the tag that opened the chunk
    self.body_start = 0

  def read(self) -> tuple[Document, list[Problem]]:
    at = 0
    tags = strict_tags(self.text)
    pairs = closing_of(tags)
    for number, tag in enumerate(tags):
      self.take_text(at, tag.start)
      if self.phase == Phase.CHUNK and tag.kind not in (Kind.CLOSE, Kind.OTHER) and self.open not in pairs:
        self.expect(tag.start, "</async>: the chunk has none")
        self.close()
      if tag.flaw is not None:
        self.expect(*tag.flaw)
      if self.phase == Phase.CHUNK:
        self.in_chunk(tag)
      else:
        self.in_main(number, tag)
      at = tag.end
    self.take_text(at, len(self.text))
    if self.promise is not None:
      self.miss_chunk(self.promise)
    if self.phase == Phase.CHUNK:
      self.expect(len(self.text), "</async>: the chunk has none")
    self.found.sort(key=lambda p: p.offset)
    return Document.of(self.parts), self.found

  def expect(self, offset: int, expected: str, found: str = "") -> None:
    self.found.append(Problem(offset, *self.lines.at(offset), expected, found or shown(self.text, offset)))

  def take_text(self, start: int, end: int) -> None:
    if start == end:
      return
    text = unescape(self.text[start:end])
    if self.phase == Phase.CHUNK:
      self.body.append(text)
    else:
      self.parts.append(Text(text))

  def in_main(self, number: int, tag: Tag) -> None:
    promise, self.promise = self.promise, None
    if promise is not None and (tag.kind != OPEN or tag.start != promise.end):
      self.miss_chunk(promise)
    if tag.kind == OPEN:
      if promise is None:
        self.expect(tag.start, "<promise .../> before this chunk")
      self.phase, self.depth, self.open, self.body = Phase.CHUNK, 0, number, []
      self.kept, self.body_start = promise, tag.end
      return
    allowed = allowed_unbounded(Phase.MAIN, self.opened)
    if tag.kind == Kind.OTHER:
      return
    if not tag.kind & allowed:
      hint = " (a sync needs a chunk since the last one)" if tag.kind == Kind.SYNC else ""
      self.expect(tag.start, _names(allowed) + hint)
    elif tag.kind == Kind.SYNC:
      self.parts.append(Sync())
      self.opened = False
    else:
      self.promise = tag
      if tag.flaw is None:
        self.check_promise(tag)

  def miss_chunk(self, promise: Tag) -> None:
    if self.text[promise.end - 1] == ">":  # else its own end is missing, which is reported
      self.expect(promise.end, "<async> directly after the promise")

  def check_promise(self, tag: Tag) -> None:
    assert tag.topic is not None
    assert tag.tokens is not None
    if topic_problem(tag.topic):
      self.expect(tag.start + len('<promise topic="'), _TOPIC_RULE)
    if tag.tokens not in _TOKENS:
      self.expect(tag.end - len('"/>') - len(tag.tokens), _TOKENS_RULE)

  def in_chunk(self, tag: Tag) -> None:
    begun = bool(self.depth or self.body or tag.start > self.body_start)
    allowed = allowed_unbounded(Phase.CHUNK, begun=begun)
    if tag.kind == Kind.CLOSE and self.depth:
      self.depth -= 1
      return
    if tag.kind == Kind.OTHER:
      return
    if tag.kind & allowed == 0:
      hint = "" if tag.kind == Kind.CLOSE else " (nothing is nested in a chunk)"
      self.expect(tag.start, _names(allowed) + hint)
    if tag.kind == OPEN:
      self.depth += 1
    elif tag.kind == Kind.CLOSE:
      self.close()

  def close(self) -> None:
    self.phase, self.opened = Phase.MAIN, True
    topic, tokens = (self.kept.topic, self.kept.tokens) if self.kept else (None, None)
    self.parts.append(Chunk(topic or "", int(tokens) if tokens in _TOKENS else 0, "".join(self.body)))


_TOPIC_RULE = f"a topic of 1 to {TOPIC_WORDS} words of printable characters, single spaces between them"
_TOKENS_RULE = f"tokens of {LENGTHS[0]} to {LENGTHS[-1]} in tens"
_TOKENS = frozenset(str(n) for n in LENGTHS)
