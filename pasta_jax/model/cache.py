"""The key/value cache: per layer two arrays of slots, and four integers per slot that say what lies in it.

Rows are requests. All rows write at one shared cursor, so a step is one contiguous update however ragged the
rows are; the raggedness is in the integers. Three requests (prompts of 3, 5 and 2 tokens; the third entered
when the cursor was at 6), two steps later, `.` a dead slot that nobody sees:

    slot      0  1  2  3  4  5  6  7 | 8 ...
    row 0     p0 p1 p2 .  .  m3 m4 m5| <- cursor: the next step writes here
    row 1     p0 p1 p2 p3 p4 m5 m6 m7|
    row 2     p0 p1 .  .  .  .  m2 m3|

Compaction moves the live slots of every row to the front, in order, and the cursor back to the longest row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.sharding import named_sharding

# visible_at of a slot whose token no other thread ever sees, and of a dead slot.
NEVER = 2**30
# thread of a dead slot: no query has it.
NO_THREAD = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
  """What lies in each slot (design: one rule for who sees whom). All BxS int32.

  Attributes:
    position: rotary position of the key.
    thread: thread of its token; NO_THREAD where the slot is dead.
    time: when it was written, counted per request.
    visible_at: from which horizon on other threads see it.
  """

  position: jax.Array
  thread: jax.Array
  time: jax.Array
  visible_at: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of all layers.

  Attributes:
    k, v: L arrays BxKxSxE each.
    slots: see Slots.
  """

  k: tuple[jax.Array, ...]
  v: tuple[jax.Array, ...]
  slots: Slots

  @property
  def num_slots(self) -> int:
    return self.slots.thread.shape[1]


def dead_slots(batch: int, num_slots: int) -> Slots:
  def full(value: int) -> jax.Array:
    return jnp.full((batch, num_slots), value, jnp.int32)

  return Slots(position=full(0), thread=full(NO_THREAD), time=full(0), visible_at=full(NEVER))


def empty_cache(cfg: ModelConfig, batch: int, num_slots: int, dtype: Any) -> Cache:
  """A cache of dead slots."""
  shape = (batch, cfg.num_kv_heads, num_slots, cfg.head_dim)
  k = tuple(jnp.zeros(shape, dtype) for _ in range(cfg.num_layers))
  v = tuple(jnp.zeros(shape, dtype) for _ in range(cfg.num_layers))
  return Cache(k=k, v=v, slots=dead_slots(batch, num_slots))


def cache_bytes(cfg: ModelConfig, batch: int, num_slots: int, dtype: Any) -> int:
  """Bytes of keys and values."""
  itemsize = jnp.dtype(dtype).itemsize
  return 2 * cfg.num_layers * batch * cfg.num_kv_heads * num_slots * cfg.head_dim * itemsize


def cache_shardings(cfg: ModelConfig, mesh: Mesh, batch: int) -> Cache:
  """Rows over `data` and `fsdp`, key heads over `tensor`; as a Cache of shardings."""
  kv = named_sharding(("batch", "kv_heads", None, None), (batch, cfg.num_kv_heads, 1, cfg.head_dim), mesh)
  slot: Any = named_sharding(("batch", None), (batch, 1), mesh)
  shardings = Slots(position=slot, thread=slot, time=slot, visible_at=slot)
  layers: Any = (kv,) * cfg.num_layers
  return Cache(k=layers, v=layers, slots=shardings)


def compact(cache: Cache) -> tuple[Cache, jax.Array]:
  """Moves live slots to the front of each row, in order.

  Returns:
    The cache, and the new cursor: the largest number of live slots in a row, scalar int32.
  """
  dead = cache.slots.thread == NO_THREAD
  order = jnp.argsort(dead, axis=1, stable=True)

  def kv(x: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, order[:, None, :, None], axis=2, mode="clip")

  slots = jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=1, mode="clip"), cache.slots)
  cursor = jnp.max(jnp.sum(~dead, axis=1)).astype(jnp.int32)
  return Cache(k=tuple(map(kv, cache.k)), v=tuple(map(kv, cache.v)), slots=slots), cursor
