"""Fitting: a model's reply becomes a document of the very answer that it was asked to mark.

The marks are read from the reply (`lang.repair` mends them) and moved onto the answer, so that the document
renders to the answer whatever the reply holds. They can be moved where the reply's text is the answer's:

    the same                      byte for byte
    but for spelling              white space, and typographic forms of quotes, dashes, dots (`FOLDED`)
    but for what surrounds it     a greeting, a code fence: the answer stands in the reply once, as a whole

Any other reply is rejected: nobody knows what its marks mean for another text.
"""

import unicodedata

from pasta_jax.lang.document import Chunk, Document, Sync, problems
from pasta_jax.lang.grammar import Limits
from pasta_jax.lang.repair import repair
from pasta_jax.lang.tags import lenient_tags
from pasta_jax.train.annotate.annotator import Annotation, Rejection
from pasta_jax.train.annotate.cuts import ChunkCut, Cut, SyncCut, document_of
from pasta_jax.train.annotate.lengths import estimated_tokens

FOLDED = str.maketrans(
  {
    **dict.fromkeys("‘’‚‛′`´", "'"),
    **dict.fromkeys("“”„‟″", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    "…": "...",
    "\u200b": "",
    "\ufeff": "",
  }
)


def fit(reply: str, answer: str, limits: Limits | None = None) -> Annotation | Rejection:
  """The document of `answer` with the marks of `reply`.

  Args:
    answer: normalised.
  """
  document, mended = repair(reply, estimated_tokens)
  repairs = [r.rule for r in mended]
  plain = document.plain
  if not plain.strip():
    return Rejection("empty_reply", "the reply holds no text")
  places, how = _place(plain, answer)
  if places is None:
    return Rejection("text_changed", how)
  if plain != answer:
    repairs.append(how)
  cuts = _cuts(document, places, answer)
  result = document_of(answer, cuts, limits or Limits(), joins=True, lone=True)
  if problems(result):
    return Rejection("broken_marks", problems(result)[0])
  if not result.splits and lenient_tags(reply)[0]:
    return Rejection("broken_marks", "the reply has marks, but no chunk can be made of them")
  return Annotation(result, tuple(repairs))


def _place(plain: str, answer: str) -> "tuple[_Places | None, str]":
  """Where the answer's text is in the reply's, and the name of the repair; or None, and what differs."""
  said, said_at = _fold(plain)
  wanted, at = _fold(answer)
  start = said.find(wanted)
  if start < 0:
    same = next((n for n, (a, b) in enumerate(zip(said, wanted)) if a != b), min(len(said), len(wanted)))
    where = at[same] if same < len(at) else len(answer)
    found = plain[said_at[same] :][:30] if same < len(said) else "the end"
    wants = answer[where:][:30] or "the end"
    return None, f"differs from the answer at its character {where}: {found!r} for {wants!r}"
  if said == wanted:
    return _Places(plain, answer, 0, len(wanted)), "text spelling"
  if len(wanted) < 8 or said.find(wanted, start + 1) >= 0:
    return None, "the answer is not the whole of the reply, nor in it just once"
  return _Places(plain, answer, start, start + len(wanted)), "text around"


def _fold(text: str) -> tuple[str, list[int]]:
  """A text without white space and typography, and where each of its characters stood."""
  out: list[str] = []
  at: list[int] = []
  for n, c in enumerate(text):
    if c.isspace():
      continue
    for folded in unicodedata.normalize("NFC", c).translate(FOLDED):
      out.append(folded)
      at.append(n)
  return "".join(out), at


class _Places:
  """From characters of a reply's text to those of the answer, by counting folded characters."""

  def __init__(self, plain: str, answer: str, start: int, end: int):
    """The answer's folded text is `start` to `end` of the reply's."""
    self._before = [0]
    for c in plain:
      size = 0 if c.isspace() else len(unicodedata.normalize("NFC", c).translate(FOLDED))
      self._before.append(self._before[-1] + size)
    self._at = _fold(answer)[1]
    self._answer = answer
    self._start, self._end = start, end

  def first(self, offset: int) -> int:
    """The answer's first character that is not white space, from a place in the reply on."""
    n = min(max(self._before[offset], self._start), self._end) - self._start
    return self._at[n] if n < len(self._at) else len(self._answer)

  def last(self, offset: int) -> int:
    """Behind the answer's last character that is not white space, before a place in the reply."""
    n = min(max(self._before[offset], self._start), self._end) - self._start
    return self._at[n - 1] + 1 if n else 0


def _cuts(document: Document, places: _Places, answer: str) -> list[Cut]:
  """The document's marks on the answer; chunks end before white space, and empty ones go."""
  cuts: list[Cut] = []
  at = 0
  for part in document.parts:
    if isinstance(part, Sync):
      cuts.append(SyncCut(places.first(at)))
      continue
    length = len(part.body if isinstance(part, Chunk) else part.text)
    if isinstance(part, Chunk):
      start, end = places.first(at), places.last(at + length)
      if start < end:
        cuts.append(ChunkCut(start, end, part.topic, start))
    at += length
  return [c for c in cuts if not (isinstance(c, SyncCut) and c.start >= len(answer))]
