"""The token grammar as data: which kinds of id each thread may draw next, and when.

The validator, the reference interpreter and the device interpreter read the same table, `RULES`. A drawn id
that the table does not allow is masked before sampling, so that every decode is a document:

    phase    may draw               as long as
    MAIN     text                   the budget leaves room for the end
             end                     (an id that ends the answer)
             <promise>              the round and the answer may open one more chunk, and the budget allows it
             <sync/>                a chunk was opened since the last sync
    TOPIC    a piece of a topic     there are fewer than `topic_pieces`
             one that begins a word ... and fewer than three words
             <len:n>                there is a piece
    CHUNK    text                   the chunk's grant is not used up
             </async>               there is an id in it
    WAIT     nothing: `<sync/>` is fed when the round's chunks are done
    ENDED    nothing
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from pasta_jax.lang.document import TOPIC_WORDS
from pasta_jax.lang.marks import ControlIds


class Kind(enum.IntFlag):
  """Kinds of ids; an id may be of several."""

  TEXT = 1
  TOPIC = 2  # text that may stand in a topic, within a word
  WORD = 4  # the same, beginning a word after a space
  PROMISE = 8
  CLOSE = 16
  SYNC = 32
  LEN = 64
  END = 128
  OTHER = 256  # a model's special ids that end nothing; no rule allows them


# What an answer without marks may hold.
PLAIN = Kind.TEXT | Kind.TOPIC | Kind.WORD | Kind.END | Kind.OTHER


class Phase(enum.IntEnum):
  """Where a thread is. MAIN, TOPIC, WAIT and ENDED are the main thread's; chunks are in CHUNK or ENDED."""

  MAIN = 0
  TOPIC = 1
  CHUNK = 2
  WAIT = 3
  ENDED = 4


@dataclasses.dataclass(frozen=True)
class Rule:
  """In `phase` a thread may draw ids of `kind`, if the fact `when` holds ("" holds always)."""

  phase: Phase
  kind: Kind
  when: str = ""


RULES = (
  Rule(Phase.MAIN, Kind.TEXT, "more_main"),
  Rule(Phase.MAIN, Kind.END, "may_end"),
  Rule(Phase.MAIN, Kind.PROMISE, "may_promise"),
  Rule(Phase.MAIN, Kind.SYNC, "may_sync"),
  Rule(Phase.TOPIC, Kind.TOPIC, "more_pieces"),
  Rule(Phase.TOPIC, Kind.WORD, "more_words"),
  Rule(Phase.TOPIC, Kind.LEN, "has_topic"),
  Rule(Phase.CHUNK, Kind.TEXT, "more_body"),
  Rule(Phase.CHUNK, Kind.CLOSE, "has_body"),
)


@dataclasses.dataclass(frozen=True)
class Limits:
  """Caps on an answer, against runaways.

  Attributes:
    round_chunks: chunks between two syncs.
    chunks: chunks of an answer.
    chunk_tokens: ids of a chunk's body.
    overrun: a chunk may have this many times the ids that were promised, and `least_grant` in any case.
    least_grant: see overrun.
    topic_pieces: ids of a topic.
  """

  round_chunks: int = 16
  chunks: int = 32
  chunk_tokens: int = 384
  overrun: int = 2
  least_grant: int = 32
  topic_pieces: int = 8

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{field.name} must be an integer >= 1, got {value!r}")


# A promise is made only if the budget holds it, its chunk's first ids, and one more id on the main thread,
# which then has to feed the length id.
def promise_cost(topic_pieces: Any) -> Any:
  """Ids that must be left in the budget for a promise to be allowed."""
  return 2 + topic_pieces + LEAST_BODY + 1 + 1


LEAST_BODY = 16


