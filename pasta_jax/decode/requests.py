"""What goes into the engine and what comes out: requests, events, results."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pasta_jax.decode.state import MAX_STOP_IDS
from pasta_jax.lang.grammar import Limits
from pasta_jax.lang.interpreter import FORKS, POSITIONS
from pasta_jax.lang.threads import Threads

if TYPE_CHECKING:
  from pasta_jax.decode.parallel import Parallel

MOST_BIAS = 1000.0  # of a logit: beyond it there is always, or never, a promise

Messages = Sequence[Mapping[str, str]]


def _is_int(x: Any) -> bool:
  return isinstance(x, int) and not isinstance(x, bool)


def _is_number(x: Any) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool)


def nearest(field: str, value: Any, known: Sequence[str]) -> str:
  """What is wrong with a value that is none of `known`, in one line."""
  near = difflib.get_close_matches(str(value), known, n=1)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  return f"{field} must be one of {', '.join(known)}, got {value!r}{hint}"


class RequestError(ValueError):
  """A request that cannot be run, with one line that says why."""


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How ids are drawn.

  Attributes:
    temperature: 0 takes the likeliest id, and so does less than 1e-6; otherwise logits are divided by it.
    top_k: keep the k likeliest ids; 0 keeps all.
    top_p: keep the smallest set of likeliest ids with at least this probability; 1 keeps all.
    min_p: keep ids with at least this fraction of the likeliest one's probability; 0 keeps all.
    seed: of this request; the same seed, prompt and settings give the same text in any batch.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  seed: int = 0

  def __post_init__(self):
    def need(ok: bool, field: str, what: str) -> None:
      if not ok:
        raise RequestError(f"{field} must be {what}, got {getattr(self, field)!r}")

    need(_is_number(self.temperature) and 0 <= self.temperature <= 100, "temperature", "in [0, 100]")
    need(_is_int(self.top_k) and 0 <= self.top_k < 2**31, "top_k", "an integer >= 0")
    need(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "in (0, 1]")
    need(_is_number(self.min_p) and 0 <= self.min_p < 1, "min_p", "in [0, 1)")
    need(_is_int(self.seed) and 0 <= self.seed < 2**31, "seed", "an integer in [0, 2^31)")


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt and how to answer it.

  Attributes:
    prompt: text, chat messages `[{"role": ..., "content": ...}]`, or token ids. Text goes through the
      model's chat template as one user message where there is a template and `chat` is true.
    max_new_tokens: ids to draw at most.
    sampling: see Sampling.
    stop: strings; the text ends before the first of them, in reading order.
    stop_ids: ids that end the main thread, besides the model's own; at most 8 in all, no ids of marks.
    model_stops: the model's own stop ids end the text; false to measure answers of a given length, or to
      name in `stop_ids` those that do.
    chat: see `prompt`.
    logprobs: keep the log-probability of every id drawn.
    marks: the answer may have PASTA-LANG marks, and then runs in parallel lanes; of no effect in an engine
      with one lane.
    fork: "eager" (a chunk starts when its promise closes) or "grouped" (a round's chunks start together).
    positions: how many rotary positions a promise reserves, see the design, section 4: "pred10", "oracle"
      (with `script` only), "fixed", "none" or "max".
    fixed: what positions="fixed" reserves.
    limits: caps on rounds, chunks and topics.
    promise_bias: added to the logit of a promise as long as the answer has no chunk: below 0 fewer answers
      split, above 0 more. One number, or two: for the answer's first id, where the prompt alone decides, and
      for later ones, where the answer's own text does too. None: what the model's adapter says, else 0.
    script: ids to take instead of those drawn, of each thread; the answer ends where they do. For tests and
      measurements: every step is computed in full.
    tag: carried to the result, for the caller.
  """

  prompt: str | Messages | Sequence[int]
  max_new_tokens: int = 256
  sampling: Sampling = Sampling()
  stop: tuple[str, ...] = ()
  stop_ids: tuple[int, ...] = ()
  model_stops: bool = True
  chat: bool = True
  logprobs: bool = False
  marks: bool = True
  fork: str = "eager"
  positions: str = "pred10"
  fixed: int = 64
  limits: Limits = dataclasses.field(default_factory=Limits)
  promise_bias: float | tuple[float, float] | None = None
  script: Threads | None = None
  tag: Any = None

  def __post_init__(self):
    if self.fork not in FORKS:
      raise RequestError(nearest("fork", self.fork, FORKS))
    if self.positions not in POSITIONS:
      raise RequestError(nearest("positions", self.positions, POSITIONS))
    if self.positions == "oracle" and self.script is None:
      raise RequestError('positions="oracle" needs a script: lengths are not known before they are decoded')
    if not _is_int(self.fixed) or not 0 <= self.fixed < 2**16:
      raise RequestError(f"fixed must be an integer in [0, 65536), got {self.fixed!r}")
    if not _is_int(self.max_new_tokens) or self.max_new_tokens < 1:
      raise RequestError(f"max_new_tokens must be an integer >= 1, got {self.max_new_tokens!r}")
    if self.promise_bias is not None:
      both: Any = (self.promise_bias,) * 2 if _is_number(self.promise_bias) else self.promise_bias
      good = isinstance(both, tuple) and len(both) == 2 and all(map(_is_number, both))
      if not good or not all(abs(bias) <= MOST_BIAS for bias in both):
        what = f"one or two numbers within {MOST_BIAS:g}"
        raise RequestError(f"promise_bias must be {what}, got {self.promise_bias!r}")
      object.__setattr__(self, "promise_bias", both)
    if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
      raise RequestError(f"stop must be a sequence of non-empty strings, got {self.stop!r}")

  def all_stop_ids(self, model_stop_ids: Sequence[int]) -> list[int]:
    """The ids that end this request: its own, and the model's unless it ignores them."""
    ids = list(dict.fromkeys([*(model_stop_ids if self.model_stops else ()), *self.stop_ids]))
    if len(ids) > MAX_STOP_IDS:
      raise RequestError(f"a request has {len(ids)} stop ids, at most {MAX_STOP_IDS} are supported")
    return ids


