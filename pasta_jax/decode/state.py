"""What the device holds between calls: the cache, its cursor, and the progress of every row."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pasta_jax.decode.sampling import SamplingRows
from pasta_jax.model.cache import Cache, cache_shardings, empty_cache
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.sharding import replicated

# Room for a request's stop ids; NO_ID fills what is left.
MAX_STOP_IDS = 8
NO_ID = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """Progress of each request; B rows.

  Attributes:
    ids: B int32, the input of the next step.
    length: B int32, tokens in the cache so far: time and position of the next input.
    made: B int32, ids drawn so far.
    limit: B int32, ids to draw at most.
    active: B bool, still drawing.
    stop_ids: Bx`MAX_STOP_IDS` int32; drawing one ends the row.
    sampling: SamplingRows of B.
  """

  ids: jax.Array
  length: jax.Array
  made: jax.Array
  limit: jax.Array
  active: jax.Array
  stop_ids: jax.Array
  sampling: SamplingRows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Everything that a step reads and writes; donated as a whole.

  Attributes:
    cache: see model/cache.py.
    cursor: scalar int32, the slot that the next step writes.
    rows: see Rows.
  """

  cache: Cache
  cursor: jax.Array
  rows: Rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Admission:
  """One request entering a row; the settings that `Rows` keeps, as scalars (stop_ids: `MAX_STOP_IDS`)."""

  limit: Any
  stop_ids: Any
  temperature: Any
  top_k: Any
  top_p: Any
  min_p: Any
  seed: Any
  logprobs: Any


def empty_state(cfg: ModelConfig, batch: int, num_slots: int, dtype: Any) -> State:
  """No request anywhere."""

  def ints(value: int = 0) -> jax.Array:
    return jnp.full((batch,), value, jnp.int32)

  def floats(value: float) -> jax.Array:
    return jnp.full((batch,), value, jnp.float32)

  sampling = SamplingRows(
    temperature=floats(0),
    top_k=ints(),
    top_p=floats(1),
    min_p=floats(0),
    seed=ints(),
    logprobs=jnp.zeros((batch,), bool),
  )
  rows = Rows(
    ids=ints(),
    length=ints(),
    made=ints(),
    limit=ints(),
    active=jnp.zeros((batch,), bool),
    stop_ids=jnp.full((batch, MAX_STOP_IDS), NO_ID, jnp.int32),
    sampling=sampling,
  )
  return State(cache=empty_cache(cfg, batch, num_slots, dtype), cursor=jnp.int32(0), rows=rows)


def state_shardings(cfg: ModelConfig, mesh: Mesh, batch: int) -> Any:
  """A State of shardings: the cache is split, the few integers of a row are everywhere."""
  abstract = jax.eval_shape(lambda: empty_state(cfg, batch, 1, jnp.float32))
  everywhere = jax.tree.map(lambda _: replicated(mesh), abstract)
  return dataclasses.replace(everywhere, cache=cache_shardings(cfg, mesh, batch))
