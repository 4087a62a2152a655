"""The interface of annotators: a prompt and its answer in, a document or a rejection with a reason out."""

import dataclasses
from typing import Protocol

from pasta_jax.lang.document import Document

# Why an answer was not annotated. The report counts these names; docs/annotation.md explains them.
REASONS = {
  "bad_row": "the input line is no row with a prompt and an answer",
  "empty_reply": "the model's reply holds no text",
  "refused": "the endpoint's content filter stopped the reply",
  "cut_off": "the reply ended at its token limit",
  "bad_request": "the endpoint refused this row's request (HTTP 400, 413, 422)",
  "broken_marks": "the marks of the reply cannot be repaired into a document",
  "text_changed": "the reply's text is not the answer's",
  "unanswered": "no usable reply in all attempts, and --give_up",
}


@dataclasses.dataclass(frozen=True)
class Usage:
  """Whole replies, usable or not, and their tokens as the endpoint counted them."""

  requests: int = 0
  input_tokens: int = 0
  output_tokens: int = 0

  def __bool__(self) -> bool:
    return self != Usage()

  def __add__(self, other: "Usage") -> "Usage":
    return Usage(
      self.requests + other.requests,
      self.input_tokens + other.input_tokens,
      self.output_tokens + other.output_tokens,
    )


def charge(error: BaseException, usage: Usage) -> None:
  """Adds to what an error says was spent before it; also a cancellation has its price."""
  error.usage = charged(error) + usage  # type: ignore[attr-defined]


def charged(error: BaseException) -> Usage:
  """What was spent on a row before an error ended it."""
  return getattr(error, "usage", Usage())


@dataclasses.dataclass(frozen=True)
class Annotation:
  """A document of an answer.

  Attributes:
    document: its `plain` is the normalised answer, byte for byte.
    repairs: names of what had to be mended, in order.
    usage: what it took.
  """

  document: Document
  repairs: tuple[str, ...] = ()
  usage: Usage = Usage()


@dataclasses.dataclass(frozen=True)
class Rejection:
  """An answer that was not annotated.

  Attributes:
    reason: one of `REASONS`.
    detail: one line for people.
    usage: what it took.
  """

  reason: str
  detail: str
  usage: Usage = Usage()

  def __post_init__(self):
    if self.reason not in REASONS:
      raise ValueError(f"{self.reason!r} is not one of {', '.join(REASONS)}")


class Annotator(Protocol):
  """Makes documents of answers."""

  @property
  def name(self) -> str:
    """What annotated rows carry as "annotator"."""

  async def annotate(self, prompt: str, answer: str) -> Annotation | Rejection:
    """Annotates one answer.

    Args:
      prompt: what the answer replies to.
      answer: normalised (see `normal.normalise`).

    Raises:
      chat.RowFailed: the endpoint gave no verdict; the row can be tried again later.
      chat.EndpointError: no row will succeed with these settings.
    Of either, and of a cancellation, `charged` tells what it took.
    """
