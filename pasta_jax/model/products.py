"""Matrix products with gradients in the form that XLA's CPU library is fast at.

    y   RxO = x RxI . w OxI
    dx  RxI = dy RxO . w OxI
    dw  OxI = dy RxO . x RxI               O <= I
            = (x RxI . dy RxO) turned      O > I, on CPU: up to six times as fast (docs/performance.md)

The rounded one is of float32 activations with bfloat16 weights, for CPUs that have instructions for bfloat16:
bfloat16 by bfloat16 into float32 goes at twice the speed of float32. The library has no such product over the
first axis of both operands, so that dw is computed in float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int, dtype: Any) -> jax.Array:
  return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=dtype)


def _of_weights(dy: jax.Array, x: jax.Array, dtype: Any) -> jax.Array:
  """dw, OxI, of dy RxO and x RxI."""

  def plain(dy: jax.Array, x: jax.Array) -> jax.Array:
    return _dot(dy, x, 0, 0, dtype)

  def turned(dy: jax.Array, x: jax.Array) -> jax.Array:
    # The barrier keeps XLA from making the turning part of the product again.
    return jax.lax.optimization_barrier(_dot(x, dy, 0, 0, dtype)).T

  if dy.shape[1] <= x.shape[1]:
    return plain(dy, x)
  return jax.lax.platform_dependent(dy, x, cpu=turned, default=plain)


def _needed(x: Any, w: Any) -> tuple[jax.Array | None, jax.Array | None, jax.Array]:
  """What the gradient needs: x for dw, w for dx, and the dtype of dw; a frozen matrix has no dw."""
  return x.value if w.perturbed else None, w.value if x.perturbed else None, jnp.zeros((), w.value.dtype)


@jax.custom_vjp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
  """x . w transposed: RxI and OxI of one dtype -> RxO."""
  return _dot(x, w, 1, 1, x.dtype)


def _save(x: Any, w: Any):
  return product(x.value, w.value), _needed(x, w)


def _backward(saved, dy: Any):
  x, w, like = saved
  if isinstance(dy, SymbolicZero):
    return None, None
  dx = None if w is None else _dot(dy, w, 1, 0, dy.dtype)
  return dx, None if x is None else _of_weights(dy, x, like.dtype)


product.defvjp(_save, _backward, symbolic_zeros=True)


@jax.custom_vjp
def rounded_product(x: jax.Array, w: jax.Array) -> jax.Array:
  """x . w transposed, x rounded to bfloat16.

  Args:
    x: RxI float32.
    w: OxI bfloat16.

  Returns:
    RxO float32.
  """
  return _dot(x.astype(w.dtype), w, 1, 1, jnp.float32)


def _save_rounded(x: Any, w: Any):
  return rounded_product(x.value, w.value), _needed(x, w)


def _backward_rounded(saved, dy: Any):
  x, w, like = saved
  if isinstance(dy, SymbolicZero):
    return None, None
  dx = None if w is None else _dot(dy.astype(w.dtype), w, 1, 0, jnp.float32)
  return dx, None if x is None else _of_weights(dy, x, jnp.float32).astype(like.dtype)


rounded_product.defvjp(_save_rounded, _backward_rounded, symbolic_zeros=True)
