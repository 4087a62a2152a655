"""The engine: requests in, text out; decode/serving.py has the loop that runs them.

The host never waits for a step. It dispatches segment n + 1, then turns the ids of segment n into text while
the device works; a request that ended leaves its row, and the next one enters it between segments.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pasta_jax.decode.admission import check_script
from pasta_jax.decode.programs import Programs, Shapes, fit_slots, piece_sizes, step_rows, step_widths
from pasta_jax.decode.requests import Event, Messages, Request, RequestError, Result
from pasta_jax.decode.serving import Serving
from pasta_jax.decode.step import Loop
from pasta_jax.lang.grammar import token_kinds
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.packed import pack, packs
from pasta_jax.model.params import check_params
from pasta_jax.model.sharding import make_mesh
from pasta_jax.model.tokenizer_ids import IdsTokenizer


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
    self.programs.wait()
    self.batch_size, self.lanes, self.chunks = batch_size, lanes, chunks
    self.promise_bias: tuple[float, float] = getattr(model, "promise_bias", (0.0, 0.0))
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
    serving = Serving(self)
    events = serving.run(iter(requests))
    try:
      while True:
        # Around a step of the generator, not the whole: what the caller does with an event is not our affair.
        with jax.transfer_guard("disallow"):
          event = next(events, None)
        if event is None:
          return
        yield event
    finally:
      serving.wait()
