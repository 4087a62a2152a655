"""The NNX module: parameters of the table, logits of the forward, made in their shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pasta_jax.model import transformer
from pasta_jax.model.module import Transformer, init_sharded, params_of
from pasta_jax.model.params import init_params, param_table
from pasta_jax.model.sharding import make_mesh, param_shardings
from pasta_jax.model.weights import random_params
from tests.toy import TOY, toy_model

CFG = TOY.replace(vocab_size=40)


def test_parameters_go_into_a_module_and_come_back_uncopied():
  model = toy_model()
  module = Transformer.from_params(model.config, model.params)
  back = params_of(module)
  assert back.keys() == model.params.keys()
  assert all(back[name] is value for name, value in model.params.items())


def test_a_module_of_its_own_has_the_tables_parameters_of_its_seed():
  module = Transformer(CFG, rngs=nnx.Rngs(params=3), dtype=jnp.bfloat16)
  params = params_of(module)
  assert {name: x.shape for name, x in params.items()} == {n: s.shape for n, s in param_table(CFG).items()}
  assert {x.dtype for x in params.values()} == {jnp.dtype(jnp.bfloat16)}
  again, other = (
    params_of(Transformer(CFG, rngs=nnx.Rngs(params=seed), dtype=jnp.bfloat16)) for seed in (3, 4)
  )
  assert np.array_equal(params["embed"], again["embed"])
  assert not np.array_equal(params["embed"], other["embed"])


def test_a_call_gives_the_logits_of_the_forward_also_of_padded_rows():
  model = toy_model()
  module = Transformer.from_params(model.config, model.params)
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 12)))
  positions = jnp.broadcast_to(jnp.arange(12)[None], ids.shape)

  def expected(lengths):
    mask = transformer.causal_mask(lengths, 12)
    return transformer.forward(model.config, model.params, ids, positions, mask)

  np.testing.assert_allclose(module(ids), expected(jnp.asarray([12, 12])), atol=1e-5)
  lengths = jnp.asarray([12, 5])
  got = module(ids, lengths)
  np.testing.assert_allclose(got, expected(lengths), atol=1e-5)
  # What follows a row's end does not count.
  np.testing.assert_allclose(module(ids.at[1, 5:].set(7), lengths)[1, :5], got[1, :5], atol=1e-5)


def test_parameters_that_do_not_fit_the_config_are_refused():
  params = init_params(CFG, jax.random.key(0))
  with pytest.raises(ValueError, match=r"layers\.0\.q"):
    Transformer.from_params(CFG, {n: x for n, x in params.items() if n != "layers.0.q"})


def test_sharded_initialisation_is_that_of_random_weights_in_the_tables_shardings():
  mesh = make_mesh()
  params, expected = init_sharded(CFG, 5, mesh), random_params(CFG, 5, mesh=mesh)
  assert params.keys() == expected.keys()
  for name, sharding in param_shardings(CFG, mesh).items():
    np.testing.assert_allclose(params[name], expected[name], rtol=1e-6, atol=1e-7, err_msg=name)
    assert params[name].sharding.is_equivalent_to(sharding, params[name].ndim), name
