"""Weights that are partly frozen: what a linear map or an embedding takes in place of a plain array."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Adapted(NamedTuple):
  """A matrix with a low-rank update beside it: w + b . a, never formed.

  A gradient with respect to `a` and `b` needs none with respect to `w`.

  Attributes:
    w: (out...)x(in...).
    a: Rx(in...).
    b: (out...)xR, the scale alpha / R included.
  """

  w: jax.Array
  a: jax.Array
  b: jax.Array


class Patched(NamedTuple):
  """A table of V rows, some of which are given apart: those of the marks.

  Attributes:
    table: VxD.
    rows: what stands in for table[start : start + len(rows)].
    start: int32 scalar.
  """

  table: jax.Array
  rows: jax.Array
  start: jax.Array


class Widened(NamedTuple):
  """A table in bfloat16 whose rows are wanted in float32.

  XLA on CPU would widen the whole table before it takes a row: it takes rows of float32 only, or of integers.

  Attributes:
    bits: VxD uint16, the table's bits.
  """

  bits: jax.Array


def take_rows(table: Any, ids: jax.Array) -> jax.Array:
  """Rows of a table, plain or one of the above: ids (...) int32 -> (...)xD. Ids must lie in [0, V)."""
  if isinstance(table, Widened):
    rows = take_rows(table.bits, ids)
    return jax.lax.bitcast_convert_type(rows, jnp.bfloat16).astype(jnp.float32)
  if not isinstance(table, Patched):
    return table.at[ids].get(mode="promise_in_bounds")
  at = ids - table.start
  inside = (at >= 0) & (at < table.rows.shape[0])
  rows = table.rows.at[jnp.where(inside, at, 0)].get(mode="promise_in_bounds")
  rest = table.table.at[ids].get(mode="promise_in_bounds")
  return jnp.where(inside[..., None], rows, rest)


def whole_table(table: Any) -> jax.Array:
  """A plain or patched table as one array, VxD."""
  if not isinstance(table, Patched):
    return table
  zero = jnp.zeros((), table.start.dtype)
  return jax.lax.dynamic_update_slice(table.table, table.rows.astype(table.table.dtype), (table.start, zero))
