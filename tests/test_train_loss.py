"""The chunked cross-entropy equals the plain one, its gradients too, for plain and patched tables."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.lang.sequence import Target
from pasta_jax.model.adapted import Patched, whole_table
from pasta_jax.train import loss
from pasta_jax.train.loss import class_sums, cross_entropy, piece_length, piece_lengths
from tests.toy import TOY

V, D = 70, 16


def parts(seed=0, batch=2, length=24):
  rng = np.random.default_rng(seed)
  hidden = jnp.asarray(rng.normal(size=(batch, length, D)), jnp.float32)
  table = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
  target = jnp.asarray(rng.integers(-1, 60, (batch, length)), jnp.int32)
  weight = jnp.where(target >= 0, jnp.asarray(rng.uniform(0.5, 2, (batch, length)), jnp.float32), 0)
  return hidden, table, target, weight


def plain(cfg, vocab, table, hidden, target, weight):
  logits = hidden @ whole_table(table).T
  if cfg.final_softcap:
    logits = cfg.final_softcap * jnp.tanh(logits / cfg.final_softcap)
  logits = jnp.where(jnp.arange(V) < vocab, logits, -jnp.inf)
  nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(target, 0)[..., None], -1)[..., 0]
  return (nll * weight).sum(), (jnp.where(weight > 0, nll, 0), logits.argmax(-1))


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize(("tokens", "length"), [(1, 24), (7, 23), (16, 24), (1000, 24)])
def test_it_equals_the_plain_one_with_gradients(cap, patched, tokens, length):
  cfg = TOY.replace(vocab_size=V, final_softcap=cap)
  hidden, table, target, weight = parts(length=length)
  frozen = jnp.asarray(np.random.default_rng(9).normal(size=(V, D)), jnp.float32)

  def table_of(trained):
    return Patched(frozen, trained[50:60], jnp.int32(50)) if patched else trained

  def ours(trained, hidden):
    return cross_entropy(cfg, 64, tokens, table_of(trained), hidden, target, weight)

  def theirs(trained, hidden):
    return plain(cfg, 64, table_of(trained), hidden, target, weight)

  (a, per_token), da = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(table, hidden)
  (b, (nll, best)), db = jax.jit(jax.value_and_grad(theirs, (0, 1), has_aux=True))(table, hidden)
  np.testing.assert_allclose(a, b, rtol=1e-5)
  np.testing.assert_allclose(per_token["nll"], nll, atol=1e-4)
  for x, y in zip(da, db, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-4)
  value, per_token = jax.jit(ours)(table, hidden)  # without a gradient it is another program
  np.testing.assert_allclose(value, b, rtol=1e-5)
  assert np.array_equal(per_token["best"], jnp.where(weight > 0, best, 0))


def test_no_logits_of_a_whole_batch():
  cfg = TOY.replace(vocab_size=V)
  hidden, table, target, weight = parts(batch=2, length=24)

  def value(table, hidden):
    return cross_entropy(cfg, V, 8, table, hidden, target, weight)[0]

  text = jax.jit(jax.grad(value, (0, 1))).lower(table, hidden).as_text()
  assert f"tensor<1x8x{V}x" in text
  rows = {math.prod(map(int, m.split("x"))) for m in re.findall(rf"tensor<([0-9x]+)x{V}x", text)}
  assert max(rows) <= 8


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_tokens_without_weight_cost_nothing_wherever_the_rows_lie(shards):
  cfg = TOY.replace(vocab_size=V)
  hidden, table, target, weight = parts(batch=4, length=24)
  weight = weight.at[:, 5:].set(0).at[3].set(0)
  poison = jnp.where(weight[..., None] > 0, hidden, jnp.nan)

  def value(table, hidden):
    return cross_entropy(cfg, V, 8, table, hidden, target, weight, shards)[0]

  a, da = jax.jit(jax.value_and_grad(value, (0, 1)))(
    table, jnp.where(jnp.arange(24)[:, None] < 12, hidden, poison)
  )
  b, db = jax.value_and_grad(lambda *xs: plain(cfg, V, *xs, target, weight)[0], (0, 1))(table, hidden)
  np.testing.assert_allclose(a, b, rtol=1e-5)
  for x, y in zip(da, db, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_pieces_keep_to_the_tokens_and_divide_the_length_unless_they_would_be_tiny():
  assert piece_length(4, 512, 512) == 128
  assert piece_length(8, 100, 60) == 5
  assert piece_length(8, 7, 1) == 1
  assert piece_length(1, 7, 100) == 7
  assert piece_length(1, 641, 512) == 321


def test_pieces_come_in_a_few_sizes_that_differ_by_enough():
  assert piece_lengths(1024, 1) == [1024, 896, 768, 640, 512, 384, 256, 128]
  assert piece_lengths(4096, 2) == [4096, 3584, 3072, 2560, 2048, 1536, 1024, 512]
  assert piece_lengths(300, 1) == [300, 150]
  assert piece_lengths(100, 2) == [100]
  assert piece_lengths(1, 4096) == [1]


@pytest.mark.parametrize("weighted", [0, 1, 5, 8, 13, 17, 24])
@pytest.mark.parametrize("shards", [1, 2])
def test_every_size_gives_the_same(monkeypatch, shards, weighted):
  monkeypatch.setattr(loss, "STEP", 4)
  cfg = TOY.replace(vocab_size=V)
  hidden, table, target, _ = parts(batch=2, length=24)
  target = jnp.maximum(target, 0)
  weight = jnp.ones((2, 24)).at[0, weighted:].set(0).at[1, : 24 - weighted // 2].set(0)

  def ours(table, hidden):
    return cross_entropy(cfg, V, 24, table, hidden, target, weight, shards)[0]

  a, da = jax.jit(jax.value_and_grad(ours, (0, 1)))(table, hidden)
  b, db = jax.value_and_grad(lambda *xs: plain(cfg, V, *xs, target, weight)[0], (0, 1))(table, hidden)
  np.testing.assert_allclose(a, b, rtol=1e-5)
  for x, y in zip(da, db, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("weighted", [1, 5, 8, 13, 21])
def test_the_size_is_the_one_that_computes_the_fewest_tokens(monkeypatch, weighted):
  monkeypatch.setattr(loss, "STEP", 4)
  cfg = TOY.replace(vocab_size=V)
  hidden, table, target, _ = parts(batch=1, length=24)
  target = jnp.maximum(target, 0)
  weight = jnp.ones((1, 24)).at[:, weighted:].set(0)
  computed = -(-weighted // 4) * 4

  def gradient(first_nan):
    bad = hidden.at[:, first_nan:].set(jnp.nan)
    return jax.grad(lambda table: cross_entropy(cfg, V, 24, table, bad, target, weight)[0])(table)

  assert np.isfinite(gradient(computed)).all()
  if computed > weighted:
    assert not np.isfinite(gradient(computed - 1)).all(), "the gradient does not show what was computed"


def test_sums_by_class_leave_out_what_is_not_trained():
  nll = jnp.asarray([[1.0, 2.0, 4.0, 8.0]])
  kind = jnp.asarray([[Target.TEXT, Target.TEXT, Target.MARK, Target.NONE]])
  sums = class_sums(nll, kind, jnp.asarray([[True, False, True, False]]))
  assert sums["text_nll"] == 1
  assert sums["text_tokens"] == 1
  assert sums["mark_nll"] == 4
  assert sums["length_tokens"] == 0
