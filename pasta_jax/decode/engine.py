"""The engine: requests in, text out, with continuous batching.

The host never waits for a step. It dispatches segment n + 1, then turns the ids of segment n into text while
the device works; a request that ended leaves its row, and the next one enters it between segments.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pasta_jax.decode.admission import check_script, make_admission
from pasta_jax.decode.answer import Answer, Draw
from pasta_jax.decode.parallel import Parallel
from pasta_jax.decode.programs import Programs, Shapes, fit_slots, piece_sizes, step_rows, step_widths
from pasta_jax.decode.requests import Event, LaneEvent, Messages, Request, RequestError, Result
from pasta_jax.decode.state import NO_ID
from pasta_jax.decode.step import Loop, Outputs
from pasta_jax.lang.grammar import token_kinds
from pasta_jax.model.cache import NO_THREAD
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.packed import pack, packs
from pasta_jax.model.params import check_params
from pasta_jax.model.sharding import make_mesh
from pasta_jax.model.tokenizer_ids import IdsTokenizer


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


class Engine:
  """Decodes requests with one model; compiles everything when it is made.

  Args:
    model: anything with `config`, `params` and `tokenizer`, e.g. from `load_model`. `params` may be sharded
      over `mesh`; without a tokenizer (None), requests are ids and the model's makers name no id to stop at.
    batch_size: B, requests decoded at a time.
    max_len: longest prompt and answer together, in tokens; rounded up to whole pieces of a prompt. None:
      2048, or the positions that the model was trained for, if these are fewer.
    segment: most steps between two looks of the host.
    mesh: devices to run on; None: one device.
    lanes: threads of a request that run at a time; 1: the sequential decoder, which masks the marks.
    chunks: chunks that an answer may have at most.
    keep_logits: hand out the logits of every draw in the results; for tests and analysis, large.
    take: take `model.params` over: where weights are packed (on CPU, see model/packed.py) the dict is emptied
      on the way, so that they are not held twice.

  Raises:
    ValueError: parameters that do not fit the config, sizes below 1, a max_len beyond the model's positions,
      a cache that does not fit into memory, or several lanes for a model that has no ids for the marks (see
      model/marks.py).
  """

  def __init__(
    self,
    model: Any,
    *,
    batch_size: int = 1,
    max_len: int | None = None,
    segment: int = 16,
    mesh: Mesh | None = None,
    lanes: int = 1,
    chunks: int = 32,
    keep_logits: bool = False,
    take: bool = False,
  ):
    self.config: ModelConfig = model.config
    longest = self.config.max_len
    max_len = min(2048, longest) if max_len is None else max_len
    sizes = {
      "batch_size": batch_size,
      "max_len": max_len,
      "segment": segment,
      "lanes": lanes,
      "chunks": chunks,
    }
    for name, value in sizes.items():
      if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    if max_len > longest:
      raise ValueError(f"max_len {max_len} exceeds the {longest} positions that the model was trained for")
    self._text = model.tokenizer is not None
    self.tokenizer = model.tokenizer if self._text else IdsTokenizer(self.config.vocab_size)
    check_params(self.config, model.params)
    self.mesh = mesh if mesh is not None else make_mesh()
    dtype = jnp.result_type(model.params["embed"])
    platform = self.mesh.devices.flat[0].platform
    base, pieces = fit_slots(max_len, piece_sizes(platform))
    controls = self.tokenizer.controls
    if lanes == 1:
      loop, threads, room = Loop(segment, keep_logits=keep_logits), 1, 0
    else:
      if controls is None:
        raise ValueError("several lanes need a model with ids for the marks: pass it through with_marks()")
      if not self.tokenizer.stop_ids:
        raise ValueError("several lanes need a model with an id that ends an answer")
      widths = step_widths(lanes, platform, batch_size)
      loop = Loop(
        segment, widths, controls, keep_logits, tuple(self.tokenizer.stop_ids),
        step_rows(widths, batch_size, platform),
      )  # fmt: skip
      threads = chunks + 1
      # A segment fits beside the longest request after compaction, whatever its lanes; `<async>` ids too.
      room = segment * loop.width + chunks
    shapes = Shapes(batch_size, base + room, loop, threads, dtype, pieces)
    self.programs = Programs(self.config, shapes, self.mesh, self._kinds())
    self.params: Any = (
      pack(self.config, model.params, take, shapes.rows) if packs(self.mesh) else model.params
    )
    self.batch_size, self.lanes, self.chunks = batch_size, lanes, chunks
    self.max_len = min(base, longest)

  def _kinds(self) -> np.ndarray:
    t = self.tokenizer
    return token_kinds(t.vocab_size, t.piece, t.controls, t.stop_ids, t.special_ids)

  def encode(self, request: Request) -> np.ndarray:
    """The prompt's ids, int32.

    Raises:
      RequestError: an empty prompt, one too long, ids or messages that do not fit the model, or stop ids or a
        script that cannot be run.
    """
    prompt = request.prompt
    has_ids = not isinstance(prompt, str) and (not len(prompt) or isinstance(prompt[0], int | np.integer))
    if not has_ids and not self._text:
      raise RequestError("the model has no tokenizer; give the prompt as token ids")
    if isinstance(prompt, str):
      if request.chat and self.tokenizer.has_chat_template:
        ids = self.tokenizer.chat([{"role": "user", "content": prompt}])
      else:
        ids = self.tokenizer.encode(prompt, bos=self.tokenizer.add_bos)
    elif not has_ids:
      try:
        ids = self.tokenizer.chat(cast(Messages, prompt))
      except ValueError as e:
        raise RequestError(str(e)) from None
    else:
      ids = list(prompt)
    if not len(ids):
      raise RequestError("the prompt is empty")
    self._check_ids("prompt" if has_ids else "tokenizer and embedding do not belong together: prompt", ids)
    if len(ids) >= self.max_len:
      raise RequestError(
        f"the prompt has {len(ids)} tokens, which leaves no room for an answer in max_len {self.max_len};"
        " shorten it or raise max_len"
      )
    controls = self.tokenizer.controls
    if controls is not None and (found := sorted(set(request.stop_ids) & set(controls.all))):
      raise RequestError(
        f"stop_ids has {found[0]}, the id of a mark of PASTA-LANG; a mark never ends an answer, leave it out"
      )
    stop_ids = request.all_stop_ids(self.tokenizer.stop_ids)
    if (script := request.script) is not None:
      marks = request.marks and self.lanes > 1
      check_script(script, stop_ids, marks, self.chunks, self.max_len - len(ids), self.tokenizer)
      self._check_ids("script", [i for thread in (script.main, *script.chunks) for i in thread])
    return np.asarray(ids, np.int32)

  def _check_ids(self, what: str, ids: Sequence[int]) -> None:
    rows = self.config.vocab_size  # a gather from the embedding does not look
    if (wrong := next((i for i in ids if not 0 <= i < rows), None)) is not None:
      raise RequestError(f"{what} ids must lie in [0, {rows}), got {wrong}")

  def generate(self, requests: Sequence[Request | str], **settings: Any) -> list[Result]:
    """Answers in the order of `requests`.

    Args:
      requests: requests, or plain prompts.
      settings: fields of `Request` for the plain prompts, e.g. `max_new_tokens=64`.

    Raises:
      RequestError: a request that cannot be run; nothing has been run then.
    """
    made = [Request(r, **settings) if isinstance(r, str) else r for r in requests]
    for request in made:
      self.encode(request)
    results: dict[int, Result] = {}
    for event in self.serve(made):
      if event.result is not None:
        results[event.index] = event.result
    return [results[i] for i in range(len(made))]

  def stream(self, request: Request | str, **settings: Any) -> Iterator[Event]:
    """The events of one request, as the text comes."""
    return self.serve([Request(request, **settings) if isinstance(request, str) else request])

  def serve(self, requests: Iterable[Request]) -> Iterator[Event]:
    """Runs requests through the rows as these come free; events of different requests interleave.

    `requests` may be lazy: one is taken when a row is free.

    Raises:
      RequestError: from `encode`, when the request is taken.
    """
    events = _Serving(self).run(iter(requests))
    while True:
      # Around a step of the generator, not the whole: what the caller does with an event is not our affair.
      with jax.transfer_guard("disallow"):
        event = next(events, None)
      if event is None:
        return
      yield event


class _Serving:
  """One call of `serve`: the device state, the rows, and the segment in flight."""

  def __init__(self, engine: Engine):
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
    admission = make_admission(request, limit, stop_ids, marks, self.programs.shapes, engine.tokenizer)
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
    """Compacts the cache where the next segment might not fit, and that frees at least a segment."""
    slots, width = self.programs.shapes.num_slots, self.programs.shapes.loop.width
    if self.cursor + self._reserve <= slots and self.cursor + width <= slots:
      return
    if self.flight is not None:
      landed, self.flight = self.flight, None
      yield from self._finish(landed)
    longest = max((r.length for r in self.rows if r is not None), default=0)
    full = self.cursor + width > slots
    if full or (self.cursor + self._reserve > slots and self.cursor - longest >= self._reserve):
      self.state, cursor = self.programs.make_room(self.state)
      self.cursor = int(jax.device_get(cursor))
