"""The inputs of one forward: an id per lane, with the integers that say who sees whom."""

import dataclasses

import jax
import jax.numpy as jnp

from pasta_jax.lang.visibility import visible
from pasta_jax.model.cache import NEVER, NO_THREAD, Slots

MAIN = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanes:
  """The inputs of one forward; BxT each, T lanes of a step or tokens of a prompt.

  Attributes:
    ids, position, thread, time, visible_at, horizon: int32, see model/cache.py `Slots` and the design's rule.
    live: bool; a lane that is not live writes a dead slot, and its output means nothing.
  """

  ids: jax.Array
  position: jax.Array
  thread: jax.Array
  time: jax.Array
  visible_at: jax.Array
  horizon: jax.Array
  live: jax.Array

  def slots(self) -> Slots:
    """What these lanes leave in the cache."""
    return Slots(
      position=self.position,
      thread=jnp.where(self.live, self.thread, NO_THREAD),
      time=self.time,
      visible_at=jnp.where(self.live, self.visible_at, NEVER),
    )


def main_lanes(ids: jax.Array, time: jax.Array, live: jax.Array) -> Lanes:
  """Lanes of the main thread or the prompt: position, visible_at and horizon are their own time."""
  return Lanes(
    ids=ids,
    position=time,
    thread=jnp.full_like(ids, MAIN),
    time=time,
    visible_at=time,
    horizon=time,
    live=live,
  )


def lane_mask(lanes: Lanes, slots: Slots) -> jax.Array:
  """Which slots each lane sees, by the design's one rule; BxTxS bool."""
  return visible(
    lanes.thread[:, :, None],
    lanes.time[:, :, None],
    lanes.horizon[:, :, None],
    slots.thread[:, None, :],
    slots.time[:, None, :],
    slots.visible_at[:, None, :],
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gathered:
  """The live lanes of a step side by side, for matrix products that need not know whose they are.

      request 0   main  chunk 1  chunk 2  .        take   0 1 2 4 8 9 .
      request 1   main  .        .        .        place  0 1 2 0 3 0 0 0 4 5 0 0
      request 2   main  chunk 1  .        .

  Attributes:
    take: R int32, the lanes in the order of `lane + width * request`, live ones first.
    place: B*W int32, where each lane is among them; 0 for lanes that are not live.
  """

  take: jax.Array
  place: jax.Array

  def rows(self, x: jax.Array) -> jax.Array:
    """BxWx... -> 1xRx..."""
    return x.reshape(-1, *x.shape[2:]).at[self.take].get(mode="promise_in_bounds")[None]

  def lanes(self, x: jax.Array, batch: int) -> jax.Array:
    """1xRx... -> BxWx...; a lane that is not live gets what another has."""
    width = self.place.shape[0] // batch
    return x[0].at[self.place].get(mode="promise_in_bounds").reshape(batch, width, *x.shape[2:])


def gather_live(live: jax.Array, rows: int) -> Gathered:
  """Puts live lanes (BxW bool, at most `rows` of them) side by side."""
  flat = live.reshape(-1)
  place = jnp.where(flat, jnp.cumsum(flat, dtype=jnp.int32) - 1, 0)
  return Gathered(take=jnp.argsort(~flat, stable=True)[:rows].astype(jnp.int32), place=place)
