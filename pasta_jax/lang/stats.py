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

from pasta_jax.lang.marks import ControlIds
from pasta_jax.lang.threads import Threads


@dataclasses.dataclass(frozen=True)
class Stats:
  """Figures of one document.

  Attributes:
    chunks, rounds: how many; a round is the chunks between two syncs, the last may have no sync.
    main_ids, body_ids: ids of the main thread, marks and topics included, and of all bodies.
    marks: promises, `<async>`, `</async>` and syncs.
    mark_ids: ids that the plain answer would not have: marks, topics and lengths, `<async>` included.
    plain_tokens: tokens of the same answer without marks.
    critical_path: decode steps with a lane for every thread.
    position_error: for each chunk, promised minus true length, in ids.
  """

  chunks: int
  rounds: int
  main_ids: int
  body_ids: int
  marks: int
  mark_ids: int
  plain_tokens: int
  critical_path: int
  position_error: tuple[int, ...]

  @property
  def theoretical_speedup(self) -> float:
    """Tokens of the plain answer per step of the critical path."""
    return self.plain_tokens / self.critical_path if self.critical_path else 1.0

  @property
  def tokens_per_mark(self) -> float:
    """Ids that a mark costs, topics included."""
    return self.mark_ids / self.marks if self.marks else 0.0


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
    marks=3 * count + syncs,
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


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When a document's ids are fed, with a lane for every thread; steps count from 1.

  Attributes:
    main: the step of each main id.
    chunks: of each chunk, the step of its `<async>`; its ids follow one a step.
  """

  main: tuple[int, ...]
  chunks: tuple[int, ...]


def schedule(threads: Threads, controls: ControlIds, fork: str = "eager") -> Schedule:
  """The steps of a document; see the module's drawing."""
  lens = set(controls.lens)
  step = 0  # in which the main thread's last id was fed
  main: list[int] = []
  starts: list[int] = []
  opened = joined = 0

  def fork_round() -> None:
    starts.extend([step + 1] * (opened - len(starts)))

  for token in threads.main:
    if token == controls.sync:
      fork_round()
      # Fed beside the last `</async>`.
      closes = [starts[k] + len(threads.chunks[k]) + 1 for k in range(joined, opened)]
      step = max([step + 1, *closes])
      joined = opened
    else:
      step += 1
      if token in lens:
        opened += 1
        if fork == "eager":
          starts.append(step)
    main.append(step)
  fork_round()
  return Schedule(tuple(main), tuple(starts))


def critical_path(threads: Threads, controls: ControlIds, fork: str = "eager") -> int:
  """Decode steps of a document with a lane for every thread; see the module's drawing."""
  steps = schedule(threads, controls, fork)
  # What no sync joins need not feed `</async>`, unless the main thread is still going.
  bodies = (start + len(body) for start, body in zip(steps.chunks, threads.chunks))
  return max([0, *steps.main[-1:], *bodies])
