"""Attention of training: whole sequences under the rule of `lang.visibility`, from integers per token.

`attention_of` is the one way in. The reference path makes a TxT mask once for all layers. The blockwise path
goes over the keys in blocks with a running softmax, forwards and backwards, so that no array of T x T exists:

             keys  block 0   block 1   block 2 ...
    queries  T     T x 512   T x 512   T x 512      scores and mask of one block at a time

Both take what a token sees from the same function, `sees`; and as nobody sees what comes later in a row, both
give a quarter of the queries at a time only the keys up to its last one, which is 5/8 of the scores:

             keys  quarter 1   2   3   4
    queries     1      x
                2      x       x
                3      x       x   x
                4      x       x   x   x
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pasta_jax.lang.visibility import visible
from pasta_jax.model.attention import MASKED
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.layers import soft_cap
from pasta_jax.model.transformer import window_mask
from pasta_jax.train.attention_reference import attend
from pasta_jax.train.forward import Attention

PATHS = ("auto", "reference", "blockwise")
BLOCKWISE_FROM = 2048  # tokens; the mask alone would have 4 MB, the scores 4 bytes x H times that
BLOCK = 512
QUARTER = 64  # tokens that a quarter has at least, and a multiple of which it has


class Tokens(NamedTuple):
  """The integers that say who sees whom, BxT int32 each; see lang/sequence.py. A segment sees only itself."""

  segment: jax.Array
  thread: jax.Array
  time: jax.Array
  visible_at: jax.Array
  horizon: jax.Array
  position: jax.Array


def sees(cfg: ModelConfig, local: Any, q: Tokens, k: Tokens) -> jax.Array:
  """Whether each query (axis 1) sees each key (axis 2), BxTxS bool.

  Args:
    local: whether the layer is local, a bool or a scalar array.
  """

  def row(x: jax.Array) -> jax.Array:
    return x[:, :, None]

  def column(x: jax.Array) -> jax.Array:
    return x[:, None, :]

  seen = visible(
    row(q.thread), row(q.time), row(q.horizon), column(k.thread), column(k.time), column(k.visible_at)
  )
  seen &= row(q.segment) == column(k.segment)
  if cfg.sliding_window is None or local is False:
    return seen
  return seen & ((row(q.position) - column(k.position) < cfg.sliding_window) | ~jnp.asarray(local))


def attention_of(cfg: ModelConfig, tokens: Tokens, path: str = "auto", block: int = BLOCK) -> Attention:
  """The attention that `forward.hidden_states` takes.

  Args:
    path: "reference", "blockwise", or "auto": blockwise from `BLOCKWISE_FROM` tokens on.
    block: keys at a time on the blockwise path; T is padded to a multiple.

  Raises:
    ValueError: an unknown path.
  """
  if path not in PATHS:
    raise ValueError(f"attention must be one of {', '.join(PATHS)}, got {path!r}")
  length = tokens.time.shape[1]
  if path == "auto":
    path = "blockwise" if length >= BLOCKWISE_FROM else "reference"
  size = QUARTER * -(-length // (4 * QUARTER))
  quarters = [(start, min(start + size, length)) for start in range(0, length, size)]
  parts: list[Attention] = []
  for start, stop in quarters:
    queries = Tokens(*(x[:, start:stop] for x in tokens))
    keys = Tokens(*(x[:, :stop] for x in tokens))
    if path == "blockwise":
      parts.append(functools.partial(_run_blockwise, cfg, queries, keys, min(block, stop)))
    else:
      parts.append(_reference(cfg, queries, keys))

  def run(local: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    out = [
      part(local, q[:, start:stop], k[:, :stop], v[:, :stop])
      for part, (start, stop) in zip(parts, quarters, strict=True)
    ]
    return jnp.concatenate(out, axis=1)

  return run


def _reference(cfg: ModelConfig, queries: Tokens, keys: Tokens) -> Attention:
  everywhere = sees(cfg, False, queries, keys)
  window = window_mask(cfg, queries.position, keys.position)

  def run(local: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    mask = everywhere if window is None or local is False else everywhere & (window | ~local)
    return attend(cfg, q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)

  return run


def _run_blockwise(
  cfg: ModelConfig,
  queries: Tokens,
  keys: Tokens,
  block: int,
  local: Any,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
) -> jax.Array:
  b, t, h, e = q.shape
  kv_heads = k.shape[2]
  pad = -k.shape[1] % block
  keys = Tokens(*(jnp.pad(x, ((0, 0), (0, pad)), constant_values=-1) for x in keys))  # of no segment
  k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (k, v))
  # BxKxGxTxE and BxKxSxE, as the products want them.
  q = (q * jnp.asarray(cfg.query_scale, q.dtype)).reshape(b, t, kv_heads, h // kv_heads, e)
  out = _blockwise(
    cfg, block, local, q.transpose(0, 2, 3, 1, 4), k.swapaxes(1, 2), v.swapaxes(1, 2), queries, keys
  )
  return out.transpose(0, 3, 1, 2, 4).reshape(b, t, h, e).astype(q.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blockwise(
  cfg: ModelConfig,
  block: int,
  local: Any,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  tokens: Tokens,
  keys: Tokens,
) -> jax.Array:
  """BxKxGxTxE float32."""
  return _forward(cfg, block, local, q, k, v, tokens, keys)[0]


def _blocks(block: int, x: jax.Array, axis: int) -> jax.Array:
  """Cuts an axis into blocks, and puts the blocks first."""
  shape = (*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])
  return jnp.moveaxis(x.reshape(shape), axis, 0)


def _scores(
  cfg: ModelConfig, local: Any, q: jax.Array, k: jax.Array, tokens: Tokens, keys: Tokens
) -> tuple[jax.Array, jax.Array]:
  """Scores before the mask, and the mask: BxKxGxTxS float32, Bx1x1xTxS bool."""
  s = jnp.einsum("bkgte,bkse->bkgts", q, k, preferred_element_type=jnp.float32)
  return soft_cap(s, cfg.attn_softcap), sees(cfg, local, tokens, keys)[:, None, None]


def _forward(cfg, block, local, q, k, v, tokens, keys):
  def step(carry, xs):
    best, total, out = carry
    k_block, v_block, keys_block = xs
    s, seen = _scores(cfg, local, q, k_block, tokens, keys_block)
    s = jnp.where(seen, s, MASKED)
    higher = jnp.maximum(best, s.max(-1))
    p = jnp.where(seen, jnp.exp(s - higher[..., None]), 0.0)
    shrink = jnp.exp(best - higher)
    new = jnp.einsum("bkgts,bkse->bkgte", p.astype(v.dtype), v_block, preferred_element_type=jnp.float32)
    return (higher, total * shrink + p.sum(-1), out * shrink[..., None] + new), None

  xs = (_blocks(block, k, 2), _blocks(block, v, 2), jax.tree.map(lambda x: _blocks(block, x, 1), keys))
  start = (jnp.full(q.shape[:-1], MASKED), jnp.zeros(q.shape[:-1]), jnp.zeros(q.shape, jnp.float32))
  (best, total, out), _ = jax.lax.scan(step, start, xs)
  return out / total[..., None], best + jnp.log(total)


def _save(cfg, block, local, q, k, v, tokens, keys):
  out, log_total = _forward(cfg, block, local, q, k, v, tokens, keys)
  return out, (local, q, k, v, tokens, keys, out, log_total)


def _backward(cfg: ModelConfig, block: int, saved: Any, d_out: jax.Array) -> Any:
  local, q, k, v, tokens, keys, out, log_total = saved
  dot = (d_out * out).sum(-1)  # what the softmax's normalisation takes from each score

  def step(d_q, xs):
    k_block, v_block, keys_block = xs
    s, seen = _scores(cfg, local, q, k_block, tokens, keys_block)
    p = jnp.where(seen, jnp.exp(s - log_total[..., None]), 0.0)
    d_v = jnp.einsum("bkgts,bkgte->bkse", p, d_out)
    d_p = jnp.einsum("bkgte,bkse->bkgts", d_out, v_block.astype(jnp.float32))
    d_s = p * (d_p - dot[..., None])
    if cfg.attn_softcap is not None:
      d_s *= 1 - jnp.square(s / cfg.attn_softcap)
    d_s = d_s.astype(q.dtype)
    d_k = jnp.einsum("bkgts,bkgte->bkse", d_s, q, preferred_element_type=jnp.float32)
    d_q += jnp.einsum("bkgts,bkse->bkgte", d_s, k_block, preferred_element_type=jnp.float32)
    return d_q, (d_k.astype(k.dtype), d_v.astype(v.dtype))

  xs = (_blocks(block, k, 2), _blocks(block, v, 2), jax.tree.map(lambda x: _blocks(block, x, 1), keys))
  d_q, (d_k, d_v) = jax.lax.scan(step, jnp.zeros(q.shape, jnp.float32), xs)

  def joined(x: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 0, 2).reshape(like.shape)

  return None, d_q.astype(q.dtype), joined(d_k, k), joined(d_v, v), None, None


_blockwise.defvjp(_save, _backward)
