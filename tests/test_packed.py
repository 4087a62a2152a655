"""Packed weights are the same weights, and an engine on CPU decodes with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.programs import _understands
from pasta_jax.decode.requests import Request
from pasta_jax.model import transformer
from pasta_jax.model.packed import Packed, pack, unpack
from tests.toy import toy_model
from tests.weights_files import CONFIGS

forward = jax.jit(transformer.forward, static_argnums=0)


# How many rows a product has matters to the order in which matrices are packed, not to what a family has.
@pytest.mark.parametrize(("family", "rows"), [*((f, 2) for f in CONFIGS), ("gemma3", 1), ("qwen2", 1)])
def test_packed_weights_give_the_same_logits_and_come_back_as_they_were(family, rows):
  model = toy_model(cfg=CONFIGS[family])
  packed = pack(model.config, model.params, rows=rows)
  back = unpack(model.config, packed)
  assert back.keys() == model.params.keys()
  for name, value in model.params.items():
    assert np.array_equal(back[name], value), name
  ids = jnp.arange(24)[None]
  mask = transformer.causal_mask(jnp.array([24]), 24)
  expected, got = (forward(model.config, p, ids, ids, mask) for p in (model.params, packed))
  np.testing.assert_allclose(got, expected, atol=1e-4)


def halved(model):
  return dataclasses.replace(model, params={n: x.astype(jnp.bfloat16) for n, x in model.params.items()})


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_in_bfloat16_they_differ_by_what_rounding_the_inputs_does(family):
  model = halved(toy_model(cfg=CONFIGS[family]))
  packed = pack(model.config, model.params)
  back = unpack(model.config, packed)
  assert back.keys() == model.params.keys()
  for name, value in model.params.items():
    assert back[name].dtype == jnp.bfloat16
    assert np.array_equal(back[name], value), name
  ids = jnp.arange(24)[None]
  mask = transformer.causal_mask(jnp.array([24]), 24)
  wide = {name: x.astype(jnp.float32) for name, x in model.params.items()}
  expected, got = (np.asarray(forward(model.config, p, ids, ids, mask)) for p in (wide, packed))
  assert got.dtype == np.float32
  assert 0 < np.abs(got - expected).max() < 0.03 * np.abs(expected).max()


def test_a_table_in_bfloat16_that_is_embedding_and_head_lies_there_once():
  model = halved(toy_model(cfg=CONFIGS["llama"].replace(tied_embeddings=True)))
  packed = pack(model.config, model.params)
  at = [x.unsafe_buffer_pointer() for x in (model.params["embed"], packed["embed"].bits, packed["head"].w)]
  assert len(set(at)) == 1


@pytest.mark.parametrize("lanes", [1, 4])
def test_an_engine_with_weights_in_bfloat16_keeps_its_cache_in_float32(lanes):
  model = halved(toy_model(marks=True))
  wide = dataclasses.replace(model, params={n: x.astype(jnp.float32) for n, x in model.params.items()})
  answers = []
  for m in (model, wide):
    engine = Engine(m, max_len=64, batch_size=2, lanes=lanes)
    assert engine.programs.new_state().cache.k[0].dtype == jnp.float32
    answers.append(
      engine.generate(
        [Request("abc", max_new_tokens=1, logprobs=True), Request("d", max_new_tokens=1, logprobs=True)]
      )
    )
  for a, b in zip(*answers, strict=True):
    assert a.logprobs[0] == pytest.approx(b.logprobs[0], abs=0.1)


def test_an_engine_packs_its_own_copy_unless_it_may_take_the_weights():
  model = toy_model()
  names = set(model.params)
  kept = Engine(model, max_len=64)
  assert set(model.params) == names
  assert isinstance(kept.params["layers.0.qkv"], Packed)
  mine = dataclasses.replace(model, params=dict(model.params))
  taken = Engine(mine, max_len=64, take=True)
  assert not mine.params
  assert taken.generate(["abc"])[0].ids == kept.generate(["abc"])[0].ids


def test_packed_matrices_of_a_layer_share_one_buffer_that_jax_did_not_copy():
  packed = pack(toy_model().config, toy_model().params)
  at = sorted(packed[f"layers.0.{n}"].w.unsafe_buffer_pointer() for n in ("qkv", "o", "gate_up", "down"))
  assert all(a % 64 == 0 for a in at)
  assert at[-1] - at[0] < sum(packed[f"layers.0.{n}"].w.nbytes + 64 for n in ("qkv", "o", "gate_up", "down"))


def test_an_option_that_the_compiler_lacks_is_left_out():
  assert not _understands(("xla_no_such_option", "1"))
  assert _understands(("xla_cpu_enable_fast_math", False)) == (jax.default_backend() == "cpu")
