"""What a document costs: decode steps on its critical path, and how many a plain answer would take.

A step feeds one id per running thread; the id that ends an answer is drawn, never fed, so that a plain answer
of n tokens takes n steps. The steps of a round with two chunks, `fork="eager"`:

    step    1    2        3      4      5        6     7        8        9
    main    Two  <promise> train <len>  <promise> plane <len>            <sync/>
    chunk 1                      <async> Slower   but   </async>
    chunk 2                                             <async> Faster   </async>

A chunk's `<async>` is fed beside the length id that closes its promise, and a `<sync/>` beside the last
`</async>` it waits for: keys are written before anyone attends.
"""

import dataclasses
from collections.abc import Sequence

from pasta_jax.lang.marks import ControlIds
from pasta_jax.lang.threads import Threads


@dataclasses.dataclass(frozen=True)
class Stats:
  """Figures of one document.

  Attributes:
    chunks, rounds: how many; a round is the chunks between two syncs, the last may have no sync.
    main_ids, body_ids: ids of the main thread, marks and topics included, and of all bodies.
    mark_ids: ids that the plain answer would not have: marks, topics and lengths, `<async>` included.
    plain_tokens: tokens of the same answer without marks.
    critical_path: decode steps with a lane for every thread.
    position_error: for each chunk, promised minus true length, in ids.
  """

  chunks: int
  rounds: int
  main_ids: int
  body_ids: int
  mark_ids: int
  plain_tokens: int
  critical_path: int
  position_error: tuple[int, ...]

  @property
  def theoretical_speedup(self) -> float:
    """Tokens of the plain answer per step of the critical path."""
    return self.plain_tokens / self.critical_path if self.critical_path else 1.0


def document_stats(threads: Threads, controls: ControlIds, plain_tokens: int, fork: str = "eager") -> Stats:
  """The figures of a document in token form.

  Args:
    plain_tokens: tokens of its reading text.
    fork: "eager" or "grouped".
  """
  lens = set(controls.lens)
  promised = [controls.length(i) for i in threads.main if i in lens]
  topics = sum(_topic_lengths(threads, controls))
  syncs = sum(i == controls.sync for i in threads.main)
  count = len(threads.chunks)
  return Stats(
    chunks=count,
    rounds=len(set(rounds_of(threads, controls))),
    main_ids=len(threads.main),
    body_ids=sum(map(len, threads.chunks)),
    mark_ids=4 * count + topics + syncs,
    plain_tokens=plain_tokens,
    critical_path=critical_path(threads, controls, fork),
    position_error=tuple(p - len(b) for p, b in zip(promised, threads.chunks, strict=True)),
  )


def rounds_of(threads: Threads, controls: ControlIds) -> list[int]:
  """The round of each chunk, from 0: how many syncs stand before its promise."""
  lens = set(controls.lens)
  rounds, syncs = [], 0
  for token in threads.main:
    if token == controls.sync:
      syncs += 1
    elif token in lens:
      rounds.append(syncs)
  return rounds


def _topic_lengths(threads: Threads, controls: ControlIds) -> list[int]:
  lens = set(controls.lens)
  lengths, start = [], 0
  for at, token in enumerate(threads.main):
    if token == controls.promise:
      start = at
    elif token in lens:
      lengths.append(at - start - 1)
  return lengths


def critical_path(threads: Threads, controls: ControlIds, fork: str = "eager") -> int:
  """Decode steps of a document with a lane for every thread; see the module's drawing."""
  lens = set(controls.lens)
  bodies: Sequence[tuple[int, ...]] = threads.chunks
  step = 0  # in which the main thread's last id was fed
  opened = 0
  waiting: list[int] = []  # grouped chunks that have not started
  closes: list[int] = []  # of the round's chunks, the step that feeds `</async>`
  last = 0  # the last step that feeds a body id
  for token in threads.main:
    if token == controls.sync:
      closes += [step + 1 + len(bodies[k]) + 1 for k in waiting]
      step = max([step + 1, *closes])
      last = max(last, step)
      waiting, closes = [], []
      continue
    step += 1
    last = max(last, step)
    if token in lens:
      if fork == "eager":
        closes.append(step + len(bodies[opened]) + 1)
      else:
        waiting.append(opened)
      opened += 1
  # What no sync joins need not feed `</async>`, unless the main thread is still going.
  closes += [step + 1 + len(bodies[k]) + 1 for k in waiting]
  return max([last, *(c - 1 if c > step else c for c in closes)])
