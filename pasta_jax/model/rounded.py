"""Products of float32 activations with bfloat16 weights, for CPUs that have instructions for bfloat16.

XLA's CPU library multiplies bfloat16 by bfloat16 into float32 at twice the speed of float32, but has no such
product over the first axis of both operands (docs/performance.md). So the gradient of the weights is computed
in float32:

    y   RxO = x RxI . w OxI     bfloat16
    dx  RxI = dy RxO . w OxI    bfloat16
    dw  OxI = dy RxO . x RxI    float32
"""

import jax
import jax.numpy as jnp


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
  dims = (((a_axis,), (b_axis,)), ((), ()))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


@jax.custom_vjp
def rounded_product(x: jax.Array, w: jax.Array) -> jax.Array:
  """x . w transposed, x rounded to bfloat16.

  Args:
    x: RxI float32.
    w: OxI bfloat16.

  Returns:
    RxO float32.
  """
  return _dot(x.astype(w.dtype), w, 1, 1)


def _save(x: jax.Array, w: jax.Array):
  return rounded_product(x, w), (x, w)


def _backward(saved, dy: jax.Array):
  x, w = saved
  return _dot(dy.astype(w.dtype), w, 1, 0), _dot(dy, x, 0, 0).astype(w.dtype)


rounded_product.defvjp(_save, _backward)
