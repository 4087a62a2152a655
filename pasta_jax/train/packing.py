"""From rows to batches of one fixed shape: documents laid out, packed side by side, shuffled, mixed.

    row of T tokens   | document 17 ........ | document 3 ..... | document 120 ..... | padding |
    segment             1                      2                  3                    0

An epoch's plan, which document lies where, follows from the seed and the epoch alone. So the loader's whole
state is two integers, and its `batch` is a function of them.

The twin's documents are packed by the lengths of the marked ones: the same rows lie in the same batches, and
both trainings take the same steps.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pasta_jax.lang import sequence as lang_sequence
from pasta_jax.lang.document import Document, Text
from pasta_jax.lang.grammar import Limits, grant
from pasta_jax.lang.marks import ControlIds, rounded
from pasta_jax.lang.sequence import NO_TARGET, Target, training_sequence
from pasta_jax.lang.threads import Threads, encode_document
from pasta_jax.lang.threads import problems as thread_problems
from pasta_jax.train.rows import Row

Batch = dict[str, np.ndarray]

_WINDOW = 512  # documents that are sorted by length
_OPEN_ROWS = 256  # rows that are filled at a time


@dataclasses.dataclass(frozen=True)
class Layout:
  """How documents become training sequences.

  Attributes:
    twin: leave the marks out.
    fork, positions, fixed: see the design, section 4.
    class_weights: factor on the loss of each class of target; classes not named have 1.
  """

  twin: bool = False
  fork: str = "eager"
  positions: str = "pred10"
  fixed: int = 64
  class_weights: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Example:
  """A document laid out.

  Attributes:
    row: where it comes from.
    sequence: what is trained on.
    room: tokens that it takes in a packed row: those of the marked document, also for the twin.
    cut: topics that were cut to what the decoder draws.
  """

  row: Row
  sequence: lang_sequence.Sequence
  room: int
  cut: int = 0


def prompt_ids(tokenizer: Any, prompt: str | Sequence[dict[str, str]]) -> list[int]:
  """A prompt's ids as the engine has them: through the chat template where there is one."""
  if not isinstance(prompt, str):
    return tokenizer.chat(prompt)
  if tokenizer.has_chat_template:
    return tokenizer.chat([{"role": "user", "content": prompt}])
  return tokenizer.encode(prompt, bos=tokenizer.add_bos)


def lay_out(row: Row, tokenizer: Any, layout: Layout, limits: Limits | None = None) -> Example:
  """One document as a training sequence, weights by class included.

  Args:
    tokenizer: with control ids, for the twin too (they give the room that the marked document takes).
    limits: of the decoder, that the marked document must keep, but for topics, which are cut as decoding
      cuts them; None for the document as it is.

  Raises:
    ValueError: the chat template refuses the prompt, or the document exceeds `limits`.
  """
  controls, end = tokenizer.controls, tokenizer.stop_ids[0]
  prompt = prompt_ids(tokenizer, row.prompt)

  def sequence_of(threads: Threads) -> lang_sequence.Sequence:
    return training_sequence(
      prompt, threads, controls, end, fork=layout.fork, positions=layout.positions, fixed=layout.fixed
    )

  threads, cut = encode_document(row.document, tokenizer.encode, controls), 0
  sequence = sequence_of(threads)
  room = len(sequence)
  if limits:
    if found := undrawable(row.document, threads, controls, limits):
      raise ValueError(f"document: {found}")
    threads, cut = cut_topics(threads, controls, limits.topic_pieces)
    sequence = sequence_of(threads) if cut else sequence
  if layout.twin:
    plain = Document.of([Text(row.document.plain)])
    sequence = sequence_of(encode_document(plain, tokenizer.encode, controls))
    room = max(room, len(sequence))
  factors = np.ones(len(Target), np.float32)
  for name, factor in layout.class_weights:
    factors[Target[name.upper()]] = factor
  weight = sequence.weight * factors[sequence.kind]
  return Example(row, dataclasses.replace(sequence, weight=weight), room, cut)


def undrawable(document: Document, threads: Threads, controls: ControlIds, limits: Limits) -> str | None:
  """Why the decoder could not draw a document's ids, or None; topics aside."""
  if found := thread_problems(threads, controls):
    return found[0]
  counts = [("the answer", "chunks", len(threads.chunks), limits.chunks)]
  for number, members in enumerate(document.rounds, start=1):
    counts.append((f"round {number}", "chunks", len(members), limits.round_chunks))
  for number, body in enumerate(threads.chunks, start=1):
    most = grant(limits, rounded(len(body)), 10**9, min, max)
    counts.append((f"chunk {number}", "tokens", len(body), most))
  for what, unit, count, most in counts:
    if count > most:
      return f"{what} has {count} {unit}, decoding allows {most}"
  return None


def cut_topics(threads: Threads, controls: ControlIds, pieces: int) -> tuple[Threads, int]:
  """Topics of at most `pieces` ids, where decoding ends them with a length; and how many were longer."""
  main: list[int] = []
  cut, room = 0, None  # what is left to the topic under way
  for token in threads.main:
    if token == controls.promise:
      room = pieces
    elif token in controls.lens:
      cut += room is not None and room < 0
      room = None
    elif room is not None:
      room -= 1
      if room < 0:
        continue
    main.append(token)
  return dataclasses.replace(threads, main=tuple(main)), cut


