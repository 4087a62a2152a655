"""The training sequence of a document: every thread in one row, with the integers that say who sees whom.

    Two ways: <promise> train <len:20> <promise> plane <len:30> | <async> ... </async> <async> ... </async> |
    main, thread 0 ............................................ | chunk 1 ............ chunk 2 ............ |
    <sync/> So take the train
    main ....................

The prompt comes first, then the main ids; before each `<sync/>`, or at the end, the chunks that it joins.
Time is the index in the sequence. One forward over it under `visibility.visible` gives the logits that the
parallel decoder computes token by token.
"""

import dataclasses
import enum
from collections.abc import Sequence as Ids

import numpy as np

from pasta_jax.lang.marks import ControlIds
from pasta_jax.lang.threads import Threads
from pasta_jax.lang.visibility import visible

NEVER = 2**30
NO_TARGET = -1


class Target(enum.IntEnum):
  """What a target is, for weights and metrics."""

  NONE = 0
  TEXT = 1
  MARK = 2
  TOPIC = 3
  LENGTH = 4
  END = 5


@dataclasses.dataclass(frozen=True)
class Sequence:
  """A document as arrays over T tokens; int32 unless said otherwise.

  Attributes:
    ids: what is fed.
    thread: 0 for prompt and main, k for chunk k.
    visible_at, horizon: see visibility.py; times are indices.
    position: rotary.
    target: the id to predict; NO_TARGET where there is none.
    kind: int8, `Target` of the target.
    weight: float32, 1 where a target is trained.
    prompt: tokens of the prompt.
  """

  ids: np.ndarray
  thread: np.ndarray
  visible_at: np.ndarray
  horizon: np.ndarray
  position: np.ndarray
  target: np.ndarray
  kind: np.ndarray
  weight: np.ndarray
  prompt: int

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def time(self) -> np.ndarray:
    """Indices, int32."""
    return np.arange(len(self), dtype=np.int32)

  def mask(self) -> np.ndarray:
    """Who sees whom, TxT bool: query (row) by key (column). For tests and drawings: T^2 bytes."""
    t, h, time, v = self.thread, self.horizon, self.time, self.visible_at
    return visible(t[:, None], time[:, None], h[:, None], t[None], time[None], v[None])


