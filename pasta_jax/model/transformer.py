"""The forward pass of every family, as pure functions on the flat dict of parameters.

`attention(layer, q, k, v)` is handed in: training attends within a sequence, decoding writes k and v into a
cache and attends over it. Everything else is shared, so that they cannot drift apart.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pasta_jax.model.adapted import take_rows, whole_table
from pasta_jax.model.attention import attend
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.layers import (
  apply_rope,
  feed_forward,
  linear,
  queries_keys_values,
  rms_norm,
  rope_angles,
  rope_frequencies,
  soft_cap,
)
from pasta_jax.model.params import Params, layer_params

# (layer, q_BxTxHxE, k_BxTxKxE, v_BxTxKxE) -> BxTxHxE
Attention = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]


def embed(cfg: ModelConfig, params: Params, ids: jax.Array) -> jax.Array:
  """Token embeddings, BxT int32 -> BxTxD. Ids must lie in [0, V)."""
  x = take_rows(params["embed"], ids)
  return x * jnp.asarray(math.sqrt(cfg.d_model), x.dtype) if cfg.scale_embeddings else x


def run_layer(
  cfg: ModelConfig,
  p: dict[str, Any],
  x: jax.Array,
  rope: tuple[jax.Array, jax.Array],
  attention: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """One layer, BxTxD -> BxTxD.

  Args:
    p: its parameters, by their short names.
    rope: cos and sin, see layers.rope_angles.
    attention: of this layer: q, k, v -> BxTxHxE.
  """

  def norm(name: str, y: jax.Array) -> jax.Array:
    return rms_norm(y, p[name], cfg.norm_eps, cfg.norm_offset)

  with jax.named_scope("attention"):
    y = norm("attn_norm", x)
    q, k, v = queries_keys_values(cfg, p, y)
    if cfg.qk_norm:
      q, k = norm("q_norm", q), norm("k_norm", k)
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    y = linear(attention(q, k, v), p["o"], inputs=2)
    x = x + (norm("attn_post_norm", y) if cfg.post_norms else y)
  with jax.named_scope("feed_forward"):
    y = feed_forward(cfg, p, norm("mlp_norm", x))
    x = x + (norm("mlp_post_norm", y) if cfg.post_norms else y)
  return x


def hidden_states(
  cfg: ModelConfig,
  params: Params,
  ids: jax.Array,
  positions: jax.Array,
  attention: Attention,
) -> jax.Array:
  """The stack of layers, unrolled, and the final norm.

  Args:
    ids, positions: BxT int32.
    attention: see the module docstring; called once per layer, in order.
  Returns:
    BxTxD, what `logits` takes.
  """
  with jax.named_scope("embed"):
    x = embed(cfg, params, ids)
  ropes: dict = {}
  for layer in range(cfg.num_layers):
    kind = cfg.rope_of(layer)
    if kind not in ropes:
      ropes[kind] = rope_angles(positions, rope_frequencies(cfg.head_dim, *kind))
    with jax.named_scope(f"layer_{layer}"):
      own = functools.partial(attention, layer)
      x = run_layer(cfg, layer_params(params, layer), x, ropes[kind], own)
  return rms_norm(x, params["final_norm"], cfg.norm_eps, cfg.norm_offset)


def logits(cfg: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
  """Output logits, BxTxD -> BxTxV float32."""
  with jax.named_scope("logits"):
    table = whole_table(params["head" if "head" in params else "embed"])
    return soft_cap(linear(hidden, table).astype(jnp.float32), cfg.final_softcap)


def window_mask(cfg: ModelConfig, q_positions: jax.Array, k_positions: jax.Array) -> jax.Array | None:
  """What a local layer may see, BxTxS bool; None where the model has no local layers.

  Args:
    q_positions: BxT int32.
    k_positions: BxS int32.
  """
  if cfg.sliding_window is None:
    return None
  return q_positions[:, :, None] - k_positions[:, None, :] < cfg.sliding_window


def forward(
  cfg: ModelConfig, params: Params, ids: jax.Array, positions: jax.Array, mask: jax.Array
) -> jax.Array:
  """Logits of whole sequences at once, without a cache (teacher forcing).

  Args:
    ids, positions: BxT int32.
    mask: BxTxT bool, True where token t (axis 1) sees token s (axis 2).
  Returns:
    BxTxV float32.
  """
  window = window_mask(cfg, positions, positions)
  local = mask if window is None else mask & window

  def attention(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    return attend(cfg, q, k, v, local if cfg.is_local(layer) else mask)

  return logits(cfg, params, hidden_states(cfg, params, ids, positions, attention))


def causal_mask(lengths: jax.Array, size: int) -> jax.Array:
  """Plain causal visibility of right-padded rows: B lengths -> BxTxT bool, T = size."""
  t = jnp.arange(size)
  return (t[None, :, None] >= t[None, None, :]) & (t[None, None, :] < lengths[:, None, None])