def grant(limits: Any, promised: Any, left: Any, minimum: Callable, maximum: Callable) -> Any:
  """Ids that a chunk's body may have at most, decided when its promise closes.

  From the promise and the main thread's own past alone, so that no schedule of the lanes changes it.

  Args:
    limits: with the fields of `Limits`.
    promised: ids promised.
    left: the budget left after the length id.
    minimum, maximum: of two numbers (or arrays).
  """
  wanted = maximum(limits.overrun * promised, limits.least_grant)
  return minimum(minimum(wanted, limits.chunk_tokens), left - 2)


def facts(limits: Any, thread: Mapping[str, Any]) -> dict[str, Any]:
  """What `Rule.when` names, for one thread or arrays of them.

  Args:
    limits: with the fields of `Limits`.
    thread: `left` (ids of the budget), `ends` (false: the answer ends only with its budget), `opened`
      (chunks), `round_start` (chunks opened before the last sync), `pieces` and `words` (of the topic so
      far), `body` (ids of the chunk so far), `grant`.
  """
  t = thread
  return {
    "more_main": t["left"] >= 2,
    "may_end": t["ends"] | (t["left"] < 2),
    "may_promise": (t["opened"] - t["round_start"] < limits.round_chunks)
    & (t["opened"] < limits.chunks)
    & (t["left"] >= promise_cost(limits.topic_pieces)),
    "may_sync": (t["opened"] > t["round_start"]) & (t["left"] >= 2),
    "more_pieces": t["pieces"] < limits.topic_pieces,
    "more_words": (t["pieces"] < limits.topic_pieces) & (t["words"] < TOPIC_WORDS),
    "has_topic": t["pieces"] > 0,
    "more_body": t["body"] < t["grant"],
    "has_body": t["body"] > 0,
  }


def allowed_kinds(phase: Phase, holds: Mapping[str, Any]) -> Kind:
  """The kinds that a thread in `phase` may draw, given the facts that hold."""
  kinds = Kind(0)
  for rule in RULES:
    if rule.phase == phase and (not rule.when or bool(holds[rule.when])):
      kinds |= rule.kind
  return kinds


@functools.cache
def allowed_unbounded(phase: Phase, opened: bool = False, begun: bool = False) -> Kind:
  """The kinds that a thread in `phase` may draw where no budget and no cap is near: what validators ask.

  Args:
    opened: a chunk was opened since the last sync.
    begun: the topic has a piece, or the chunk's body an id.
  """
  count = int(begun)
  state = {"left": 10**9, "ends": True, "opened": int(opened), "round_start": 0}
  state |= {"pieces": count, "words": count, "body": count, "grant": 10**9}
  return allowed_kinds(phase, facts(Limits(), state))


def token_kinds(
  vocab_size: int,
  piece: Callable[[int], bytes],
  controls: ControlIds | None,
  stop_ids: Iterable[int],
  special_ids: Iterable[int],
) -> np.ndarray:
  """The kinds of every id; vocab_size uint16, 0 for ids that stand for nothing.

  Args:
    piece: the bytes of an id.
    controls: ids of the marks; None where the model has none.
    stop_ids: ids that end an answer.
    special_ids: the model's special ids, these and the marks included or not.
  """
  special = set(special_ids)
  kinds = np.array(
    [Kind.OTHER if i in special else _text_kind(piece(i)) for i in range(vocab_size)], np.uint16
  )
  for i in stop_ids:
    kinds[i] = Kind.END
  if controls is not None:
    kinds[controls.open] = 0  # never drawn: the interpreter feeds it
    kinds[controls.promise] = Kind.PROMISE
    kinds[controls.close] = Kind.CLOSE
    kinds[controls.sync] = Kind.SYNC
    kinds[list(controls.lens)] = Kind.LEN
  return kinds


def _text_kind(piece: bytes) -> Kind:
  if not piece:
    return Kind(0)
  try:
    text = piece.decode()
  except UnicodeDecodeError:
    return Kind.TEXT  # part of a character: what it becomes is not known here
  word = text.removeprefix(" ")
  if not word or any(c.isspace() or not c.isprintable() for c in word):
    return Kind.TEXT
  return Kind.TEXT | (Kind.WORD if word != text else Kind.TOPIC)