def lay_out_all(
  rows: Sequence[Row], tokenizer: Any, layout: Layout, length: int
) -> tuple[list[Example], list[str], dict[str, str]]:
  """All rows that can be trained on and fit into `length` tokens.

  Returns:
    Them; where those stand that are longer; and from file and line of those that the chat template refuses or
    the decoder could not draw to what is wrong with them.
  """
  examples, too_long, bad = [], [], {}
  for row in rows:
    try:
      example = lay_out(row, tokenizer, layout, Limits())
    except ValueError as e:
      bad[row.where] = str(e)
      continue
    if example.room <= length:
      examples.append(example)
    else:
      too_long.append(f"{row.where} ({example.room} tokens)")
  return examples, too_long, bad


def pack(rooms: Sequence[int], length: int) -> list[list[int]]:
  """Best fit: indices of the documents of each packed row.

  Documents are taken by windows, in the given order, in a window the longest first; each goes where it
  leaves the least room. Rows that are no longer among the youngest are closed.
  """
  rows: list[list[int]] = []
  free: list[int] = []
  for start in range(0, len(rooms), _WINDOW):
    window = range(start, min(start + _WINDOW, len(rooms)))
    for index in sorted(window, key=lambda i: -rooms[i]):
      room = rooms[index]
      fits = [n for n in range(max(0, len(rows) - _OPEN_ROWS), len(rows)) if free[n] >= room]
      if fits:
        at = min(fits, key=free.__getitem__)
      else:
        at = len(rows)
        rows.append([])
        free.append(length)
      rows[at].append(index)
      free[at] -= room
  return rows


_PER_TOKEN = ("ids", "thread", "visible_at", "horizon", "position", "target")
BATCH_NAMES = (*_PER_TOKEN, "segment", "time", "kind", "weight")


def fill(examples: Sequence[Sequence[Example]], batch: int, length: int) -> Batch:
  """Packed rows as arrays, BxT.

  Returns:
    ids, segment (0: padding), thread, time, visible_at, horizon, position, target, kind: int32; weight:
    float32. Times count from the start of each document.
  """
  out = {n: np.zeros((batch, length), np.int32) for n in BATCH_NAMES if n != "weight"}
  out["target"][:] = NO_TARGET
  out["weight"] = np.zeros((batch, length), np.float32)
  for b, row in enumerate(examples):
    at = 0
    for number, example in enumerate(row, start=1):
      s = example.sequence
      span = slice(at, at + len(s))
      for name in _PER_TOKEN:
        out[name][b, span] = getattr(s, name)
      out["segment"][b, span] = number
      out["time"][b, span] = s.time
      out["kind"][b, span] = s.kind
      out["weight"][b, span] = s.weight
      at += len(s)
  return out


@dataclasses.dataclass(frozen=True)
class State:
  """Where a loader stands: part of every checkpoint.

  Attributes:
    epoch: from 0.
    index: batches of the epoch already taken.
  """

  epoch: int = 0
  index: int = 0


class Loader:
  """Batches without end, epoch after epoch.

  Attributes:
    state: of the next batch; may be set.
  """

  def __init__(
    self,
    sources: Sequence[tuple[Sequence[Example], float]],
    *,
    batch: int,
    length: int,
    seed: int,
  ):
    """Args:
    sources: documents, and how often an epoch has each of them; of a fraction, other ones each epoch.
    batch, length: B and T.

    Raises:
      ValueError: no documents.
    """
    self.sources = [(list(examples), weight) for examples, weight in sources]
    if not any(examples and weight > 0 for examples, weight in self.sources):
      raise ValueError("there are no documents to train on")
    self.batch, self.length, self.seed = batch, length, seed
    self.state = State()
    self._plan: tuple[int, list[list[Example]]] | None = None

  def rows_of(self, epoch: int) -> list[list[Example]]:
    """The packed rows of an epoch, in order."""
    if self._plan is None or self._plan[0] != epoch:
      rng = np.random.default_rng([self.seed, epoch])
      chosen: list[Example] = []
      for examples, weight in self.sources:
        whole = int(weight)
        extra = round((weight - whole) * len(examples))
        chosen += examples * whole
        chosen += [examples[i] for i in rng.permutation(len(examples))[:extra]]
      order = [chosen[i] for i in rng.permutation(len(chosen))]
      rows = pack([e.room for e in order], self.length)
      packed = [[order[i] for i in row] for row in rows]
      self._plan = (epoch, [packed[i] for i in rng.permutation(len(packed))])
    return self._plan[1]

  def batches_of(self, epoch: int) -> int:
    """Batches of an epoch; the last one may have empty rows."""
    return -(-len(self.rows_of(epoch)) // self.batch)

  def next(self) -> Batch:
    """The next batch; moves `state` on."""
    epoch, index = self.state.epoch, self.state.index
    rows = self.rows_of(epoch)[index * self.batch : (index + 1) * self.batch]
    last = index + 1 >= self.batches_of(epoch)
    self.state = State(epoch + 1, 0) if last else State(epoch, index + 1)
    return fill(rows, self.batch, self.length)
