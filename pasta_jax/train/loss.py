"""Cross-entropy from hidden states, some tokens at a time: the logits of a whole batch never exist.

Only tokens that have a weight get logits: they are brought to the front, and the loop ends behind the last
one. Prompts and padding cost nothing:

    tokens   p p p t t t t . p p t t      p prompt   t trained   . padding
    sorted   t t t t t t | p p p p . .    pieces up to | are computed

A piece has one of a few sizes, each compiled (`piece_lengths`): that with which the fewest tokens behind |
are computed, and the largest of those, as a large product is faster than two small ones.

The gradient is computed in the same pass: a piece's logits are in reach once, so that they are neither kept
nor computed again, and only those rows of the table get one that are trained:

    table   VxD   [ frozen ......... | rows | frozen ]     LoRA: the marks' rows
                  [ rows ............................ ]     all parameters

Everything is a sum over tokens. Whoever divides, divides once, by the sum of weights of a step's tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pasta_jax.lang.sequence import Target
from pasta_jax.model.adapted import Patched, whole_table
from pasta_jax.model.attention import MASKED
from pasta_jax.model.config import ModelConfig

CLASSES = tuple(t.name.lower() for t in Target if t != Target.NONE)

SIZES = 8  # of pieces, at most
STEP = 128  # tokens by which they differ at least; below that the products become slow


def piece_length(batch: int, length: int, tokens: int) -> int:
  """How much of T is taken at a time, so that there are at most `tokens` tokens over the batch.

  The largest divisor of T, unless that is small: then equal pieces, the last one padded.
  """
  most = min(max(1, tokens // batch), length)
  divisor = max(n for n in range(1, most + 1) if length % n == 0)
  return divisor if 2 * divisor >= most else -(-length // -(-length // most))


def piece_lengths(piece: int, shards: int) -> list[int]:
  """How much of T a piece can be, in equal steps, the largest (`piece`) first; each over `shards`."""
  count = max(1, min(SIZES, piece * shards // STEP, piece))
  return [-(-piece * k // count) for k in range(count, 0, -1)]


def cross_entropy(
  cfg: ModelConfig,
  vocab: int,
  tokens: int,
  table: Any,
  hidden: jax.Array,
  target: jax.Array,
  weight: jax.Array,
  shards: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted sum over tokens, and what each token cost.

  Args:
    vocab: ids that exist; rows of the table from there on are padding.
    tokens: how many are taken at a time.
    table: VxD, plain (it gets a gradient) or `Patched` (its rows do); in the dtype of `hidden`, or in
      bfloat16 beside float32.
    hidden: BxTxD.
    target: BxT int32; any value where the weight is 0.
    weight: BxT float32.
    shards: over how many devices the rows lie, a divisor of B: tokens stay where they are.
  Returns:
    Scalar float32, and for each token `nll` (BxT float32, nats) and `best` (BxT int32, the likeliest id),
    which have no gradient; both are 0 where there is no weight, and `best` where a gradient is computed.
  """
  batch, length = target.shape

  def by_shard(x: jax.Array) -> jax.Array:
    return x.reshape(shards, -1, *x.shape[2:])

  piece = piece_length(shards, batch // shards * length, tokens)
  arrays = by_shard(hidden), by_shard(target), by_shard(weight)
  if isinstance(table, Patched):
    total, per_token = _cross_entropy(cfg, vocab, piece, table.table, table.rows, table.start, *arrays)
  else:
    total, per_token = _cross_entropy(cfg, vocab, piece, None, table, jnp.zeros((), jnp.int32), *arrays)
  return total, {name: x.reshape(batch, length) for name, x in per_token.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(cfg, vocab, piece, frozen, rows, start, hidden, target, weight):
  total, per_token, _, _ = _run(cfg, vocab, piece, frozen, rows, start, hidden, target, weight, False)
  return total, per_token


def _run(cfg, vocab, piece, frozen, rows, start, hidden, target, weight, gradient: bool):
  table = rows if frozen is None else whole_table(Patched(frozen, rows, start))
  cap = cfg.final_softcap
  ids = jax.lax.broadcasted_iota(jnp.int32, (1, 1, table.shape[0]), 2)

  tokens = hidden.shape[1]
  order = jnp.argsort(weight <= 0, axis=1, stable=True)
  most = jnp.max(jnp.sum(weight > 0, axis=1))

  def in_order(x: jax.Array, order: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)

  by_token = in_order(hidden, order), in_order(target, order), in_order(weight, order)

  def run(piece: int) -> tuple[jax.Array, ...]:
    """All pieces, of this size: the table's gradient, and in the order of `by_token` what is per token."""

    def padded(x: jax.Array) -> jax.Array:
      return jnp.pad(x, ((0, 0), (0, -tokens % piece), *[(0, 0)] * (x.ndim - 2)))

    def put(all_: jax.Array, x: jax.Array, i: jax.Array) -> jax.Array:
      return jax.lax.dynamic_update_slice_in_dim(all_, x, i * piece, 1)

    arrays = [padded(x) for x in by_token]

    def step(i, carry):
      d_rows, nlls, bests, d_hidden = carry
      h, t, w = (jax.lax.dynamic_slice_in_dim(x, i * piece, piece, 1) for x in arrays)
      with jax.named_scope("logits"):
        raw = jnp.einsum("bcd,vd->bcv", h.astype(table.dtype), table, preferred_element_type=jnp.float32)
        logits = raw if cap is None else cap * jnp.tanh(raw / cap)
        logits = jnp.where(ids < vocab, logits, MASKED)
      high = logits.max(-1, keepdims=True)
      e = jnp.exp(logits - high)
      total = e.sum(-1, keepdims=True)
      hit = ids == t[..., None]
      nll = (high + jnp.log(total))[..., 0] - jnp.where(hit, logits, 0.0).sum(-1)
      nlls = put(nlls, jnp.where(w > 0, nll, 0.0), i)
      if not gradient:
        best = jnp.where(w > 0, jnp.argmax(logits, -1).astype(jnp.int32), 0)
        return d_rows, nlls, put(bests, best, i), d_hidden
      d = (e / total - hit) * w[..., None]
      if cap is not None:
        d *= 1 - jnp.square(logits / cap)
        d = jnp.where(ids < vocab, d, 0.0)
      d = d.astype(h.dtype)
      with jax.named_scope("logits_gradient"):
        own = d.astype(table.dtype)
        d_h = jnp.einsum("bcv,vd->bcd", own, table, preferred_element_type=jnp.float32).astype(h.dtype)
        mine = d if frozen is None else jax.lax.dynamic_slice_in_dim(d, start, rows.shape[0], 2)
        d_rows += jnp.einsum("bcr,bcd->rd", mine, h, preferred_element_type=jnp.float32)
      return d_rows, nlls, bests, put(d_hidden, d_h, i)

    carry = (
      jnp.zeros(rows.shape, jnp.float32) if gradient else jnp.zeros(()),
      padded(jnp.zeros(target.shape, jnp.float32)),
      padded(jnp.zeros_like(target)),
      padded(jnp.zeros_like(hidden)) if gradient else jnp.zeros(()),
    )
    d_rows, *out = jax.lax.fori_loop(0, -(-most // piece), step, carry)
    return d_rows, *(x[:, :tokens] if x.ndim else x for x in out)

  sizes = piece_lengths(piece, hidden.shape[0])
  computed = jnp.stack([-(-most // size) * size for size in sizes])
  runs = [functools.partial(run, size) for size in sizes]
  d_rows, *out = jax.lax.switch(jnp.argmin(computed), runs)
  back = jnp.argsort(order, axis=1)
  nll, best, d_hidden = (in_order(x, back) if x.ndim else None for x in out)
  return (nll * weight).sum(), {"nll": nll, "best": best}, d_rows, d_hidden


def _save(cfg, vocab, piece, frozen, rows, start, hidden, target, weight):
  total, per_token, d_rows, d_hidden = _run(
    cfg, vocab, piece, frozen, rows, start, hidden, target, weight, True
  )
  dtypes = jnp.zeros((), rows.dtype)
  return (total, per_token), (d_rows, d_hidden, dtypes)


def _backward(cfg, vocab, piece, saved, cotangents):
  d_rows, d_hidden, like = saved
  g = cotangents[0]
  return None, (g * d_rows).astype(like.dtype), None, (g * d_hidden).astype(d_hidden.dtype), None, None


_cross_entropy.defvjp(_save, _backward)


def class_sums(nll: jax.Array, kind: jax.Array, trained: jax.Array) -> dict[str, jax.Array]:
  """For each class of target, the sum of nll and the number of tokens; scalars float32.

  Args:
    nll: BxT float32.
    kind: BxT, `Target`.
    trained: BxT bool.
  """
  sums = {}
  for target in Target:
    if target != Target.NONE:
      mine = ((kind == target) & trained).astype(jnp.float32)
      name = target.name.lower()
      sums[f"{name}_nll"] = (nll * mine).sum()
      sums[f"{name}_tokens"] = mine.sum()
  return sums
