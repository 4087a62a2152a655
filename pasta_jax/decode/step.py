"""The jitted pieces of decoding: one forward over lanes with the cache, prefill of a row, a segment of steps.

The sequential decoder is this loop with one lane per row, thread 0, in which every token is visible to all
that follow it.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pasta_jax.decode.sampling import sample
from pasta_jax.decode.state import NO_ID, Admission, Rows, State
from pasta_jax.lang.visibility import visible
from pasta_jax.model import transformer
from pasta_jax.model.attention import attend_prefix
from pasta_jax.model.cache import NEVER, NO_THREAD, Cache, Slots, compact, dead_slots
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.params import Params

MAIN = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanes:
  """The inputs of one forward; BxT each, T lanes of a step or tokens of a prompt.

  Attributes:
    ids, position, thread, time, visible_at, horizon: int32, see model/cache.py `Slots` and the design's rule.
    live: bool; a lane that is not live writes a dead slot, and its output means nothing.
  """

  ids: jax.Array
  position: jax.Array
  thread: jax.Array
  time: jax.Array
  visible_at: jax.Array
  horizon: jax.Array
  live: jax.Array

  def slots(self) -> Slots:
    """What these lanes leave in the cache."""
    return Slots(
      position=self.position,
      thread=jnp.where(self.live, self.thread, NO_THREAD),
      time=self.time,
      visible_at=jnp.where(self.live, self.visible_at, NEVER),
    )


def main_lanes(ids: jax.Array, time: jax.Array, live: jax.Array) -> Lanes:
  """Lanes of the main thread or the prompt: position, visible_at and horizon are their own time."""
  return Lanes(
    ids=ids,
    position=time,
    thread=jnp.full_like(ids, MAIN),
    time=time,
    visible_at=time,
    horizon=time,
    live=live,
  )


def lane_mask(lanes: Lanes, slots: Slots) -> jax.Array:
  """Which slots each lane sees, by the design's one rule; BxTxS bool."""
  return visible(
    lanes.thread[:, :, None],
    lanes.time[:, :, None],
    lanes.horizon[:, :, None],
    slots.thread[:, None, :],
    slots.time[:, None, :],
    slots.visible_at[:, None, :],
  )


def forward_lanes(
  cfg: ModelConfig,
  params: Params,
  cache: Cache,
  lanes: Lanes,
  at: jax.Array,
  lengths: Sequence[int],
  row: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
  """Runs lanes through the model, writing their keys and values into T slots from `at` on.

  Args:
    cache: of B rows.
    lanes: BxT; 1xT where `row` is given.
    at: scalar int32, first slot to write; `at + T` must not pass the end.
    lengths: attended lengths to choose from, ascending, the last the number of slots.
    row: scalar int32, the one row of the cache that the lanes belong to; None: lanes are rows.

  Returns:
    Hidden states BxTxD, and the cache with the lanes in it.
  """
  t = lanes.ids.shape[1]
  zero = jnp.int32(0)
  first = zero if row is None else row

  def own(x: jax.Array) -> jax.Array:
    """The rows of a cache array that the lanes attend over."""
    return x if row is None or x.shape[0] == 1 else jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0)

  slots = jax.tree.map(
    lambda old, new: jax.lax.dynamic_update_slice(old, new, (first, at)), cache.slots, lanes.slots()
  )
  own_slots = jax.tree.map(own, slots)
  mask = lane_mask(lanes, own_slots)
  window = transformer.window_mask(cfg, lanes.position, own_slots.position)
  local = mask if window is None else mask & window
  which = jnp.sum(jnp.asarray(lengths[:-1], jnp.int32) < at + t, dtype=jnp.int32)
  ks, vs = list(cache.k), list(cache.v)

  def attention(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    with jax.named_scope("cache_write"):
      ks[layer] = jax.lax.dynamic_update_slice(ks[layer], k.swapaxes(1, 2), (first, zero, at, zero))
      vs[layer] = jax.lax.dynamic_update_slice(vs[layer], v.swapaxes(1, 2), (first, zero, at, zero))
    seen = local if cfg.is_local(layer) else mask
    return attend_prefix(cfg, q, own(ks[layer]), own(vs[layer]), seen, lengths, which)

  hidden = transformer.hidden_states(cfg, params, lanes.ids, lanes.position, attention)
  return hidden, Cache(k=tuple(ks), v=tuple(vs), slots=slots)


def _next(
  cfg: ModelConfig, params: Params, hidden_BxD: jax.Array, rows: Rows, live: jax.Array, vocab: int
) -> tuple[jax.Array, jax.Array]:
  """Draws an id per row from hidden states; ids B, log-probabilities B."""
  logits = transformer.logits(cfg, params, hidden_BxD[:, None])[:, 0]
  if vocab < cfg.vocab_size:  # rows of the embedding that no token has
    logits = jnp.where(jnp.arange(cfg.vocab_size)[None] < vocab, logits, -jnp.inf)
  thread = jnp.full_like(rows.made, MAIN)
  with jax.named_scope("sample"):
    return sample(logits, rows.sampling, thread, rows.made, live)


def _ends(rows: Rows, ids: jax.Array, made: jax.Array) -> jax.Array:
  return jnp.any(ids[:, None] == rows.stop_ids, axis=1) | (made >= rows.limit)


def prefill(
  cfg: ModelConfig,
  lengths: Sequence[int],
  vocab: int,
  params: Params,
  state: State,
  row: jax.Array,
  ids: jax.Array,
  start: jax.Array,
  count: jax.Array,
  last: jax.Array,
  admission: Admission,
) -> tuple[State, jax.Array, jax.Array]:
  """Runs a piece of a prompt through one row; with the last piece, draws the first id and starts the row.

  Args:
    row: scalar int32.
    ids: C int32, padded.
    start: scalar int32, tokens of this prompt that earlier pieces ran; 0 clears the row.
    count: scalar int32, tokens in `ids` that count.
    last: scalar bool.
    admission: the request's settings.

  Returns:
    The state, and the first id and its log-probability (scalars; meaningless unless `last`).
  """
  c = ids.shape[0]
  offset = jnp.arange(c, dtype=jnp.int32)[None]
  batch = state.rows.ids.shape[0]
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
  hidden_1xD = jax.lax.dynamic_slice_in_dim(hidden[0], count - 1, 1, axis=0)

  def put(old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(mine.reshape((-1,) + (1,) * (old.ndim - 1)), jnp.asarray(new, old.dtype)[None], old)

  rows = state.rows
  settings = {f.name: getattr(admission, f.name) for f in dataclasses.fields(rows.sampling)}
  rows = dataclasses.replace(
    rows,
    length=put(rows.length, start + count),
    made=put(rows.made, jnp.int32(0)),
    limit=put(rows.limit, admission.limit),
    stop_ids=put(rows.stop_ids, admission.stop_ids),
    sampling=dataclasses.replace(
      rows.sampling, **{name: put(getattr(rows.sampling, name), new) for name, new in settings.items()}
    ),
  )
  only = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0), rows)
  drawn, logprob = _next(cfg, params, hidden_1xD, only, last[None], vocab)
  done = _ends(only, drawn, only.made + 1)[0]
  rows = dataclasses.replace(
    rows,
    ids=put(rows.ids, drawn[0]),
    made=put(rows.made, jnp.int32(1)),
    active=put(rows.active, last & ~done),
  )
  cursor = jnp.maximum(state.cursor, start + count)
  # With nobody else in the cache the cursor goes back to this prompt's end.
  alone = ~jnp.any(rows.active & ~mine)
  cursor = jnp.where(alone, start + count, cursor)
  return State(cache=cache, cursor=cursor, rows=rows), drawn[0], logprob[0]


