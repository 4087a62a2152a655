"""bfloat16 where products are the faster for it, and what its products on CPU give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.model.adapted import Widened, take_rows
from pasta_jax.model.dtypes import cpu_multiplies_bfloat16, resolve_dtype
from pasta_jax.model.layers import linear


@pytest.mark.parametrize(("flags", "has"), [("fma avx512_bf16 sse", True), ("fma avx512_bf16x sse", False)])
def test_a_cpu_says_whether_it_multiplies_bfloat16(tmp_path, flags, has):
  path = tmp_path / "cpuinfo"
  path.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
  assert cpu_multiplies_bfloat16(str(path)) == has
  assert not cpu_multiplies_bfloat16(str(tmp_path / "none"))


def test_auto_is_bfloat16_but_on_cpus_that_are_slow_at_it():
  assert resolve_dtype("auto", "tpu") == resolve_dtype("auto", "gpu") == jnp.bfloat16
  assert resolve_dtype("auto", "cpu") == (jnp.bfloat16 if cpu_multiplies_bfloat16() else jnp.float32)
  assert resolve_dtype("float32", "tpu") == jnp.float32
  assert resolve_dtype("auto", "cpu", few=True) == jnp.float32
  assert resolve_dtype("auto", "tpu", few=True) == jnp.bfloat16


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize(("outputs", "inputs"), [((5,), 7), ((3, 4), 16), ((130,), 64)])
def test_float32_by_bfloat16_is_a_product_of_rounded_inputs_with_gradients(rows, outputs, inputs):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(1, rows, inputs)), jnp.float32)
  w = jnp.asarray(rng.normal(size=(*outputs, inputs)), jnp.bfloat16)
  weights = jnp.asarray(rng.normal(size=(1, rows, *outputs)), jnp.float32)

  def value(x, w):
    y = linear(x, w)
    return (y * weights).sum(), y

  (_, y), (dx, dw) = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(x, w)
  assert (y.dtype, dx.dtype, dw.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
  half, wide = (
    np.asarray(x.astype(jnp.bfloat16), np.float32)[0],
    np.asarray(w, np.float32).reshape(-1, inputs),
  )
  flat = np.asarray(weights).reshape(rows, -1)
  np.testing.assert_allclose(y.reshape(rows, -1), half @ wide.T, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(dx[0], flat @ wide, rtol=0.02, atol=0.02 * np.abs(flat @ wide).max())
  exact = flat.T @ np.asarray(x)[0]
  np.testing.assert_allclose(
    np.asarray(dw, np.float32).reshape(exact.shape), exact, rtol=0.01, atol=0.01 * np.abs(exact).max()
  )


def test_rows_of_a_widened_table_are_its_rows_in_float32():
  table = jnp.asarray(np.random.default_rng(1).normal(size=(9, 4)), jnp.bfloat16)
  rows = take_rows(Widened(jax.lax.bitcast_convert_type(table, jnp.uint16)), jnp.array([[8, 0, 3]]))
  assert rows.dtype == jnp.float32
  assert np.array_equal(rows[0], table.astype(jnp.float32)[jnp.array([8, 0, 3])])
