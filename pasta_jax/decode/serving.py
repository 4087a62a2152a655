"""The loop behind `Engine.serve`: rows of requests, and one segment of steps in flight."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pasta_jax.decode.admission import make_admission
from pasta_jax.decode.answer import Answer, Draw
from pasta_jax.decode.parallel import Parallel
from pasta_jax.decode.requests import Event, LaneEvent, Request, Result
from pasta_jax.decode.state import NO_ID
from pasta_jax.decode.step import Outputs
from pasta_jax.model.cache import NO_THREAD

if TYPE_CHECKING:
  from pasta_jax.decode.engine import Engine


@dataclasses.dataclass
class _Running:
  """A request in a row, as the host knows it."""

  index: int
  request: Request
  prompt_tokens: int
  limit: int
  stop_ids: frozenset[int]
  answer: Answer
  marks: bool
  started: float
  first: float = 0.0
  steps: int = 0
  length: int = 0  # slots in use
  logits: list[np.ndarray] = dataclasses.field(default_factory=list)
  done: bool = False

  def take(self, draw: Draw) -> tuple[str, list[LaneEvent]]:
    """Adds what a lane drew; returns the text gained and what happened."""
    if not self.answer.draws:
      self.first = time.perf_counter() - self.started
    self.length += 1
    return self.answer.take(draw, self.stop_ids)

  def logprob(self, value: Any) -> float:
    """Of a draw; the device computes them for all rows where one wants them."""
    return float(value) if self.request.logprobs else 0.0

  def ended(self) -> str | None:
    """Why the answer has ended, as far as the ids tell; an answer with marks ends when the device says so."""
    if self.answer.stopped:
      return "stop"
    if self.marks:
      return None
    if self.answer.end is not None:
      return "stop"
    return "length" if len(self.answer.draws) >= self.limit else None

  def result(self, reason: str, engine: "Engine") -> Result:
    draws = [d for d in self.answer.draws if d.token is not None]
    request = self.request
    return Result(
      text=self.answer.text,
      ids=tuple(d.token for d in draws if d.token is not None),
      finish_reason=reason,
      prompt_tokens=self.prompt_tokens,
      seconds=time.perf_counter() - self.started,
      first_token_seconds=self.first,
      logprobs=tuple(d.logprob for d in draws) if request.logprobs else None,
      request=request,
      parallel=Parallel.of(self.answer, request, reason == "length", engine.tokenizer)
      if self.marks
      else None,
      logits=np.stack(self.logits) if self.logits else None,
    )


@dataclasses.dataclass(frozen=True)
class _Segment:
  """Outputs of a dispatched segment (device arrays that may not be ready), and who was in which row."""

  outputs: Outputs
  rows: tuple[_Running | None, ...]


class Serving:
  """One call of `serve`: the device state, the rows, and the segment in flight."""

  def __init__(self, engine: "Engine"):
    self.engine, self.programs = engine, engine.programs
    self.state = engine.programs.new_state()
    self.rows: list[_Running | None] = [None] * engine.batch_size
    self.taken = 0
    self.width = 1  # lanes of the last step seen
    self.cursor = 0  # exact after `_finish`, an upper bound while a segment is in flight
    self.flight: _Segment | None = None

  def run(self, source: Iterator[Request]) -> Iterator[Event]:
    more = True
    while True:
      firsts = []
      for row, running in enumerate(self.rows):
        if running is None and more:
          with jax.transfer_guard("allow"):  # the caller's code again
            request = next(source, None)
          if request is None:
            more = False
          else:
            firsts.append(self._admit(row, request))
      if not any(self.rows) and self.flight is None:
        return
      yield from self._make_room()
      landed, self.flight = self.flight, self._dispatch()
      if landed is not None:
        yield from self._finish(landed)
      for running, first in firsts:
        yield from self._first(running, *jax.device_get(first))

  def wait(self) -> None:
    """Until nothing is computed any more: threads of a device that outlive the interpreter abort it."""
    with contextlib.suppress(RuntimeError):  # what went wrong there has been told, or nobody asked for it
      jax.block_until_ready(self.state)

  def _first(self, running: _Running, drawn: Any, logprob: Any, logits: Any) -> Iterator[Event]:
    """The draw after the prompt."""
    if self.programs.shapes.loop.keep_logits:
      running.logits.append(logits)
    yield from self._take(running, [Draw(0, 1, 0, 0, int(drawn), running.logprob(logprob))])

  def _admit(self, row: int, request: Request) -> tuple[_Running, tuple[Any, ...]]:
    engine = self.engine
    started = time.perf_counter()
    prompt = engine.encode(request)
    stop_ids = request.all_stop_ids(engine.tokenizer.stop_ids)
    marks = request.marks and engine.lanes > 1
    limit = min(request.max_new_tokens, engine.max_len - len(prompt))
    running = _Running(
      index=self.taken,
      request=request,
      prompt_tokens=len(prompt),
      limit=limit,
      # With marks, what the grammar lets end an answer does: by its budget any may, named or not.
      stop_ids=frozenset(stop_ids) | frozenset(engine.tokenizer.stop_ids if marks else ()),
      answer=Answer(engine.tokenizer, request, engine.tokenizer.controls if marks else None),
      marks=marks,
      started=started,
      length=len(prompt),
    )
    admission = make_admission(
      request, limit, stop_ids, marks, self.programs.shapes, engine.tokenizer, engine.promise_bias
    )
    self.state, *first = self.programs.prefill(engine.params, self.state, row, prompt, admission)
    self.cursor = max(self.cursor, len(prompt))
    self.rows[row] = running
    self.taken += 1
    return running, tuple(first)

  def _dispatch(self) -> _Segment | None:
    if not any(self.rows):
      return None
    self.state, outputs = self.programs.segment(self.engine.params, self.state)
    self.cursor += self._reserve
    return _Segment(outputs, tuple(self.rows))

  @property
  def _reserve(self) -> int:
    """Slots that the next segment takes, if it runs as wide as the last one did."""
    return self.programs.shapes.loop.steps * self.width

  def _finish(self, segment: _Segment) -> Iterator[Event]:
    out: Outputs = jax.device_get(segment.outputs)
    steps = int(out.steps)
    if steps:
      self.width = int(out.widths[:steps].max())
    in_flight = self._reserve if self.flight is not None else 0
    longest = max((r.prompt_tokens for r in self.rows if r is not None), default=0)
    self.cursor = max(int(out.cursor), longest) + in_flight
    for row, running in enumerate(segment.rows):
      if running is not None and not running.done:
        yield from self._land(running, row, out, steps)

  def _land(self, running: _Running, row: int, out: Outputs, steps: int) -> Iterator[Event]:
    """What one row drew in a segment, one event a step."""
    for i in range(steps):
      running.steps += 1
      draws = [
        Draw(running.steps, int(out.widths[i]), lane, int(thread), None if token == NO_ID else int(token),
             running.logprob(logprob))
        for lane, (thread, token, logprob) in enumerate(
          zip(out.threads[row, i], out.ids[row, i], out.logprobs[row, i], strict=True)
        )
        if thread != NO_THREAD
      ]  # fmt: skip
      if self.programs.shapes.loop.keep_logits:
        running.logits += [np.asarray(out.logits[row, i, d.lane]) for d in draws if d.token is not None]
      yield from self._take(running, draws)
      if running.done:
        return
    if running.marks and not out.active[row]:
      yield from self._end(running, "length" if out.left[row] <= 0 else "stop")

  def _take(self, running: _Running, draws: list[Draw]) -> Iterator[Event]:
    gained, events = "", []
    for draw in draws:
      text, happened = running.take(draw)
      gained += text
      events += happened
    reason = running.ended()
    if reason is not None:
      yield from self._end(running, reason, gained, events)
    elif gained or events:
      yield Event(running.index, gained, lanes=tuple(events))

  def _end(
    self, running: _Running, reason: str, gained: str = "", events: Sequence[LaneEvent] = ()
  ) -> Iterator[Event]:
    before = running.answer.stopped
    gained += running.answer.finish()
    if running.answer.stopped and not before:
      reason = "stop"
    running.done = True
    row = self.rows.index(running)
    self.rows[row] = None
    if running.answer.stopped:  # a stop string: the device knows of ids only
      stop = np.zeros(len(self.rows), bool)
      stop[row] = True
      self.state = self.programs.stop_rows(self.state, self.programs.put(stop))
    yield Event(running.index, gained, running.result(reason, self.engine), tuple(events))

  def _make_room(self) -> Iterator[Event]:
    """Compacts the cache where the next segment might not fit, and that frees at least a segment; or where
    it pays."""
    slots, width = self.programs.shapes.num_slots, self.programs.shapes.loop.width
    fits = self.cursor + self._reserve <= slots and self.cursor + width <= slots
    if fits and not self._attends_too_far():
      return
    if self.flight is not None:
      landed, self.flight = self.flight, None
      yield from self._finish(landed)
    longest = max((r.length for r in self.rows if r is not None), default=0)
    full = self.cursor + width > slots
    frees = self.cursor + self._reserve > slots and self.cursor - longest >= self._reserve
    if full or frees or self._attends_too_far():
      self.state, cursor = self.programs.make_room(self.state)
      self.cursor = int(jax.device_get(cursor))

  def _attends_too_far(self) -> bool:
    """Whether a segment would attend over a shorter part of the cache, were that compact.

    All rows write at one cursor, so that requests which are long done, or narrower than others, leave gaps. A
    CPU takes longer to read these for a segment than to close them (docs/performance.md).
    """
    if not self.programs.on_cpu:
      return False
    longest = max((r.length for r in self.rows if r is not None), default=0)
    now, then = (sum(n < at for n in self.programs.lengths) for at in (self.cursor, longest + self._reserve))
    return then < now