def segment(
  cfg: ModelConfig, lengths: Sequence[int], vocab: int, steps: int, params: Params, state: State
) -> tuple[State, jax.Array, jax.Array, jax.Array, jax.Array]:
  """Up to `steps` steps of all rows; ends early when no row is active, or the cache is full.

  Returns:
    The state, the ids drawn (Bx`steps` int32, NO_ID where a row was not active), their log-probabilities
    (float32), the number of steps run and the cursor (scalars int32).
  """
  batch, num_slots = state.rows.ids.shape[0], state.cache.num_slots

  def body(carry):
    i, state, ids_out, logprobs_out = carry
    rows = state.rows
    live = rows.active
    lanes = main_lanes(rows.ids[:, None], rows.length[:, None], live[:, None])
    hidden, cache = forward_lanes(cfg, params, state.cache, lanes, state.cursor, lengths)
    ids, logprobs = _next(cfg, params, hidden[:, 0], rows, live, vocab)
    step = live.astype(jnp.int32)
    made = rows.made + step
    rows = dataclasses.replace(
      rows,
      ids=jnp.where(live, ids, rows.ids),
      length=rows.length + step,
      made=made,
      active=live & ~_ends(rows, ids, made),
    )
    ids_out = jax.lax.dynamic_update_slice(ids_out, jnp.where(live, ids, NO_ID)[:, None], (0, i))
    logprobs_out = jax.lax.dynamic_update_slice(logprobs_out, logprobs[:, None], (0, i))
    return i + 1, State(cache=cache, cursor=state.cursor + 1, rows=rows), ids_out, logprobs_out

  def more(carry):
    i, state, _, _ = carry
    return (i < steps) & (state.cursor < num_slots) & jnp.any(state.rows.active)

  ids_out = jnp.full((batch, steps), NO_ID, jnp.int32)
  logprobs_out = jnp.zeros((batch, steps), jnp.float32)
  i, state, ids_out, logprobs_out = jax.lax.while_loop(
    more, body, (jnp.int32(0), state, ids_out, logprobs_out)
  )
  return state, ids_out, logprobs_out, i, state.cursor


def make_room(state: State) -> tuple[State, jax.Array]:
  """Compacts the cache: slots of rows that ended die, the rest move to the front. Also the new cursor."""
  slots = state.cache.slots
  thread = jnp.where(state.rows.active[:, None], slots.thread, NO_THREAD)
  slots = dataclasses.replace(slots, thread=thread)
  cache, cursor = compact(dataclasses.replace(state.cache, slots=slots))
  return State(cache=cache, cursor=cursor, rows=state.rows), cursor


def stop_rows(state: State, stop: jax.Array) -> State:
  """Ends the rows marked in `stop` (B bool): the host has seen enough of them."""
  rows = dataclasses.replace(state.rows, active=state.rows.active & ~stop)
  return State(cache=state.cache, cursor=state.cursor, rows=rows)
