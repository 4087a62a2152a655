"""Matrix products of training: their gradients, in whichever form, and what is not computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.model.layers import linear
from pasta_jax.model.products import product
from pasta_jax.train import step
from pasta_jax.train.setup import set_up
from tests.toy import toy_model
from tests.train_toy import small, write_rows
from tests.weights_files import CONFIGS

SHAPES = [((24,), 8), ((8,), 24), ((4, 6), 24)]  # wide, narrow, square


def arrays(outputs, inputs, dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = (2, 5, inputs), (*outputs, inputs), (2, 5, *outputs)
  x, w, dy = (rng.normal(size=shape) for shape in shapes)
  return jnp.asarray(x, jnp.float32), jnp.asarray(w, dtype), jnp.asarray(dy, jnp.float32)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_gradients_are_those_of_a_plain_product(outputs, inputs):
  x, w, dy = arrays(outputs, inputs)
  _, back = jax.vjp(linear, x, w)
  dx, dw = jax.jit(back)(dy)
  flat_x, flat_w, flat_dy = (np.asarray(a, np.float64).reshape(-1, n) for a, n in
                             ((x, inputs), (w, inputs), (dy, int(np.prod(outputs)))))  # fmt: skip
  np.testing.assert_allclose(dx.reshape(flat_x.shape), flat_dy @ flat_w, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dw.reshape(flat_w.shape), flat_dy.T @ flat_x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("outputs", "gradient"), [(24, ["8", "24"]), (8, ["8", "8"]), (4, ["4", "8"])])
def test_on_cpu_the_gradient_of_a_wide_matrix_is_computed_turned(outputs, gradient):
  x, w, dy = arrays((outputs,), 8)
  text = jax.jit(jax.grad(lambda w: (linear(x, w) * dy).sum())).lower(w).as_text()
  lines = [line for line in text.splitlines() if "dot_general" in line]
  assert lines[-1].rpartition("tensor<")[2].split("x")[:2] == gradient


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_only_what_is_asked_for_is_computed(dtype):
  x, w, dy = arrays((24,), 8, dtype)
  x, dy = x[0], dy[0]

  def loss(x, w):
    return (product(x, w) * dy).sum()

  def products(*of):
    return str(jax.make_jaxpr(jax.grad(loss, of))(x, w)).count("dot_general")

  assert products(0) == 2  # y and dx
  assert products(1) == 3  # y, and dw as it is on CPU and elsewhere
  assert products(0, 1) == 4


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_queries_keys_and_values_at_once_are_the_three_alone(tmp_path, monkeypatch, family):
  data = write_rows(tmp_path / "rows.jsonl")
  model = toy_model(marks=True, cfg=CONFIGS[family].replace(max_len=2048))
  run = set_up(small(data, lora=False), model)
  batch = run.program.place_batch(run.loader.next())
  seen, hidden = [], step.hidden_states

  def gradients(join):
    def hidden_states(*args):
      seen.append(args[-1])
      return hidden(*args[:-1], join)

    monkeypatch.setattr(step, "hidden_states", hidden_states)
    program = dataclasses.replace(run.program)
    part = jax.tree.map(lambda a: a[0], batch)
    return jax.grad(lambda p: program._sums({}, p, part)[0])(run.state["params"])

  apart, joined = gradients(False), gradients(True)
  assert seen == [True, True]  # one CPU: what training takes
  for name in apart:
    np.testing.assert_allclose(joined[name], apart[name], rtol=2e-4, atol=2e-4, err_msg=name)
