"""The reference path of training attention: `model.attention.attend`, with a backward pass of its own.

    forwards    s = q . k'      w = softmax(s)   o = w . v
    backwards   dv = w' . do    dw = do . v'     ds = w (dw - <do, o>)   dq = ds . k   dk = ds' . q

The backward pass needs w and o, and no scores. Both carry a name, so that rematerialisation can keep them
(config.remat=attended) where a transposed `attend` would compute scores, softmax and product again.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pasta_jax.model.attention import apart, grouped, masked_scores
from pasta_jax.model.config import ModelConfig

ATTENDED = "attended"


def attend(cfg: ModelConfig, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """softmax(scale * q . k, masked) . v, scores and softmax in float32.

  Args:
    q: BxTxHxE.
    k, v: BxKxSxE.
    mask: BxTxS bool, True where the query sees the key; it sees one at least.
  Returns:
    BxTxHxE in the dtype of q.
  """
  t, kv_heads = q.shape[1], k.shape[1]
  out = _attend(cfg, grouped(q * jnp.asarray(cfg.query_scale, q.dtype), kv_heads), k, v, mask)
  return apart(out, t).astype(q.dtype)


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
  """Batched over rows and heads, float32."""
  dims = (((a_axis,), (b_axis,)), ((0, 1), (0, 1)))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(cfg: ModelConfig, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """q BxKx(TG)xE, scaled -> BxKx(TG)xE float32."""
  return _forward(cfg, q, k, v, mask)[0]


def _forward(cfg, q, k, v, mask) -> tuple[jax.Array, Any]:
  scores = masked_scores(cfg, q, k, mask)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  weights = checkpoint_name((weights / weights.sum(-1, keepdims=True)).astype(v.dtype), ATTENDED)
  out = checkpoint_name(_dot(weights, v, 3, 2), ATTENDED)
  return out, (q, k, v, weights, out)


def _backward(cfg, saved, d_out):
  q, k, v, weights, out = saved
  from_sum = (d_out * out).sum(-1, keepdims=True)  # what each weight's share in the sum takes
  d_out = d_out.astype(v.dtype)
  d_v = _dot(weights, d_out, 2, 2)
  d_scores = weights * (_dot(d_out, v, 3, 3) - from_sum)
  if cfg.attn_softcap is not None:
    d_scores *= 1 - jnp.square(jnp.tanh(_dot(q, k, 3, 3) / cfg.attn_softcap))
  d_scores = d_scores.astype(q.dtype)
  d_q, d_k = _dot(d_scores, k, 3, 2), _dot(d_scores, q, 2, 2)
  return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