def training_sequence(
  prompt: Ids[int],
  threads: Threads,
  controls: ControlIds,
  end_id: int,
  *,
  fork: str = "eager",
  positions: str = "pred10",
  fixed: int = 64,
  true_lengths: Ids[int] | None = None,
) -> Sequence:
  """Lays a document out for teacher forcing; see the module's drawing.

  Args:
    prompt: its ids, at least one.
    threads: the document, without problems (see threads.problems).
    end_id: what the main thread draws at its end; a target only.
    fork, positions, fixed: see the design, section 4.
    true_lengths: body lengths that positions="oracle" reserves; None: those of `threads`.

  Raises:
    ValueError: an empty prompt, an unknown fork or scheme, promises and chunks that do not match.
  """
  if not len(prompt):
    raise ValueError("a training sequence needs a prompt of at least one id")
  if fork not in ("eager", "grouped"):
    raise ValueError(f"fork must be eager or grouped, got {fork!r}")
  main = np.asarray(threads.main, np.int64)
  bodies = [np.asarray(b, np.int64) for b in threads.chunks]
  count = len(bodies)
  is_len = np.isin(main, controls.lens)
  len_at = np.flatnonzero(is_len)  # index in main of the id that closes promise k
  if len(len_at) != count:
    raise ValueError(f"{len(len_at)} promises, but {count} chunks")
  promised = np.array([controls.length(int(i)) for i in main[len_at]], np.int64)
  sync_at = np.flatnonzero(main == controls.sync)
  # Round of each chunk: how many syncs stand before its promise. It is joined by the sync of that number.
  round_of = np.searchsorted(sync_at, len_at)
  sizes = np.array([len(b) + 2 for b in bodies], np.int64)

  # Blocks in sequence order: prompt, then per round the main ids up to its sync and the chunks it joins.
  ends = np.append(sync_at, len(main))
  per_round = np.bincount(round_of, weights=sizes, minlength=len(ends)).astype(np.int64)
  before = np.concatenate([[0], np.cumsum(per_round)[:-1]])  # chunk ids that lie before a round's main ids
  which = np.searchsorted(sync_at, np.arange(len(main)), side="right")  # a sync begins the next round
  main_time = len(prompt) + np.arange(len(main)) + before[which]
  in_round = np.cumsum(sizes) - sizes - before[round_of] if count else sizes
  chunk_time = len(prompt) + ends[round_of] + before[round_of] + in_round  # time of each `<async>`
  total = len(prompt) + len(main) + int(sizes.sum())

  reserved = _reserved(positions, promised, sizes - 2, fixed, true_lengths)
  jumps = np.zeros(len(main) + 1, np.int64)
  np.add.at(jumps, len_at + 1, reserved)
  main_position = len(prompt) + np.arange(len(main)) + np.cumsum(jumps)[:-1]
  chunk_position = main_position[len_at] + 1
  if positions == "max":
    for sync, at in enumerate(sync_at):  # each moves all that follows
      mine = round_of == sync
      behind = int((chunk_position[mine] + sizes[mine]).max() - main_position[at])
      if behind > 0:
        main_position[at:] += behind
        chunk_position = main_position[len_at] + 1

  ids = np.zeros(total, np.int32)
  thread = np.zeros(total, np.int32)
  position = np.zeros(total, np.int32)
  target = np.full(total, NO_TARGET, np.int32)
  kind = np.zeros(total, np.int8)
  visible_at = np.arange(total, dtype=np.int32)
  horizon = np.arange(total, dtype=np.int32)

  ids[: len(prompt)] = prompt
  position[: len(prompt)] = np.arange(len(prompt))
  ids[main_time] = main
  position[main_time] = main_position
  fed = np.concatenate([[len(prompt) - 1], main_time])
  target[fed] = np.append(main, end_id)
  kind[fed] = np.append(_kinds(main, is_len, controls), Target.END)
  for k in range(count):
    first, end = int(chunk_time[k]), int(chunk_time[k] + sizes[k])
    span = slice(first, end)
    ids[span] = (controls.open, *bodies[k], controls.close)
    thread[span] = k + 1
    position[span] = chunk_position[k] + np.arange(sizes[k])
    target[first : end - 1] = (*bodies[k], controls.close)
    kind[first : end - 2] = Target.TEXT
    kind[end - 2] = Target.MARK
    joined = round_of[k] < len(sync_at)
    visible_at[span] = main_time[sync_at[round_of[k]]] if joined else NEVER
    horizon[span] = main_time[len_at[k] if fork == "eager" else ends[round_of[k]] - 1]
  return Sequence(
    ids=ids,
    thread=thread,
    visible_at=visible_at,
    horizon=horizon,
    position=position,
    target=target,
    kind=kind,
    weight=(target != NO_TARGET).astype(np.float32),
    prompt=len(prompt),
  )


def threads_of(sequence: Sequence) -> tuple[tuple[int, ...], Threads]:
  """The prompt and the document of a training sequence."""
  ids, thread = sequence.ids, sequence.thread
  rest = np.arange(len(ids)) >= sequence.prompt
  chunks = tuple(tuple(ids[thread == k].tolist()[1:-1]) for k in range(1, int(thread.max(initial=0)) + 1))
  return tuple(ids[: sequence.prompt].tolist()), Threads(tuple(ids[rest & (thread == 0)].tolist()), chunks)


def _reserved(
  positions: str, promised: np.ndarray, lengths: np.ndarray, fixed: int, true_lengths: Ids[int] | None
) -> np.ndarray:
  """Positions that the main thread leaves to each chunk."""
  if positions == "pred10":
    return promised
  if positions == "oracle":
    if true_lengths is None:
      return lengths
    if len(true_lengths) < len(lengths):
      raise ValueError(f"{len(true_lengths)} true lengths for {len(lengths)} chunks")
    return np.asarray(true_lengths, np.int64)[: len(lengths)]
  if positions == "fixed":
    return np.full(len(promised), fixed, np.int64)
  if positions in ("none", "max"):
    return np.zeros(len(promised), np.int64)
  raise ValueError(f"positions must be one of pred10, oracle, fixed, none, max; got {positions!r}")


def _kinds(main: np.ndarray, is_len: np.ndarray, controls: ControlIds) -> np.ndarray:
  """`Target` of each main id."""
  promises = main == controls.promise
  inside = np.cumsum(promises) > np.cumsum(is_len)
  kinds = np.where(inside, Target.TOPIC, Target.TEXT)
  kinds[promises | (main == controls.sync)] = Target.MARK
  kinds[is_len] = Target.LENGTH
  return kinds
