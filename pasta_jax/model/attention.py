"""Attention of queries over keys and values that lie in slots, under a mask that says who sees whom."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.layers import soft_cap

# Finite, so that a row that sees nothing yields numbers rather than NaN.
MASKED = -1e30


def attend(cfg: ModelConfig, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """softmax(scale * q . k, masked) . v, scores and softmax in float32.

  Args:
    q: BxTxHxE.
    k, v: BxKxSxE.
    mask: BxTxS bool, True where the query sees the slot.
  Returns:
    BxTxHxE in the dtype of q. A query that sees no slot gets the mean of v; callers discard it.
  """
  b, t, h, e = q.shape
  kv_heads = k.shape[1]
  q = (q * jnp.asarray(cfg.query_scale, q.dtype)).reshape(b, t, kv_heads, h // kv_heads, e)
  scores = jnp.einsum("btkge,bkse->bkgts", q, k, preferred_element_type=jnp.float32)
  scores = soft_cap(scores, cfg.attn_softcap)
  scores = jnp.where(mask[:, None, None], scores, MASKED)
  probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum("bkgts,bkse->btkge", probs, v, preferred_element_type=jnp.float32)
  return out.reshape(b, t, h, e).astype(q.dtype)


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

  def branch(n: int):
    def run(q, k, v, mask):
      return attend(cfg, q, k[:, :, :n], v[:, :, :n], mask[:, :, :n])

    return run

  return jax.lax.switch(which, [branch(n) for n in lengths], q, k, v, mask)
