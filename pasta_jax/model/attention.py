"""Attention of queries over keys and values that lie in slots, under a mask that says who sees whom."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.layers import soft_cap

# Finite, so that a row that sees nothing yields numbers rather than NaN.
MASKED = -1e30
_BATCH = ((0, 1), (0, 1))  # of products: rows and key heads


def attend(cfg: ModelConfig, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """softmax(scale * q . k, masked) . v, scores and softmax in float32.

  Args:
    q: BxTxHxE.
    k, v: BxKxSxE.
    mask: BxTxS bool, True where the query sees the slot.
  Returns:
    BxTxHxE in the dtype of q. A query that sees no slot gets the mean of v; callers discard it.
  """
  scores = masked_scores(cfg, grouped(q * jnp.asarray(cfg.query_scale, q.dtype), k.shape[1]), k, mask)
  # The largest score cancels out of the result, so that no gradient need pass through it.
  weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  out = jax.lax.dot_general(
    weights.astype(v.dtype), v, (((3,), (2,)), _BATCH), preferred_element_type=jnp.float32
  )
  return apart(out / total, q.shape[1]).astype(q.dtype)


def grouped(q: jax.Array, kv_heads: int) -> jax.Array:
  """BxTxHxE -> BxKx(TG)xE: tokens and a group's heads on one axis.

  Both products are then plain batched ones, and a step of one token needs no transposed copy of k or v.
  """
  b, t, h, e = q.shape
  return q.reshape(b, t, kv_heads, h // kv_heads, e).transpose(0, 2, 1, 3, 4).reshape(b, kv_heads, -1, e)


def apart(x: jax.Array, tokens: int) -> jax.Array:
  """The inverse of `grouped`: BxKx(TG)xE -> BxTxHxE."""
  b, kv_heads, rows, e = x.shape
  x = x.reshape(b, kv_heads, tokens, rows // tokens, e).transpose(0, 2, 1, 3, 4)
  return x.reshape(b, tokens, -1, e)


def masked_scores(cfg: ModelConfig, q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
  """BxKx(TG)xS float32, of scaled queries in the form of `grouped`; `MASKED` where the mask is False."""
  b, _, rows, _ = q.shape
  t, s = mask.shape[1:]
  scores = jax.lax.dot_general(q, k, (((3,), (3,)), _BATCH), preferred_element_type=jnp.float32)
  seen = jnp.broadcast_to(mask[:, None, :, None], (b, 1, t, rows // t, s)).reshape(b, 1, rows, s)
  return jnp.where(seen, soft_cap(scores, cfg.attn_softcap), MASKED)


def attend_prefix(
  cfg: ModelConfig,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array,
  lengths: Sequence[int],
  which: jax.Array,
) -> jax.Array:
  """`attend` over the first `lengths[which]` slots, chosen on the device.

  A cache is as long as its longest request may become; a step reads only the part in use. One compiled
  program holds a branch per length, so growing never compiles.

  Args:
    lengths: ascending slot counts, the last one S.
    which: scalar int32, index into `lengths`.
  """
  if len(lengths) == 1:
    return attend(cfg, q, k, v, mask)

  return jax.lax.switch(which, [partial(_attend_first, cfg, n) for n in lengths], q, k, v, mask)


@partial(jax.jit, static_argnums=(0, 1))  # so that layers of one shape are traced once
def _attend_first(
  cfg: ModelConfig, n: int, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> jax.Array:
  return attend(cfg, q, k[:, :, :n], v[:, :, :n], mask[:, :, :n])