@dataclasses.dataclass(frozen=True)
class Result:
  """An answer.

  Attributes:
    text: in reading order, without the stop id or string that ended it.
    ids: ids drawn, as they came; the stop id included.
    finish_reason: "stop" (a stop id or string) or "length" (max_new_tokens, or no slots left).
    prompt_tokens: ids of the prompt.
    seconds: from entering a row to the last id, as the host saw it.
    first_token_seconds: from entering a row to the first id.
    logprobs: of each of `ids`, if asked for.
    request: what was asked.
    parallel: the document and how it was decoded; None where marks were not allowed.
    logits: of the draws in `ids`, where the engine keeps them; float32, one row each.
  """

  text: str
  ids: tuple[int, ...]
  finish_reason: str
  prompt_tokens: int
  seconds: float
  first_token_seconds: float
  logprobs: tuple[float, ...] | None
  request: Request
  parallel: "Parallel | None" = None
  logits: Any = None

  @property
  def tokens(self) -> int:
    return len(self.ids)


@dataclasses.dataclass(frozen=True)
class LaneEvent:
  """What happened on a lane.

  Attributes:
    step: of this request, from 1; 0 is the draw after the prompt.
    lane: in which lane.
    thread: 0 is the main thread; of an "open" event, the chunk that opens.
    kind: "text", "open" (a promise closed: a chunk runs or waits for a lane), "close" (a chunk ended),
      "sync" (the main thread waits), "end" (the main thread ended).
    topic: of the chunk.
    text: what was gained.
    ids: of the text that stands between two marks, or of the chunk's body, so far.
    promised: of an "open" event, the ids that the chunk was promised to take.
    width: lanes that the step ran with.
    drawn: ids that the request had drawn by then, this one included.
  """

  step: int
  lane: int
  thread: int
  kind: str
  topic: str = ""
  text: str = ""
  ids: int = 0
  promised: int = 0
  width: int = 1
  drawn: int = 0


@dataclasses.dataclass(frozen=True)
class Event:
  """Text that a request just gained; `result` is set on its last event.

  Attributes:
    index: the request's place in the order in which the engine took them, from 0.
    text: text gained in reading order, may be empty: text of later chunks is held back until it is due.
    result: see Result.
    lanes: what happened on each lane, as it came.
  """

  index: int
  text: str
  result: Result | None = None
  lanes: tuple[LaneEvent, ...] = ()
