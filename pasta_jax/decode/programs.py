"""The compiled programs of one engine: everything it will ever run, compiled ahead for one set of shapes.

A prompt of any length runs as pieces of a few fixed sizes, the part of the cache in use is chosen on the
device, and settings are arrays. So the programs do not depend on the requests, and a second prompt never
compiles.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pasta_jax.decode import step
from pasta_jax.decode.state import MAX_STOP_IDS, Admission, State, empty_state, state_shardings
from pasta_jax.model.cache import cache_bytes
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.params import abstract_params, param_bytes
from pasta_jax.model.sharding import param_shardings, replicated

SHORTEST_PREFIX = 128


def piece_sizes(platform: str) -> tuple[int, ...]:
  """Sizes of the pieces in which prompts are run, ascending; each divides the next.

  A CPU is bound by arithmetic at 64 tokens already, so that one size serves; an accelerator reads all its
  weights for every piece, and gets a long one too.
  """
  return (64,) if platform == "cpu" else (128, 1024)


@dataclasses.dataclass(frozen=True)
class Shapes:
  """What the programs are compiled for.

  Attributes:
    batch: B, requests at a time.
    num_slots: S, slots per request.
    steps: most steps in a segment.
    vocab: ids that the tokenizer knows; rows of the embedding beyond them are never drawn.
    dtype: of parameters and cache.
    pieces: sizes of the pieces in which prompts are run, none longer than S.
  """

  batch: int
  num_slots: int
  steps: int
  vocab: int
  dtype: Any
  pieces: tuple[int, ...]

  @property
  def prefixes(self) -> tuple[int, ...]:
    """Attended lengths: powers of two up to S."""
    lengths = []
    n = SHORTEST_PREFIX
    while n < self.num_slots:
      lengths.append(n)
      n *= 2
    return (*lengths, self.num_slots)

  @property
  def prefill_prefixes(self) -> tuple[int, ...]:
    """Every other of `prefixes`: a piece has enough other work to make up for a longer prefix."""
    return self.prefixes[::-2][::-1]


def fit_slots(max_len: int, sizes: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
  """Slots of a cache for `max_len` tokens, and the pieces that fit it: whole pieces, so that padding fits."""
  pieces = tuple(s for s in sizes if s <= max_len) or sizes[:1]
  return -(-max_len // pieces[-1]) * pieces[-1], pieces


def plan_pieces(length: int, sizes: tuple[int, ...]) -> list[tuple[int, int, int]]:
  """Cuts a prompt into pieces: (start, count, padded size), the largest size first."""
  pieces = []
  start = 0
  while start < length:
    left = length - start
    size = min((s for s in sizes if s >= left), default=sizes[-1])
    pieces.append((start, min(left, size), size))
    start += size
  return pieces


class Programs:
  """Compiled `prefill` (one per piece size), `segment`, `make_room`, `stop_rows` and `new_state`.

  The state is donated to every call. Arguments besides parameters and state are explicit device arrays,
  made by `put`.
  """

  def __init__(self, cfg: ModelConfig, shapes: Shapes, mesh: Mesh):
    self.cfg, self.shapes, self.mesh = cfg, shapes, mesh
    self._everywhere = replicated(mesh)
    self._state_shardings = state_shardings(cfg, mesh, shapes.batch)
    params = abstract_params(cfg, shapes.dtype, param_shardings(cfg, mesh))
    state = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      jax.eval_shape(lambda: empty_state(cfg, shapes.batch, shapes.num_slots, shapes.dtype)),
      self._state_shardings,
    )
    builds: dict[Any, Callable[[], Any]] = {
      "new_state": lambda: self._build(
        lambda: empty_state(cfg, shapes.batch, shapes.num_slots, shapes.dtype), 0
      ),
      "segment": lambda: self._build(
        partial(step.segment, cfg, shapes.prefixes, shapes.vocab, shapes.steps), 4, params, state
      ),
      "make_room": lambda: self._build(step.make_room, 1, state),
      "stop_rows": lambda: self._build(
        step.stop_rows, 0, state, self._abstract(np.zeros(shapes.batch, bool))
      ),
    }
    for size in shapes.pieces:
      builds[size] = partial(self._build_prefill, size, params, state)
    compiled = {name: build() for name, build in builds.items()}
    self.new_state = compiled["new_state"]
    self.segment = compiled["segment"]
    self.make_room = compiled["make_room"]
    self.stop_rows = compiled["stop_rows"]
    self._prefill = {size: compiled[size] for size in shapes.pieces}

  def prefill(self, params: Any, state: Any, row: int, prompt: np.ndarray, admission: Admission):
    """Runs a whole prompt through one row, as pieces; returns what the last piece returned."""
    settings = self.put(admission)
    drawn = logprob = None
    for start, count, size in plan_pieces(len(prompt), self.shapes.pieces):
      ids = np.zeros(size, np.int32)
      ids[:count] = prompt[start : start + count]
      last = np.bool_(start + count == len(prompt))
      row_, ids_, start_, count_, last_ = self.put(
        (np.int32(row), ids, np.int32(start), np.int32(count), last)
      )
      state, drawn, logprob = self._prefill[size](params, state, row_, ids_, start_, count_, last_, settings)
    return state, drawn, logprob

  def put(self, tree: Any) -> Any:
    """Host values onto the devices, explicitly."""
    return jax.device_put(tree, self._everywhere)

  def needed_bytes(self) -> int:
    """Bytes of parameters and cache over all devices, if nothing is replicated."""
    s = self.shapes
    return param_bytes(self.cfg, s.dtype) + cache_bytes(self.cfg, s.batch, s.num_slots, s.dtype)

  def _build_prefill(self, size: int, params: Any, state: Any) -> Any:
    ints = self._abstract(np.int32(0))
    admission = Admission(
      limit=ints,
      stop_ids=self._abstract(np.zeros(MAX_STOP_IDS, np.int32)),
      temperature=self._abstract(np.float32(0)),
      top_k=ints,
      top_p=self._abstract(np.float32(0)),
      min_p=self._abstract(np.float32(0)),
      seed=ints,
      logprobs=self._abstract(np.bool_(False)),
    )
    return self._build(
      partial(step.prefill, self.cfg, self.shapes.prefill_prefixes, self.shapes.vocab),
      2,
      params,
      state,
      ints,
      self._abstract(np.zeros(size, np.int32)),
      ints,
      ints,
      self._abstract(np.bool_(False)),
      admission,
    )

  def _build(self, fn: Callable, extras: int, *args: Any) -> Any:
    """Compiles fn, which takes a State and returns one with `extras` more results; the State is donated."""
    donated = [i for i, arg in enumerate(args) if isinstance(arg, State)]
    out = (self._state_shardings, *(self._everywhere,) * extras) if extras else self._state_shardings
    return jax.jit(fn, donate_argnums=donated, out_shardings=out).lower(*args).compile()

  def _abstract(self, x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=self._everywhere)
