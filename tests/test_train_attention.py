"""Training attention: the blockwise path computes what the reference path does, with no array of T x T."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.train.attention import Tokens, attention_of
from tests.toy import TOY

CFG = TOY.replace(vocab_size=300)


def random_tokens(rng, batch, length) -> Tokens:
  """Integers of any kind that keep the rule's promise: every token sees itself."""
  segment = np.sort(rng.integers(0, 4, (batch, length)), axis=1)
  time = np.stack([np.concatenate([np.arange((s == n).sum()) for n in range(4)]) for s in segment])
  thread = rng.integers(0, 4, (batch, length))
  later = time + rng.integers(0, 60, (batch, length))
  horizon = np.maximum(time - rng.integers(0, 60, (batch, length)), 0)
  values = (segment, thread, time, later, horizon, time)
  return Tokens(*(jnp.asarray(v, jnp.int32) for v in values))


def parts(seed, cfg, batch=2, length=150):
  rng = np.random.default_rng(seed)
  tokens = random_tokens(rng, batch, length)
  shapes = [(batch, length, n, cfg.head_dim) for n in (cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads)]
  return tokens, [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_both_paths_give_the_same_outputs_and_gradients(cap, local):
  cfg = CFG.replace(attn_softcap=cap, sliding_window=20, sliding_pattern=2)
  tokens, qkv = parts(0, cfg)

  def run(path, block=512):
    attention = attention_of(cfg, tokens, path, block)

    def value(q, k, v):
      out = attention(jnp.asarray(local), q, k, v)
      return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))(*qkv)
    return out, *gradients

  expected = run("reference")
  for block in (32, 100, 512):
    for a, b in zip(run("blockwise", block), expected, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_local_layer_sees_less_than_a_global_one():
  cfg = CFG.replace(sliding_window=5, sliding_pattern=2)
  tokens, qkv = parts(1, cfg)
  attention = attention_of(cfg, tokens, "reference")
  assert not np.allclose(attention(jnp.asarray(True), *qkv), attention(jnp.asarray(False), *qkv))


def test_no_array_of_t_by_t_from_4096_tokens_on():
  length = 4096
  cfg = CFG.replace(num_heads=1, num_kv_heads=1)
  tokens = Tokens(*(jax.ShapeDtypeStruct((1, length), jnp.int32) for _ in Tokens._fields))
  qkv = [jax.ShapeDtypeStruct((1, length, 1, cfg.head_dim), jnp.float32)] * 3

  def squares(path):
    def value(tokens, q, k, v):
      return attention_of(cfg, tokens, path)(False, q, k, v).sum()

    text = jax.jit(jax.grad(value, (1, 2, 3))).lower(tokens, *qkv).as_text()
    sizes = (
      np.prod([int(n) for n in m.split("x")]) for m in re.findall(r"tensor<((?:\d+x)*\d+)x[a-z]", text)
    )
    # The reference path takes a quarter of the queries at a time.
    return sum(size >= length * length // 4 for size in sizes)

  assert squares("auto") == 0
  assert squares("reference") > 0, "the count does not see what it looks for"


def test_an_unknown_path_is_refused():
  with pytest.raises(ValueError, match="attention must be one of"):
    attention_of(CFG, parts(0, CFG)[0], "fast")
