"""The pieces of a transformer layer: linear maps, RMSNorm, rotary positions, gated feed-forward.

Trailing capitals are the axes of docs/shapes.md; `_BxTxD` is written for any leading axes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from pasta_jax.model.adapted import Adapted
from pasta_jax.model.config import ModelConfig, RopeScaling
from pasta_jax.model.packed import Packed
from pasta_jax.model.products import product

# Elements of a matrix up to which XLA on CPU multiplies one row with it on one core; two halves, a batch, it
# gives to two (docs/performance.md).
_ONE_CORE = 1 << 20
LINEAR = "linear"  # the name by which training's rematerialisation knows what a linear map gives


def linear(x: jax.Array, w: Any, inputs: int = 1) -> jax.Array:
  """Applies a matrix stored [out..., in...] to the last `inputs` axes of x.

  The product is one of two rank-2 operands: XLA's CPU backend has a fast matrix-vector kernel for those only
  (higher ranks with a leading 1 took 2.1x the time; docs/performance.md). On TPU several input axes stay
  apart: an array lies there in tiles of its last two axes, and joining those would copy the whole matrix in
  every step (docs/tpu.md).

  Args:
    x: BxTx(in...).
    w: (out...)x(in...), with `inputs` input axes; or such a matrix `Adapted` or `Packed`. In the dtype of x,
      or in bfloat16 beside float32: x is then rounded for the product.
  Returns:
    BxTx(out...), in the dtype of x.
  """
  return checkpoint_name(_product(x, w, inputs), LINEAR)


def _product(x: jax.Array, w: Any, inputs: int = 1) -> jax.Array:
  if isinstance(w, Packed):
    return _packed_product(x.reshape(-1, w.inputs), w).reshape(*x.shape[: x.ndim - inputs], *w.outputs)
  if isinstance(w, Adapted):
    return _product(x, w.w, inputs) + _product(_product(x, w.a, inputs), w.b)
  lead, in_shape = x.shape[: x.ndim - inputs], w.shape[w.ndim - inputs :]
  out_shape = w.shape[: w.ndim - inputs]

  def joined(x: jax.Array, w: jax.Array) -> jax.Array:
    n = math.prod(in_shape)
    return product(x.reshape(-1, n), w.reshape(-1, n))

  def apart(x: jax.Array, w: jax.Array) -> jax.Array:
    axes = tuple(range(1, inputs + 1))
    return jax.lax.dot_general(
      x.reshape(-1, *in_shape),
      w.reshape(-1, *in_shape),
      ((axes, axes), ((), ())),
      preferred_element_type=x.dtype,
    )

  y = joined(x, w) if inputs == 1 else jax.lax.platform_dependent(x, w, tpu=apart, default=joined)
  return y.reshape(*lead, *out_shape)


def _packed_product(x: jax.Array, w: Packed) -> jax.Array:
  """RxI -> RxO in the dtype of x; the product's operands are in the dtype of w."""
  rows = x.shape[0]
  if w.w.dtype == jnp.bfloat16 and rows == 1:
    x = jnp.pad(x, ((0, 1), (0, 0)))  # XLA on CPU has no bfloat16 product of one row (docs/performance.md)
  if rows == 1 and w.turned and w.w.size <= _ONE_CORE and w.inputs % 2 == 0:
    halves = w.w.reshape(2, w.inputs // 2, -1)
    return jnp.einsum("gi,gio->go", x.reshape(2, -1), halves, preferred_element_type=x.dtype).sum(0)[None]
  dims = (((1,), (0 if w.turned else 1,)), ((), ()))
  return jax.lax.dot_general(x.astype(w.w.dtype), w.w, dims, preferred_element_type=x.dtype)[:rows]


def queries_keys_values(
  cfg: ModelConfig, p: dict[str, Any], x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """BxTxD -> BxTxHxE, BxTxKxE, BxTxKxE, biases included."""
  if "qkv" in p:
    heads = (cfg.num_heads, cfg.num_heads + cfg.num_kv_heads)
    q, k, v = jnp.split(linear(x, p["qkv"]), heads, axis=-2)
  else:
    q, k, v = linear(x, p["q"]), linear(x, p["k"]), linear(x, p["v"])
  if cfg.qkv_bias:
    q = q + p["q_bias"][None, None]
    k = k + p["k_bias"][None, None]
    v = v + p["v_bias"][None, None]
  return q, k, v


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, offset: float) -> jax.Array:
  """RMSNorm over the last axis, in float32: x / rms(x) * (offset + scale)."""
  x32 = x.astype(jnp.float32)
  y = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  w = scale.astype(jnp.float32) + offset
  return (y * w.reshape((1,) * (x.ndim - 1) + w.shape)).astype(x.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
  """Angular frequency, in radians per position, of each of the E/2 pairs; float32."""
  freq = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  if scaling is None:
    return freq.astype(np.float32)
  if scaling.kind == "linear":
    return (freq / scaling.factor).astype(np.float32)
  # Llama 3.1: fast frequencies stay, slow ones are divided, a linear blend in between.
  turns = scaling.original_max_len * freq / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return (freq * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def rope_angles(positions: jax.Array, freq: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """cos and sin of each position and pair.

  Args:
    positions: BxT int32.
    freq: E/2, from `rope_frequencies`.
  Returns:
    Two arrays BxTx1x(E/2) float32, to broadcast over heads.
  """
  angle = positions.astype(jnp.float32)[..., None, None] * jnp.asarray(freq)[None, None, None, :]
  return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates the halves of each head (pair i is elements i and i + E/2), in float32.

  Args:
    x: BxTxHxE.
    cos, sin: BxTx1x(E/2).
  """
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
  return x if cap is None else cap * jnp.tanh(x / cap)


def feed_forward(cfg: ModelConfig, p: dict[str, Any], x: jax.Array) -> jax.Array:
  """down(act(gate(x)) * up(x)), BxTxD -> BxTxD."""
  if "gate_up" in p:
    both = linear(x, p["gate_up"])
    gate, up = both[..., 0, :], both[..., 1, :]
  else:
    gate, up = linear(x, p["gate"]), linear(x, p["up"])
  act = jax.nn.silu(gate) if cfg.activation == "silu" else jax.nn.gelu(gate, approximate=True)
  return linear(act * up, p["down"])
