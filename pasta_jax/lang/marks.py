"""The marks of PASTA-LANG: their spelling, their ids, and the lengths a promise can name."""

import dataclasses
from collections.abc import Sequence

PROMISE = "<promise>"
ASYNC = "<async>"
END_ASYNC = "</async>"
SYNC = "<sync/>"

LENGTH_STEP = 10
LENGTHS = tuple(range(LENGTH_STEP, 320 + LENGTH_STEP, LENGTH_STEP))  # tokens; 10 to 320

# One id per mark, always in this order.
MARKS: tuple[str, ...] = (PROMISE, ASYNC, END_ASYNC, SYNC, *(f"<len:{n}>" for n in LENGTHS))


def rounded(tokens: int) -> int:
  """The length that promises `tokens` tokens: rounded up to tens, within 10 to 320."""
  return LENGTHS[min(max(-(-tokens // LENGTH_STEP), 1), len(LENGTHS)) - 1]


@dataclasses.dataclass(frozen=True)
class ControlIds:
  """The token ids that stand for the marks in one model's vocabulary.

  Attributes:
    promise: id of `<promise>`.
    open: id of `<async>`.
    close: id of `</async>`.
    sync: id of `<sync/>`.
    lens: ids of `<len:10>` ... `<len:320>`, in this order.
  """

  promise: int
  open: int
  close: int
  sync: int
  lens: tuple[int, ...]

  def __post_init__(self):
    if len(self.lens) != len(LENGTHS):
      raise ValueError(f"ControlIds needs {len(LENGTHS)} length ids, got {len(self.lens)}")
    if len(set(self.all)) != len(MARKS):
      raise ValueError("ControlIds must be distinct")

  @classmethod
  def of(cls, ids: Sequence[int]) -> "ControlIds":
    """The control ids from `len(MARKS)` ids in the order of `MARKS`."""
    if len(ids) != len(MARKS):
      raise ValueError(f"expected {len(MARKS)} control ids, got {len(ids)}")
    promise, start, close, sync, *lens = ids
    return cls(promise, start, close, sync, lens=tuple(lens))

  @property
  def all(self) -> tuple[int, ...]:
    """Every control id, in the order of `MARKS`."""
    return (self.promise, self.open, self.close, self.sync, *self.lens)

  def length_id(self, tokens: int) -> int:
    """The length id for a chunk of `tokens` tokens: rounded up to tens, within 10 to 320."""
    return self.lens[LENGTHS.index(rounded(tokens))]

  def length(self, length_id: int) -> int:
    """The tokens that a length id promises."""
    return LENGTHS[self.lens.index(length_id)]
