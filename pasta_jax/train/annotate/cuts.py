"""Cuts of an answer: which spans become chunks and where syncs go. Whatever is cut, the text stays."""

import dataclasses
from collections.abc import Sequence

from pasta_jax.lang.document import Chunk, Document, Part, Sync, Text
from pasta_jax.lang.grammar import Limits
from pasta_jax.train.annotate.lengths import estimated_tokens, promised_tokens


@dataclasses.dataclass(frozen=True)
class ChunkCut:
  """A span that becomes a chunk.

  Attributes:
    start, end: its characters.
    topic: what its promise says.
    before: where a sync would go, were one needed before it: the beginning of its list item or heading.
    head: the words it begins with that name it, or "".
  """

  start: int
  end: int
  topic: str
  before: int
  head: str = ""


@dataclasses.dataclass(frozen=True)
class SyncCut:
  """A sync before the character `start`."""

  start: int


Cut = ChunkCut | SyncCut


def document_of(
  answer: str, cuts: Sequence[Cut], limits: Limits, joins: bool, lone: bool = False
) -> Document:
  """The document of an answer.

  Where a round is full, a sync begins another if `joins`, else the rest stays text; so does what comes after
  the last chunk that an answer may have.

  Args:
    cuts: in order, without overlaps.
    lone: keep rounds of one chunk, which gain only where the main thread goes on beside them; else they stay
      text.
  """
  parts: list[Part] = []
  at = 0
  for cut in _useful(_limited(cuts, limits, joins), least=1 if lone else 2):
    parts.append(Text(answer[at : cut.start]))
    at = cut.start
    if isinstance(cut, SyncCut):
      parts.append(Sync())
      continue
    body = answer[cut.start : cut.end]
    parts.append(Chunk(cut.topic, promised_tokens(body), body))
    at = cut.end
  parts.append(Text(answer[at:]))
  return Document.of(parts)


def estimated_steps(document: Document) -> int:
  """About how many decode steps a document takes with a lane for every chunk."""
  main = 0
  ends: list[int] = []
  for part in document.parts:
    if isinstance(part, Text):
      main += estimated_tokens(part.text)
    elif isinstance(part, Chunk):
      main += 2 + estimated_tokens(part.topic)
      ends.append(main + 2 + estimated_tokens(part.body))
    else:
      main = max([main, *ends]) + 1
  return max([main, *ends])


def _limited(cuts: Sequence[Cut], limits: Limits, joins: bool) -> list[Cut]:
  out: list[Cut] = []
  chunks = opened = 0
  for cut in cuts:
    if isinstance(cut, SyncCut):
      opened = 0
    elif chunks == limits.chunks or (opened == limits.round_chunks and not joins):
      continue
    else:
      if opened == limits.round_chunks:
        out.append(SyncCut(cut.before))
        opened = 0
      chunks += 1
      opened += 1
    out.append(cut)
  return out


def _useful(cuts: Sequence[Cut], least: int) -> list[Cut]:
  out: list[Cut] = []
  opened: list[ChunkCut] = []
  for cut in [*cuts, None]:
    if isinstance(cut, ChunkCut):
      opened.append(cut)
      continue
    if len(opened) >= least:
      out += [*opened, cut] if cut else opened
    opened = []
  return out
