"""The jitted pieces of decoding: prefill of a row, a segment of steps, room in the cache, rows that stop.

The sequential decoder is this loop with one lane per row, which runs the main thread, and without the marks.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from pasta_jax.decode import interpreter, sequential
from pasta_jax.decode.forward import Model, forward_lanes
from pasta_jax.decode.interpreter import Step
from pasta_jax.decode.lanes import Gathered, gather_live, main_lanes
from pasta_jax.decode.sampling import sample
from pasta_jax.decode.state import NO_ID, Admission, Rows, State, Threads
from pasta_jax.lang.grammar import Phase
from pasta_jax.lang.marks import ControlIds
from pasta_jax.model import transformer
from pasta_jax.model.cache import NO_THREAD, compact, dead_slots
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.params import Params


@dataclasses.dataclass(frozen=True)
class Loop:
  """What a segment is compiled for.

  Attributes:
    steps: most steps in a segment.
    widths: lanes of the compiled steps, ascending.
    controls: ids of the marks; None: no request of this loop may have marks, and `widths` is (1,).
    keep_logits: hand out the logits of every lane and step, for tests and analysis.
    stop_ids: the model's own ids that end an answer, of which a request may name some only.
    rows: for each width, ascending numbers of lanes over all requests that get steps of their own, with so
      many rows in matrix products; beyond the last of them all lanes are computed. Empty: none.
  """

  steps: int
  widths: tuple[int, ...] = (1,)
  controls: ControlIds | None = None
  keep_logits: bool = False
  stop_ids: tuple[int, ...] = ()
  rows: tuple[tuple[int, ...], ...] = ()

  @property
  def width(self) -> int:
    """The widest step."""
    return self.widths[-1]

  @property
  def shapes(self) -> tuple[tuple[int, int | None], ...]:
    """The compiled steps in the order in which they are tried: width, and rows where they are limited."""
    rows = self.rows or ((),) * len(self.widths)
    return tuple((w, r) for w, limits in zip(self.widths, rows, strict=True) for r in (*limits, None))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
  """What a segment tells the host; I steps at most.

  Attributes:
    ids: BxIxW int32, drawn by each lane; NO_ID where none was.
    threads: BxIxW int32, the thread of each lane; NO_THREAD where it had none.
    logprobs: BxIxW float32.
    widths: I int32, lanes that each step ran with.
    steps: scalar int32, steps that were run.
    cursor: scalar int32.
    left: B int32, ids left of each request's budget.
    active: B bool.
    logits: BxIxWxV float32, V being 0 unless they are kept.
  """

  ids: jax.Array
  threads: jax.Array
  logprobs: jax.Array
  widths: jax.Array
  steps: jax.Array
  cursor: jax.Array
  left: jax.Array
  active: jax.Array
  logits: jax.Array


def _plan(loop: Loop, rows: Rows) -> tuple[Rows, Step]:
  if loop.controls is None:
    return sequential.plan(rows)
  return interpreter.plan(rows, loop.controls, loop.width)


def _draw(
  loop: Loop, rows: Rows, step: Step, kinds: jax.Array, logits: jax.Array, among: Gathered | None = None
) -> tuple[jax.Array, jax.Array]:
  """Draws an id per lane; ids and log-probabilities, BxW each.

  Args:
    step: of W lanes.
    kinds: V int32, of every id.
    logits: BxWxV, or 1xRxV of gathered lanes.
    among: those lanes.
  """
  b, w = step.lanes.ids.shape
  v = logits.shape[-1]
  if loop.controls is None:
    may, index = sequential.allowed_kinds(rows), rows.threads.index
  else:
    may = interpreter.allowed_kinds(rows, step, loop.controls)
    index = interpreter.draw_indices(rows, step)

  def flat(x: jax.Array) -> jax.Array:
    """B or BxW -> N, the rows of the logits."""
    x = jnp.broadcast_to(x if x.ndim > 1 else x[:, None], (b, w))
    return x.reshape(b * w) if among is None else among.rows(x)[0]

  def lanes(x: jax.Array) -> jax.Array:
    return x.reshape(b, w) if among is None else among.lanes(x[None], b)

  allowed = (kinds[None, :] & flat(may)[:, None]) != 0
  added = None
  if loop.controls is not None:
    ids = jnp.arange(v, dtype=jnp.int32)
    bias = flat(interpreter.promise_bias(rows))
    added = jnp.where((ids == loop.controls.promise)[None, :], bias[:, None], 0.0)
    if len(loop.stop_ids) > 1:
      for stop, unnamed in zip(loop.stop_ids, interpreter.unnamed(rows, loop.stop_ids), strict=True):
        allowed &= ~(flat(unnamed)[:, None] & (ids == stop)[None, :])
  with jax.named_scope("sample"):
    drawn, logprobs = sample(
      logits.reshape(-1, v),
      jax.tree.map(flat, rows.sampling),
      flat(step.lanes.thread),
      flat(index),
      flat(step.lanes.live),
      allowed,
      added,
    )
  return interpreter.scripted(rows, step, lanes(drawn)), lanes(logprobs)


def _apply(loop: Loop, rows: Rows, step: Step, drawn: jax.Array, kinds: jax.Array) -> tuple[Rows, jax.Array]:
  if loop.controls is None:
    return sequential.apply(rows, step, drawn)
  return interpreter.apply(rows, step, drawn, kinds, loop.controls)


def prefill(
  cfg: ModelConfig,
  loop: Loop,
  lengths: Sequence[int],
  params: Params,
  kinds: jax.Array,
  state: State,
  row: jax.Array,
  ids: jax.Array,
  start: jax.Array,
  count: jax.Array,
  last: jax.Array,
  admission: Admission,
  least_rows: int = 1,
) -> tuple[State, jax.Array, jax.Array, jax.Array]:
  """Runs a piece of a prompt through one row; with the last piece, draws the first id and starts the row.

  Args:
    kinds: V int32, of every id.
    row: scalar int32.
    ids: C int32, padded.
    start: scalar int32, tokens of this prompt that earlier pieces ran; 0 clears the row.
    count: scalar int32, tokens in `ids` that count.
    last: scalar bool.
    admission: the request's settings.
    least_rows: see forward_lanes.

  Returns:
    The state, and the first id, its log-probability and its logits (meaningless unless `last`).
  """
  c = ids.shape[0]
  offset = jnp.arange(c, dtype=jnp.int32)[None]
  batch = state.rows.left.shape[0]
  mine = jnp.arange(batch) == row
  fresh = mine & (start == 0)
  slots = jax.tree.map(
    lambda old, dead: jnp.where(fresh[:, None], dead, old),
    state.cache.slots,
    dead_slots(batch, state.cache.num_slots),
  )
  lanes = main_lanes(ids[None], start + offset, offset < count)
  cache = dataclasses.replace(state.cache, slots=slots)
  hidden, cache = forward_lanes(cfg, params, cache, lanes, start, lengths, row)
  few = min(least_rows, c)
  from_ = jnp.minimum(count - 1, c - few)
  hidden = jax.lax.dynamic_slice_in_dim(hidden, from_, few, axis=1)
  logits = transformer.logits(cfg, params, hidden)
  logits_1x1xV = jax.lax.dynamic_slice_in_dim(logits, count - 1 - from_, 1, axis=1)

  only = _admitted(state.rows, admission, start + count)
  # The prompt's last token is the one lane of a step of this row alone.
  step = Step(
    lanes=main_lanes(ids[:1][None], (start + count - 1)[None, None], last[None, None]),
    who=(jnp.arange(only.threads.index.shape[1]) == 0)[None, None, :] & last,
    joins=jnp.zeros((1,), bool),
    after=only.opened,
    upto=only.opened,
  )
  drawn, logprob = _draw(loop, only, step, kinds, logits_1x1xV)
  only, drawn = _apply(loop, only, step, drawn, kinds)
  only = dataclasses.replace(only, active=only.active & last)

  def put(old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(mine.reshape((-1,) + (1,) * (old.ndim - 1)), new.astype(old.dtype), old)

  rows = jax.tree.map(put, state.rows, only)
  cursor = jnp.maximum(state.cursor, start + count)
  # With nobody else in the cache the cursor goes back to this prompt's end.
  alone = ~jnp.any(rows.active & ~mine)
  cursor = jnp.where(alone, start + count, cursor)
  return State(cache=cache, cursor=cursor, rows=rows), drawn[0, 0], logprob[0, 0], logits_1x1xV[0, 0]


def _admitted(rows: Rows, admission: Admission, length: jax.Array) -> Rows:
  """A row of a request whose prompt has `length` tokens in the cache; Rows of 1."""
  one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), rows)
  threads: Threads = one.threads
  position = threads.position.at[:, 0].set(length)

  def lead(x):
    return jnp.asarray(x)[None]

  return dataclasses.replace(
    one,
    active=jnp.ones((1,), bool),
    phase=jnp.full((1,), Phase.MAIN, jnp.int32),
    left=lead(admission.limit),
    clock=length[None],
    stop_ids=lead(admission.stop_ids),
    sampling=jax.tree.map(lead, admission.sampling),
    policy=jax.tree.map(lead, admission.policy),
    script=jax.tree.map(lead, admission.script),
    threads=dataclasses.replace(threads, position=position),
  )


def segment(loop: Loop, model: Model, kinds: jax.Array, state: State) -> tuple[State, Outputs]:
  """Up to `loop.steps` steps of all rows; ends early when no row is active, or the cache is full.

  Args:
    model: see Model.
    kinds: V int32, of every id.
  """
  batch, num_slots, steps, width = (
    state.rows.left.shape[0], state.cache.num_slots, loop.steps, loop.width
  )  # fmt: skip
  vocab = kinds.shape[0] if loop.keep_logits else 0

  def body(w: int, limit: int | None, carry):
    """One step in which no request runs more than w threads, and all together not more than `limit`; draws
    are padded to `width`."""
    i, state, out = carry
    rows, step = _plan(loop, state.rows)
    cache = state.cache
    if loop.controls is not None:
      cache = dataclasses.replace(cache, slots=interpreter.join_slots(cache.slots, step))
    narrow = dataclasses.replace(
      step, lanes=jax.tree.map(lambda x: x[:, :w], step.lanes), who=step.who[:, :w]
    )
    among = None if limit is None else gather_live(narrow.lanes.live, limit)
    logits, cache = model(cache, narrow.lanes, state.cursor, *(() if among is None else (among,)))
    drawn, logprobs = _draw(loop, rows, narrow, kinds, logits, among)
    logits = logits[:, :, :vocab] if among is None else among.lanes(logits[:, :, :vocab], batch)

    def pad(x: jax.Array) -> jax.Array:
      return jnp.pad(x, ((0, 0), (0, width - w)) + ((0, 0),) * (x.ndim - 2))

    rows, drawn = _apply(loop, rows, step, pad(drawn), kinds)

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
      return jax.lax.dynamic_update_slice_in_dim(old, new[:, None], i, axis=1)

    out = dataclasses.replace(
      out,
      ids=write(out.ids, drawn),
      threads=write(out.threads, jnp.where(step.lanes.live, step.lanes.thread, NO_THREAD)),
      logprobs=write(out.logprobs, pad(logprobs)),
      logits=write(out.logits, pad(logits)),
      widths=jax.lax.dynamic_update_slice(out.widths, jnp.full((1,), w, jnp.int32), (i,)),
    )
    return i + 1, State(cache=cache, cursor=state.cursor + w, rows=rows), out

  def more(carry):
    i, state, _ = carry
    return (i < steps) & (state.cursor + width <= num_slots) & jnp.any(state.rows.active)

  def at_shape(n: int, carry):
    """Whether there is a next step, and `loop.shapes[n]` is the first that fits it."""
    assert loop.controls is not None  # one shape has no choice
    need = interpreter.lanes_needed(carry[1].rows, loop.controls, width)
    most, total = jnp.max(need), jnp.sum(jnp.minimum(need, width))
    this = jnp.bool_(True)
    for m, (w, limit) in enumerate(loop.shapes[: n + 1]):
      fits = most <= w if w < width else jnp.bool_(True)
      fits = fits if limit is None else fits & (total <= limit)
      this = this & (fits if m == n else ~fits)
    return more(carry) & this

  def bodies(carry):
    # A loop per shape, rather than a choice of branches: XLA updates a loop's carry in place, but copies the
    # whole cache in and out of a branch.
    for n, shape in enumerate(loop.shapes):
      carry = jax.lax.while_loop(partial(at_shape, n), partial(body, *shape), carry)
    return carry

  out = Outputs(
    ids=jnp.full((batch, steps, width), NO_ID, jnp.int32),
    threads=jnp.full((batch, steps, width), NO_THREAD, jnp.int32),
    logprobs=jnp.zeros((batch, steps, width), jnp.float32),
    widths=jnp.zeros((steps,), jnp.int32),
    steps=jnp.int32(0),
    cursor=state.cursor,
    left=state.rows.left,
    active=state.rows.active,
    logits=jnp.zeros((batch, steps, width, vocab), jnp.float32),
  )
  once = len(loop.shapes) == 1
  carry = (jnp.int32(0), state, out)
  i, state, out = jax.lax.while_loop(more, partial(body, width, None) if once else bodies, carry)
  out = dataclasses.replace(out, steps=i, cursor=state.cursor, left=state.rows.left, active=state.rows.active)
  return state, out


def make_room(state: State) -> tuple[State, jax.Array]:
  """Compacts the cache: slots of rows that ended die, the rest move to the front. Also the new cursor."""
  slots = state.cache.slots
  thread = jnp.where(state.rows.active[:, None], slots.thread, NO_THREAD)
  slots = dataclasses.replace(slots, thread=thread)
  cache, cursor = compact(dataclasses.replace(state.cache, slots=slots))
  return State(cache=cache, cursor=cursor, rows=state.rows), cursor


def stop_rows(state: State, stop: jax.Array) -> State:
  """Ends the rows marked in `stop` (B bool): the host has seen enough of them."""
  rows = state.rows
  running = rows.threads.running & ~stop[:, None]
  rows = dataclasses.replace(
    rows,
    active=rows.active & ~stop,
    phase=jnp.where(stop, Phase.ENDED, rows.phase),
    threads=dataclasses.replace(rows.threads, running=running),
  )
  return State(cache=state.cache, cursor=state.cursor, rows=rows)
