"""Choosing the next id from logits: greedy, temperature, top-k, top-p and min-p, each per row.

A row's draw depends on its own logits, settings and key alone, where the key is made from (seed, thread,
index): results do not depend on batch, width or schedule. Thresholds are found by bisection over the bits of
a float rather than by sorting: 32 counting passes over V, exact, and many times cheaper than a sort of V.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingRows:
  """Settings of each row; all of shape N.

  Attributes:
    temperature: float32; 0 is greedy.
    top_k: int32; 0 is off.
    top_p: float32; 1 is off.
    min_p: float32; 0 is off.
    seed: int32.
    logprobs: bool; whether log-probabilities are wanted.
  """

  temperature: Any
  top_k: Any
  top_p: Any
  min_p: Any
  seed: Any
  logprobs: Any


def _ordered_bits(x: jax.Array) -> jax.Array:
  """float32 -> uint32 that sorts the same way."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest_threshold(keys_NxV: jax.Array, enough) -> jax.Array:
  """The largest t for which `enough(keys >= t)` holds, by bisection; N uint32.

  Args:
    keys_NxV: uint32.
    enough: from NxV bool to N bool; true for t = 0 and monotone.
  """

  def step(i, t):
    trial = t | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    return jnp.where(enough(keys_NxV >= trial[:, None]), trial, t)

  return jax.lax.fori_loop(0, 32, step, jnp.zeros(keys_NxV.shape[:1], jnp.uint32))


def _filtered(logits_NxV: jax.Array, rows: SamplingRows) -> jax.Array:
  """Logits after temperature with everything outside top-k and top-p at -inf (k first, then p)."""
  keys = _ordered_bits(logits_NxV)
  vocab = logits_NxV.shape[1]
  k = jnp.where(rows.top_k <= 0, vocab, jnp.minimum(rows.top_k, vocab))
  by_k = _largest_threshold(keys, lambda m: jnp.sum(m, axis=1, dtype=jnp.int32) >= k)
  logits = jnp.where(keys >= by_k[:, None], logits_NxV, -jnp.inf)
  probs = jax.nn.softmax(logits, axis=-1)
  # A float sum of all probabilities can fall just short of 1.
  p = jnp.where(rows.top_p >= 1.0, -1.0, rows.top_p)
  by_p = _largest_threshold(keys, lambda m: jnp.sum(jnp.where(m, probs, 0.0), axis=1) >= p)
  by_p = jnp.where(rows.top_p >= 1.0, jnp.uint32(0), by_p)
  return jnp.where(keys >= by_p[:, None], logits, -jnp.inf)


def _draw(scaled_NxV: jax.Array, rows: SamplingRows, thread: jax.Array, index: jax.Array) -> jax.Array:
  """A draw from softmax(scaled), by the Gumbel-max trick; N int32."""
  floor = jnp.max(scaled_NxV, axis=-1, keepdims=True) + jnp.log(rows.min_p)[:, None]
  scaled_NxV = jnp.where(scaled_NxV >= floor, scaled_NxV, -jnp.inf)

  def noise(seed, thread, index):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), thread), index)
    return jax.random.gumbel(key, scaled_NxV.shape[1:], jnp.float32)

  return jnp.argmax(scaled_NxV + jax.vmap(noise)(rows.seed, thread, index), axis=-1)


def sample(
  logits_NxV: jax.Array,
  rows: SamplingRows,
  thread: jax.Array,
  index: jax.Array,
  live: jax.Array,
  allowed_NxV: jax.Array | None = None,
  added_NxV: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The next id of each row, and its log-probability under the model itself (temperature 1, nothing cut).

  Args:
    logits_NxV: float32.
    rows: settings.
    thread, index: N int32; which thread a row is, and how many ids it has drawn.
    live: N bool; rows that are not live get some id, and do not make others pay for their settings.
    allowed_NxV: bool, ids that may be drawn; None: all.
    added_NxV: float32, on top of the logits; None: nothing.

  Returns:
    ids N int32, log-probabilities N float32 (0 everywhere where no live row wants them).
  """
  raw_NxV = logits_NxV
  if added_NxV is not None:
    logits_NxV = logits_NxV + added_NxV
  if allowed_NxV is not None:
    logits_NxV = jnp.where(allowed_NxV, logits_NxV, -jnp.inf)
  greedy = jnp.argmax(logits_NxV, axis=-1)
  hot = live & (rows.temperature > 0)
  cut = hot & ((rows.top_k > 0) | (rows.top_p < 1.0))

  def plain(logits):
    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1.0)
    return logits / temperature[:, None]

  ids = jax.lax.switch(
    jnp.any(hot).astype(jnp.int32) + jnp.any(cut).astype(jnp.int32),
    [
      lambda logits: greedy,
      lambda logits: jnp.where(hot, _draw(plain(logits), rows, thread, index), greedy),
      lambda logits: jnp.where(hot, _draw(_filtered(plain(logits), rows), rows, thread, index), greedy),
    ],
    logits_NxV,
  )

  def chosen(logits, ids):
    picked = jnp.take_along_axis(logits, ids[:, None], axis=1)[:, 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)

  logprobs = jax.lax.cond(
    jnp.any(live & rows.logprobs),
    chosen,
    lambda logits, ids: jnp.zeros(ids.shape, jnp.float32),
    raw_NxV,
    ids,
  )
  return ids.astype(jnp.int32), logprobs
