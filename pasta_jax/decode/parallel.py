"""What came of an answer that may have marks: its document, how the lanes decoded it, and the figures."""

import collections
import dataclasses
import functools
from typing import Any

from pasta_jax.decode.answer import Answer, Draw
from pasta_jax.decode.requests import Request
from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.lang.stats import Stats, document_stats
from pasta_jax.lang.threads import Threads


@dataclasses.dataclass(frozen=True)
class Parallel:
  """A decoded document.

  Attributes:
    document: as decoded, or up to the stop string that ended it.
    threads: its ids.
    draws: what each lane drew in each step; for the trace.
    fork: of the request.
    cut: the budget was used up, so that the answer had to end.
    tokenizer: of the model.
  """

  document: Document
  threads: Threads
  draws: tuple[Draw, ...]
  fork: str
  cut: bool
  tokenizer: Any = dataclasses.field(repr=False)

  @classmethod
  def of(cls, answer: Answer, request: Request, cut: bool, tokenizer: Any) -> "Parallel":
    """The document of an answer that has ended.

    After a stop string the document ends where the text does: what comes later in reading order is left out,
    whether or not a lane had come to it.
    """
    parts: list[Text | Chunk | Sync] = []
    left = len(answer.text) if answer.stopped else None
    for part in answer.parts:
      if left == 0:
        break
      if part is None:
        parts.append(Sync())
        continue
      text = part.text if left is None else part.text[:left]
      left = None if left is None else left - len(text)
      if text:
        parts.append(Chunk(part.topic, part.promised, text) if part.thread else Text(text))
    threads = Threads(tuple(answer.main), tuple(tuple(c.ids) for c in answer.chunks))
    return cls(Document.of(parts), threads, tuple(answer.draws), request.fork, cut, tokenizer)

  @property
  def annotated(self) -> str:
    """The document with its marks."""
    return self.document.annotated

  @functools.cached_property
  def stats(self) -> Stats:
    """Figures of the ids that were decoded."""
    plain = len(self.tokenizer.encode(self.document.plain))
    return document_stats(self.threads, self.tokenizer.controls, plain, self.fork)

  @property
  def steps(self) -> int:
    """Decode steps that the request was there for, waiting ones included."""
    return max((d.step for d in self.draws), default=0)

  @functools.cached_property
  def steps_by_width(self) -> dict[int, int]:
    """From lanes of a step (of all requests together) to how many of this request's steps had them."""
    widths = {d.step: d.width for d in self.draws if d.step > 0}
    return dict(sorted(collections.Counter(widths.values()).items()))

  def row(self) -> dict[str, Any]:
    """What an output row says of it."""
    s = self.stats
    return {
      "annotated": self.annotated,
      "threads": s.chunks + 1,
      "rounds": s.rounds,
      "critical_path": s.critical_path,
      "plain_tokens": s.plain_tokens,
      "theoretical_speedup": round(s.theoretical_speedup, 4),
      "steps_by_width": {str(w): n for w, n in self.steps_by_width.items()},
      "position_error": list(s.position_error),
    }
