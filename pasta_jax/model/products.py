"""The matrix product of linear maps, with gradients in the form that XLA's CPU library is fast at.

    y   RxO = x RxI . w OxI
    dx  RxI = dy RxO . w OxI
    dw  OxI = dy RxO . x RxI               O <= I
            = (x RxI . dy RxO) turned      O > I, on CPU: up to six times as fast (docs/performance.md)

Weights in bfloat16 beside activations in float32 are for CPUs that have instructions for bfloat16:
bfloat16 by bfloat16 into float32 goes at twice the speed of float32. The library has no such product over the
first axis of both operands, so that dw is computed in the dtype of x.
"""

from typing import Any

import jax
import jax.numpy as jnp


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int, dtype: Any) -> jax.Array:
  return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=dtype)


def _of_weights(dy: jax.Array, x: jax.Array) -> jax.Array:
  """dw, OxI, of dy RxO and x RxI, in their dtype."""

  def plain(dy: jax.Array, x: jax.Array) -> jax.Array:
    return _dot(dy, x, 0, 0, x.dtype)

  def turned(dy: jax.Array, x: jax.Array) -> jax.Array:
    # The barrier keeps XLA from making the turning part of the product again.
    return jax.lax.optimization_barrier(_dot(x, dy, 0, 0, x.dtype)).T

  if dy.shape[1] <= x.shape[1]:
    return plain(dy, x)
  return jax.lax.platform_dependent(dy, x, cpu=turned, default=plain)


def _needed(x: Any, w: Any) -> tuple[jax.Array | None, jax.Array | None, jax.Array]:
  """What the gradient needs: x for dw, w for dx, and the dtype of dw; a frozen matrix has no dw."""
  return x.value if w.perturbed else None, w.value if x.perturbed else None, jnp.zeros((), w.value.dtype)


@jax.custom_vjp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
  """x . w transposed, x rounded to the dtype of w where they differ: RxI and OxI -> RxO in the dtype of x."""
  return _dot(x.astype(w.dtype), w, 1, 1, x.dtype)


def _save(x: Any, w: Any):
  return product(x.value, w.value), _needed(x, w)


def _backward(saved, dy: jax.Array):
  x, w, like = saved
  dx = None if w is None else _dot(dy.astype(w.dtype), w, 1, 0, dy.dtype)
  return dx, None if x is None else _of_weights(dy, x).astype(like.dtype)


product.defvjp(_save, _backward, symbolic_zeros=True)
