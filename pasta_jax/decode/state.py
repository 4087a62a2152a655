"""What the device holds between calls: the cache, its cursor, and the progress of every request."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pasta_jax.decode.sampling import SamplingRows
from pasta_jax.lang.grammar import Phase
from pasta_jax.model.cache import Cache, cache_shardings, empty_cache
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.sharding import replicated

# Room for a request's stop ids; NO_ID fills what is left.
MAX_STOP_IDS = 8
NO_ID = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Threads:
  """Progress of each thread of each request, thread 0 being the main one; all BxN.

  Attributes:
    running: bool; a chunk that has an id to feed. Not used for the main thread, see `Rows.phase`.
    next_id: int32, the id to feed next.
    position: int32, rotary position of `next_id`.
    index: int32, ids drawn so far.
    body: int32, ids of a chunk's body so far.
    grant: int32, ids that its body may have.
    horizon: int32, what a chunk sees of the other threads, see the design's rule.
  """

  running: jax.Array
  next_id: jax.Array
  position: jax.Array
  index: jax.Array
  body: jax.Array
  grant: jax.Array
  horizon: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Policy:
  """How a request runs; B each, int32 but for the first two, which are bool, and promise_bias.

  Attributes:
    marks: whether the answer may have marks.
    ends: whether it may end before its budget does.
    promise_bias: Bx2 float32, added to the logit of a promise as long as the answer has no chunk: at its
      first id, and at later ones.
    fork, scheme: index into interpreter.FORKS and interpreter.POSITIONS.
    fixed: positions that the scheme "fixed" reserves.
    round_chunks, chunks, chunk_tokens, overrun, least_grant, topic_pieces: see grammar.Limits.
  """

  marks: Any
  ends: Any
  promise_bias: Any
  fork: Any
  scheme: Any
  fixed: Any
  round_chunks: Any
  chunks: Any
  chunk_tokens: Any
  overrun: Any
  least_grant: Any
  topic_pieces: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Script:
  """Ids to take instead of the drawn ones.

  Attributes:
    on: B bool.
    ids: BxF int32, what each thread draws, thread after thread, with what ends it.
    starts: BxN int32, where in `ids` a thread begins.
    lengths: BxN int32, body length of each chunk, for the position scheme "oracle".
  """

  on: Any
  ids: Any
  starts: Any
  lengths: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """Progress of each request; B rows, int32 unless said otherwise.

  Attributes:
    active: bool, some thread still has to run.
    phase: the main thread's `grammar.Phase`.
    left: ids that may still be drawn; what running chunks are granted is off it.
    opened: chunks opened so far.
    round_start: chunks opened before the last sync.
    skip: positions that the main thread jumps after feeding its next id.
    pieces, words: of the topic under way.
    clock: time of the next step's first lane.
    stop_ids: Bx`MAX_STOP_IDS`; the main thread ends by drawing one.
    sampling, threads, policy, script: see there.
  """

  active: jax.Array
  phase: jax.Array
  left: jax.Array
  opened: jax.Array
  round_start: jax.Array
  skip: jax.Array
  pieces: jax.Array
  words: jax.Array
  clock: jax.Array
  stop_ids: jax.Array
  sampling: SamplingRows
  threads: Threads
  policy: Policy
  script: Script


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
  """One request entering a row: what `Rows` keeps of it, without the leading axis B."""

  limit: Any
  stop_ids: Any
  sampling: SamplingRows
  policy: Policy
  script: Script


def empty_rows(batch: int, threads: int, script: int) -> Rows:
  """No request anywhere.

  Args:
    batch: B.
    threads: N, chunks of an answer and the main thread.
    script: F, ids of the longest script.
  """

  def ints(*shape: int) -> jax.Array:
    return jnp.zeros((batch, *shape), jnp.int32)

  def floats(value: float) -> jax.Array:
    return jnp.full((batch,), value, jnp.float32)

  def false(*shape: int) -> jax.Array:
    return jnp.zeros((batch, *shape), bool)

  return Rows(
    active=false(),
    phase=jnp.full((batch,), Phase.ENDED, jnp.int32),
    left=ints(),
    opened=ints(),
    round_start=ints(),
    skip=ints(),
    pieces=ints(),
    words=ints(),
    clock=ints(),
    stop_ids=jnp.full((batch, MAX_STOP_IDS), NO_ID, jnp.int32),
    sampling=SamplingRows(
      temperature=floats(0), top_k=ints(), top_p=floats(1), min_p=floats(0), seed=ints(), logprobs=false()
    ),
    threads=Threads(
      running=false(threads),
      **{f.name: ints(threads) for f in dataclasses.fields(Threads) if f.name != "running"},
    ),
    policy=Policy(
      **{f.name: ints() for f in dataclasses.fields(Policy)}
      | {"marks": false(), "ends": false(), "promise_bias": jnp.zeros((batch, 2), jnp.float32)}
    ),
    script=Script(on=false(), ids=ints(script), starts=ints(threads), lengths=ints(threads)),
  )


def empty_state(
  cfg: ModelConfig, batch: int, num_slots: int, dtype: Any, threads: int = 1, script: int = 1
) -> State:
  """No request anywhere; see `empty_rows`."""
  return State(
    cache=empty_cache(cfg, batch, num_slots, dtype),
    cursor=jnp.int32(0),
    rows=empty_rows(batch, threads, script),
  )


def state_shardings(cfg: ModelConfig, mesh: Mesh, batch: int) -> Any:
  """A State of shardings: the cache is split, the few integers of a row are everywhere."""
  abstract = jax.eval_shape(lambda: empty_state(cfg, batch, 1, jnp.float32))
  everywhere = jax.tree.map(lambda _: replicated(mesh), abstract)
  return dataclasses.replace(everywhere, cache=cache_shardings(cfg, mesh, batch))
