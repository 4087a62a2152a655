"""One forward of the model over lanes with the cache: keys and values are written, then lanes attend."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pasta_jax.decode.lanes import Gathered, Lanes, lane_mask
from pasta_jax.model import transformer
from pasta_jax.model.attention import attend_prefix
from pasta_jax.model.cache import Cache
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.params import Params

# (cache, lanes BxW, first slot to write) -> logits BxWxV float32, the cache with the lanes in it. Given the
# live lanes gathered as a fourth argument, the logits are 1xRxV.
Model = Callable[..., tuple[jax.Array, Cache]]


def forward_lanes(
  cfg: ModelConfig,
  params: Params,
  cache: Cache,
  lanes: Lanes,
  at: jax.Array,
  lengths: Sequence[int],
  row: jax.Array | None = None,
  least_rows: int = 1,
  among: Gathered | None = None,
) -> tuple[jax.Array, Cache]:
  """Runs lanes through the model, writing their keys and values into T slots from `at` on.

  Args:
    cache: of B rows.
    lanes: BxT; 1xT where `row` is given.
    at: scalar int32, first slot to write; `at + T` must not pass the end.
    lengths: attended lengths to choose from, ascending, the last the number of slots.
    row: scalar int32, the one row of the cache that the lanes belong to; None: lanes are rows.
    least_rows: rows that matrix products shall have; tokens are padded up to that.
    among: compute these lanes only, but for attention; not together with `least_rows`.

  Returns:
    Hidden states BxTxD, T being padded, or 1xRxD of gathered lanes; and the cache with the lanes in it.
  """
  b, t = lanes.ids.shape
  padding = max(-(-least_rows // b) - t, 0)
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

  def rows_of(x: jax.Array) -> jax.Array:
    """From lanes to rows of matrix products ..."""
    if among is not None:
      return among.rows(x)
    return jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2)) if padding else x

  def lanes_of(x: jax.Array) -> jax.Array:
    """... and back."""
    return x[:, :t] if among is None else among.lanes(x, b)

  def attention(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    q, k, v = lanes_of(q), lanes_of(k), lanes_of(v)
    with jax.named_scope("cache_write"):
      ks[layer] = jax.lax.dynamic_update_slice(ks[layer], k.swapaxes(1, 2), (first, zero, at, zero))
      vs[layer] = jax.lax.dynamic_update_slice(vs[layer], v.swapaxes(1, 2), (first, zero, at, zero))
    seen = local if cfg.is_local(layer) else mask
    return rows_of(attend_prefix(cfg, q, own(ks[layer]), own(vs[layer]), seen, lengths, which))

  hidden = transformer.hidden_states(cfg, params, rows_of(lanes.ids), rows_of(lanes.position), attention)
  return hidden, Cache(k=tuple(ks), v=tuple(vs), slots=slots)


def lane_logits(
  cfg: ModelConfig,
  params: Params,
  lengths: Sequence[int],
  cache: Cache,
  lanes: Lanes,
  at: jax.Array,
  among: Gathered | None = None,
  least_rows: int = 1,
) -> tuple[jax.Array, Cache]:
  """The logits of every lane, and the cache with the lanes in it; a `Model` once the rest is bound.

  Args:
    among, least_rows: see forward_lanes.
  """
  hidden, cache = forward_lanes(cfg, params, cache, lanes, at, lengths, None, least_rows, among)
  logits = transformer.logits(cfg, params, hidden)
  return logits if among is not None else logits[:, : lanes.ids.shape[1]], cache
