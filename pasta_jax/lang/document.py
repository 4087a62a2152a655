"""Documents: an answer as text, chunks and syncs in reading order, and how it is written."""

import dataclasses
import re
from collections.abc import Iterable

from pasta_jax.lang.marks import LENGTHS

TOPIC_WORDS = 3

# What makes `<` the beginning of a mark: the name, and no more of a name.
MARK_NAME = r"/?(?:promise|async|sync)(?![\w-])"
_OPENS = re.compile(rf"<(?={MARK_NAME})")
_ESCAPED = re.compile(rf"&((?:amp;)*lt;)(?={MARK_NAME})")


@dataclasses.dataclass(frozen=True)
class Text:
  """Text of the main thread."""

  text: str


@dataclasses.dataclass(frozen=True)
class Chunk:
  """A promise and the chunk that keeps it.

  Attributes:
    topic: 1 to 3 words.
    tokens: what the promise estimates, one of marks.LENGTHS.
    body: the chunk's text.
  """

  topic: str
  tokens: int
  body: str


@dataclasses.dataclass(frozen=True)
class Sync:
  """The main thread waits for the chunks opened so far."""


Part = Text | Chunk | Sync


@dataclasses.dataclass(frozen=True)
class Document:
  """An answer in reading order, in normal form: no text is empty, none follows another.

  Attributes:
    parts: made by `of`.
  """

  parts: tuple[Part, ...]

  @classmethod
  def of(cls, parts: Iterable[Part]) -> "Document":
    """The document of any parts: empty texts are left out, neighbours joined."""
    out: list[Part] = []
    run: list[str] = []
    for part in parts:
      if isinstance(part, Text):
        run.append(part.text)
        continue
      _end_run(out, run)
      out.append(part)
    _end_run(out, run)
    return cls(tuple(out))

  @property
  def chunks(self) -> tuple[Chunk, ...]:
    return tuple(p for p in self.parts if isinstance(p, Chunk))

  @property
  def splits(self) -> bool:
    """Whether any part of it is decoded in parallel."""
    return bool(self.chunks)

  @property
  def rounds(self) -> tuple[tuple[int, ...], ...]:
    """The chunks between two syncs, as indices into `chunks`; no sync joins those of the last round."""
    rounds: list[list[int]] = [[]]
    count = 0
    for part in self.parts:
      if isinstance(part, Chunk):
        rounds[-1].append(count)
        count += 1
      elif isinstance(part, Sync):
        rounds.append([])
    return tuple(tuple(r) for r in rounds if r)

  @property
  def plain(self) -> str:
    """What people read: the text without the marks."""
    return "".join(_plain(p) for p in self.parts)

  @property
  def annotated(self) -> str:
    """What files hold: the text with its marks; `parse.parse` reads it back."""
    return "".join(_annotated(p) for p in self.parts)


def _end_run(out: list[Part], run: list[str]) -> None:
  if text := "".join(run):
    out.append(Text(text))
  run.clear()


def _plain(part: Part) -> str:
  if isinstance(part, Text):
    return part.text
  return part.body if isinstance(part, Chunk) else ""


def _annotated(part: Part) -> str:
  if isinstance(part, Text):
    return escape(part.text)
  if isinstance(part, Sync):
    return "<sync/>"
  topic = escape_attribute(part.topic)
  return f'<promise topic="{topic}" tokens="{part.tokens}"/><async>{escape(part.body)}</async>'


def escape(text: str) -> str:
  """Text in which no mark is spelt: `<promise` becomes `&lt;promise`, and that becomes `&amp;lt;promise`.

  Nothing else changes, so that HTML and code stay as they are.
  """
  return _OPENS.sub("&lt;", _ESCAPED.sub(r"&amp;\1", text))


def unescape(text: str) -> str:
  """What `escape` was given."""
  return _ESCAPED.sub(lambda m: "<" if m[1] == "lt;" else "&" + m[1].removeprefix("amp;"), text)


def escape_attribute(text: str) -> str:
  return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def unescape_attribute(text: str) -> str:
  return text.replace("&lt;", "<").replace("&quot;", '"').replace("&amp;", "&")


def topic_problem(topic: str) -> str | None:
  """What is wrong with a topic, or None."""
  words = topic.split()
  if not 1 <= len(words) <= TOPIC_WORDS:
    return f"a topic has 1 to {TOPIC_WORDS} words, this one has {len(words)}"
  if topic != " ".join(words):
    return "the words of a topic are separated by single spaces"
  if not topic.isprintable():
    return "a topic holds printable characters only"
  return None


def tokens_problem(tokens: int) -> str | None:
  """What is wrong with a promised length, or None."""
  if tokens in LENGTHS:
    return None
  return f"tokens must be {LENGTHS[0]} to {LENGTHS[-1]} in tens, not {tokens}"


def problems(document: Document) -> list[str]:
  """Everything that is wrong with a document, part by part; empty for a valid one."""
  found = []
  opened = False
  for n, part in enumerate(document.parts):
    if isinstance(part, Text):
      if not part.text or (n and isinstance(document.parts[n - 1], Text)):
        found.append(f"part {n}: texts are not in normal form; build the document with Document.of")
    elif isinstance(part, Chunk):
      opened = True
      found += [f"part {n}: {p}" for p in (topic_problem(part.topic), tokens_problem(part.tokens)) if p]
      if not part.body:
        found.append(f"part {n}: the chunk is empty")
    else:
      if not opened:
        found.append(f"part {n}: a sync, but no chunk was opened since the last one")
      opened = False
  return found
