"""The engine: requests in, text out, with continuous batching.

The host never waits for a step. It dispatches segment n + 1, then turns the ids of segment n into text while
the device works; a request that ended leaves its row, and the next one enters it between segments.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pasta_jax.decode.programs import Programs, Shapes, fit_slots, piece_sizes
from pasta_jax.decode.requests import Event, Request, RequestError, Result
from pasta_jax.decode.state import MAX_STOP_IDS, NO_ID, Admission
from pasta_jax.decode.text import StopText
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.params import Params, check_params
from pasta_jax.model.sharding import make_mesh


@dataclasses.dataclass
class _Running:
  """A request in a row, as the host knows it."""

  index: int
  request: Request
  prompt_tokens: int
  limit: int
  stop_ids: frozenset[int]
  text: StopText
  started: float
  first: float = 0.0
  ids: list[int] = dataclasses.field(default_factory=list)
  logprobs: list[float] = dataclasses.field(default_factory=list)
  done: bool = False

  @property
  def length(self) -> int:
    return self.prompt_tokens + len(self.ids)

  def take(self, token: int, logprob: float) -> tuple[str, str | None]:
    """Adds an id; returns the text gained, and the reason if this ends the answer."""
    if not self.ids:
      self.first = time.perf_counter() - self.started
    self.ids.append(token)
    self.logprobs.append(logprob)
    if token in self.stop_ids:
      return self.text.flush(), "stop"
    gained = self.text.push(token)
    if self.text.stopped:
      return gained, "stop"
    if len(self.ids) >= self.limit:
      gained += self.text.flush()
      return gained, "stop" if self.text.stopped else "length"
    return gained, None

  def result(self, reason: str) -> Result:
    return Result(
      text=self.text.text,
      ids=tuple(self.ids),
      finish_reason=reason,
      prompt_tokens=self.prompt_tokens,
      seconds=time.perf_counter() - self.started,
      first_token_seconds=self.first,
      logprobs=tuple(self.logprobs) if self.request.logprobs else None,
      request=self.request,
    )


@dataclasses.dataclass(frozen=True)
class _Segment:
  """Outputs of a dispatched segment (device arrays that may not be ready), and who was in which row."""

  outputs: tuple[jax.Array, ...]
  rows: tuple[_Running | None, ...]


class Engine:
  """Decodes requests with one model; compiles everything when it is made.

  Args:
    model: anything with `config`, `params` and `tokenizer`, e.g. from `load_model`. `params` may be sharded
      over `mesh`.
    batch_size: B, requests decoded at a time.
    max_len: longest prompt and answer together, in tokens; rounded up to whole pieces of a prompt.
    segment: most steps between two looks of the host.
    mesh: devices to run on; None: one device.

  Raises:
    ValueError: parameters that do not fit the config, or sizes below 1.
  """

  def __init__(
    self, model: Any, *, batch_size: int = 1, max_len: int = 2048, segment: int = 16, mesh: Mesh | None = None
  ):
    for name, value in (("batch_size", batch_size), ("max_len", max_len), ("segment", segment)):
      if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    self.config: ModelConfig = model.config
    self.tokenizer = model.tokenizer
    self.params: Params = model.params
    check_params(self.config, self.params)
    self.mesh = mesh if mesh is not None else make_mesh()
    vocab = min(self.tokenizer.vocab_size, self.config.vocab_size)
    dtype = jnp.result_type(self.params["embed"])
    slots, pieces = fit_slots(max_len, piece_sizes(self.mesh.devices.flat[0].platform))
    shapes = Shapes(batch_size, slots, segment, vocab, dtype, pieces)
    self.programs = Programs(self.config, shapes, self.mesh)
    self.batch_size, self.max_len = batch_size, shapes.num_slots

  def encode(self, request: Request) -> np.ndarray:
    """The prompt's ids, int32.

    Raises:
      RequestError: an empty prompt, one too long, or ids or messages that do not fit the model.
    """
    prompt = request.prompt
    if isinstance(prompt, str):
      if request.chat and self.tokenizer.has_chat_template:
        ids = self.tokenizer.chat([{"role": "user", "content": prompt}])
      else:
        ids = self.tokenizer.encode(prompt, bos=self.tokenizer.add_bos)
    elif len(prompt) and not isinstance(prompt[0], int | np.integer):
      try:
        ids = self.tokenizer.chat(prompt)
      except ValueError as e:
        raise RequestError(str(e)) from None
    else:
      ids = list(prompt)
      if any(not 0 <= i < self.config.vocab_size for i in ids):
        raise RequestError(f"prompt ids must lie in [0, {self.config.vocab_size})")
    if not len(ids):
      raise RequestError("the prompt is empty")
    if len(ids) >= self.max_len:
      raise RequestError(
        f"the prompt has {len(ids)} tokens, which leaves no room for an answer in max_len {self.max_len};"
        " shorten it or raise max_len"
      )
    return np.asarray(ids, np.int32)

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
    with jax.transfer_guard("disallow"):
      yield from _Serving(self).run(iter(requests))


class _Serving:
  """One call of `serve`: the device state, the rows, and the segment in flight."""

  def __init__(self, engine: Engine):
    self.engine, self.programs = engine, engine.programs
    self.state = engine.programs.new_state()
    self.rows: list[_Running | None] = [None] * engine.batch_size
    self.taken = 0
    self.cursor = 0  # exact after `_finish`, an upper bound while a segment is in flight
    self.flight: _Segment | None = None

  def run(self, source: Iterator[Request]) -> Iterator[Event]:
    more = True
    while True:
      firsts = []
      for row, running in enumerate(self.rows):
        if running is None and more:
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
      for running, drawn, logprob in firsts:
        yield from self._take(running, int(jax.device_get(drawn)), float(jax.device_get(logprob)))

  def _admit(self, row: int, request: Request) -> tuple[_Running, Any, Any]:
    engine = self.engine
    started = time.perf_counter()
    prompt = engine.encode(request)
    limit = min(request.max_new_tokens, engine.max_len - len(prompt))
    stop_ids = request.all_stop_ids(engine.tokenizer.stop_ids)
    running = _Running(
      index=self.taken,
      request=request,
      prompt_tokens=len(prompt),
      limit=limit,
      stop_ids=frozenset(stop_ids),
      text=StopText(engine.tokenizer.stream(), request.stop),
      started=started,
    )
    s = request.sampling
    padded = np.full(MAX_STOP_IDS, NO_ID, np.int32)
    padded[: len(stop_ids)] = stop_ids
    admission = Admission(
      limit=np.int32(limit),
      stop_ids=padded,
      temperature=np.float32(s.temperature),
      top_k=np.int32(s.top_k),
      top_p=np.float32(s.top_p),
      min_p=np.float32(s.min_p),
      seed=np.int32(s.seed),
      logprobs=np.bool_(request.logprobs),
    )
    self.state, drawn, logprob = self.programs.prefill(engine.params, self.state, row, prompt, admission)
    self.cursor = max(self.cursor, len(prompt))
    self.rows[row] = running
    self.taken += 1
    return running, drawn, logprob

  def _dispatch(self) -> _Segment | None:
    if not any(self.rows):
      return None
    self.state, *outputs = self.programs.segment(self.engine.params, self.state)
    self.cursor += self.programs.shapes.steps
    return _Segment(tuple(outputs), tuple(self.rows))

  def _finish(self, segment: _Segment) -> Iterator[Event]:
    ids, logprobs, steps, cursor = jax.device_get(segment.outputs)
    in_flight = self.programs.shapes.steps if self.flight is not None else 0
    longest = max((r.prompt_tokens for r in self.rows if r is not None), default=0)
    self.cursor = max(int(cursor), longest) + in_flight
    for row, running in enumerate(segment.rows):
      if running is None:
        continue
      for token, logprob in zip(ids[row, : int(steps)], logprobs[row], strict=False):
        if running.done or token == NO_ID:
          break
        yield from self._take(running, int(token), float(logprob))

  def _take(self, running: _Running, token: int, logprob: float) -> Iterator[Event]:
    gained, reason = running.take(token, logprob)
    if reason is None:
      if gained:
        yield Event(running.index, gained)
      return
    running.done = True
    row = self.rows.index(running)
    self.rows[row] = None
    if running.text.stopped:  # a stop string: the device knows of ids only
      stop = np.zeros(len(self.rows), bool)
      stop[row] = True
      self.state = self.programs.stop_rows(self.state, self.programs.put(stop))
    yield Event(running.index, gained, running.result(reason))

  def _make_room(self) -> Iterator[Event]:
    """Compacts the cache where the next segment might not fit, and that frees at least a segment."""
    steps, slots = self.programs.shapes.steps, self.engine.max_len
    if self.cursor + steps <= slots:
      return
    if self.flight is not None:
      landed, self.flight = self.flight, None
      yield from self._finish(landed)
    longest = max((r.length for r in self.rows if r is not None), default=0)
    if self.cursor >= slots or (self.cursor + steps > slots and self.cursor - longest >= steps):
      self.state, cursor = self.programs.make_room(self.state)
      self.cursor = int(jax.device_get(cursor))
