"""Draws follow the filtered distribution, and depend on nothing but their own row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.decode import sampling
from pasta_jax.decode.sampling import SamplingRows

VOCAB = 50
sample = jax.jit(sampling.sample)


def rows_of(n, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0):
  return SamplingRows(
    temperature=jnp.full(n, temperature, jnp.float32),
    top_k=jnp.full(n, top_k, jnp.int32),
    top_p=jnp.full(n, top_p, jnp.float32),
    min_p=jnp.full(n, min_p, jnp.float32),
    seed=jnp.full(n, seed, jnp.int32),
    logprobs=jnp.ones(n, bool),
  )


def reference(logits, temperature, top_k, top_p, min_p):
  """The distribution that is drawn from, by sorting, in float64."""
  x = logits.astype(np.float64) / temperature
  order = np.argsort(-x, kind="stable")
  keep = np.zeros(x.size, bool)
  keep[order[: top_k or x.size]] = True
  x = np.where(keep, x, -np.inf)
  p = np.exp(x - x.max())
  p /= p.sum()
  if top_p < 1:
    before = np.cumsum(p[order]) - p[order]
    keep = np.zeros(x.size, bool)
    keep[order[before < top_p]] = True
    p = np.where(keep, p, 0)
  p = np.where(p >= min_p * p.max(), p, 0)
  return p / p.sum()


@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p", "min_p"),
  [(1.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.2), (0.9, 20, 0.9, 0.05)],
)
def test_draws_follow_the_filtered_distribution(temperature, top_k, top_p, min_p):
  n = 20_000
  logits = np.random.default_rng(3).normal(0, 2, VOCAB).astype(np.float32)
  expected = reference(logits, temperature, top_k, top_p, min_p)
  ids, _ = sample(
    jnp.broadcast_to(logits, (n, VOCAB)),
    rows_of(n, temperature, top_k, top_p, min_p),
    jnp.zeros(n, jnp.int32),
    jnp.arange(n),
    jnp.ones(n, bool),
  )
  counts = np.bincount(np.asarray(ids), minlength=VOCAB)
  assert not counts[expected == 0].any(), "an id outside the filter was drawn"
  inside = expected > 0
  deviation = np.abs(counts / n - expected)[inside] / np.sqrt(expected * (1 - expected) / n + 1e-12)[inside]
  assert deviation.max() < 5 or inside.sum() == 1


def test_a_draw_depends_on_its_own_row_alone():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(0, 2, (6, VOCAB)), jnp.float32)
  rows = SamplingRows(
    temperature=jnp.asarray([0.0, 1.0, 1.0, 0.5, 2.0, 1.0]),
    top_k=jnp.asarray([0, 0, 3, 0, 10, 0], jnp.int32),
    top_p=jnp.asarray([1.0, 1.0, 1.0, 0.6, 0.9, 1.0]),
    min_p=jnp.asarray([0.0, 0.0, 0.0, 0.0, 0.1, 0.3]),
    seed=jnp.arange(6),
    logprobs=jnp.ones(6, bool),
  )
  thread, index, live = jnp.zeros(6, jnp.int32), jnp.arange(6), jnp.ones(6, bool)
  together, logprobs = sample(logits, rows, thread, index, live)
  for i in range(6):
    one = SamplingRows(
      *(getattr(rows, f)[i : i + 1] for f in ("temperature", "top_k", "top_p", "min_p", "seed", "logprobs"))
    )
    alone, logprob = sample(logits[i : i + 1], one, thread[:1], index[i : i + 1], live[:1])
    assert int(alone[0]) == int(together[i])
    assert float(logprob[0]) == pytest.approx(float(logprobs[i]), abs=1e-6)


def test_seed_thread_and_index_each_change_the_draw():
  n = 64
  logits = jnp.zeros((n, VOCAB), jnp.float32)
  live = jnp.ones(n, bool)
  base, _ = sample(logits, rows_of(n), jnp.zeros(n, jnp.int32), jnp.arange(n), live)
  for seed, thread, shift in ((1, 0, 0), (0, 1, 0), (0, 0, n)):
    other, _ = sample(
      logits, rows_of(n, seed=seed), jnp.full(n, thread, jnp.int32), jnp.arange(n) + shift, live
    )
    assert int((other != base).sum()) > n // 2


def test_forbidden_ids_are_never_drawn():
  n = 2000
  logits = jnp.where(jnp.arange(VOCAB) % 2 == 0, -jnp.inf, 0.0)
  ids, _ = sample(
    jnp.broadcast_to(logits, (n, VOCAB)),
    rows_of(n, top_p=0.9),
    jnp.zeros(n, jnp.int32),
    jnp.arange(n),
    jnp.ones(n, bool),
  )
  assert (np.asarray(ids) % 2 == 1).all()
