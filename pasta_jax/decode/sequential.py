"""The interpreter of answers without marks: one lane per request, nothing to schedule.

What decode/interpreter.py does comes down to this where no request may have marks. The sequential decoder is
the baseline of every speedup, so it does not pay for what it does not use.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pasta_jax.decode.interpreter import Step
from pasta_jax.decode.lanes import main_lanes
from pasta_jax.decode.state import NO_ID, Rows
from pasta_jax.lang.grammar import PLAIN, Phase


def plan(rows: Rows) -> tuple[Rows, Step]:
  """Feeds the main thread's ids; see interpreter.plan."""
  t, live = rows.threads, rows.active[:, None]
  step = Step(
    lanes=main_lanes(t.next_id[:, :1], t.position[:, :1], live),
    who=live[:, :, None],
    joins=jnp.zeros_like(rows.active),
    after=rows.opened,
    upto=rows.opened,
  )
  fed = live.astype(jnp.int32)
  after = dataclasses.replace(
    rows, clock=rows.clock + 1, threads=dataclasses.replace(t, position=t.position + fed)
  )
  return after, step


def allowed_kinds(rows: Rows) -> jax.Array:
  """Everything but the marks; Bx1 int32."""
  return jnp.full((rows.left.shape[0], 1), int(PLAIN), jnp.int32)


def apply(rows: Rows, step: Step, drawn: jax.Array) -> tuple[Rows, jax.Array]:
  """What the drawn ids do; see interpreter.apply."""
  t, live = rows.threads, step.lanes.live
  left = rows.left - live[:, 0].astype(jnp.int32)
  ends = live[:, 0] & (jnp.any(drawn == rows.stop_ids, axis=1) | (left <= 0))
  rows = dataclasses.replace(
    rows,
    left=left,
    active=rows.active & ~ends,
    phase=jnp.where(ends, Phase.ENDED, rows.phase),
    threads=dataclasses.replace(
      t, next_id=jnp.where(live, drawn, t.next_id), index=t.index + live.astype(jnp.int32)
    ),
  )
  return rows, jnp.where(live, drawn, NO_ID)
