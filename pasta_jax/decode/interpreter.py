"""The interpreter of PASTA-LANG on the device: what each lane feeds, and what a drawn id does, as array
operations over all requests at once.

lang/interpreter.py is the same in plain Python, and the oracle of this one. A step of two requests with room
for four lanes; request 0 has opened chunks 1 to 3, request 1 waits at a sync for chunk 2, which closes:

    lane         0        1        2        3
    row 0        main     chunk 1  chunk 2  chunk 3      threads in order, in the lowest lanes
    row 1        <sync/>  </async> .        .            the sync sees what is written beside it

Times count per request. A step's lanes have consecutive ones, but for a `<sync/>`, which comes last, so that
it sees every chunk that it joins.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pasta_jax.decode.lanes import Lanes
from pasta_jax.decode.state import NO_ID, Rows
from pasta_jax.lang.grammar import PLAIN, RULES, Kind, Phase, facts, grant
from pasta_jax.lang.interpreter import FORKS, POSITIONS
from pasta_jax.lang.marks import LENGTHS, ControlIds
from pasta_jax.model.cache import NEVER, Slots

_EAGER = FORKS.index("eager")
_SCHEME = {name: i for i, name in enumerate(POSITIONS)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
  """What the lanes of one step do, and who they are.

  Attributes:
    lanes: BxW, see Lanes.
    who: BxWxN bool, which thread a lane runs.
    joins: B bool, the main thread feeds a `<sync/>` ...
    after, upto: B int32, ... that joins the chunks numbered above `after`, `upto` included.
  """

  lanes: Lanes
  who: jax.Array
  joins: jax.Array
  after: jax.Array
  upto: jax.Array


def plan(rows: Rows, controls: ControlIds, width: int) -> tuple[Rows, Step]:
  """Chooses the threads that run, gives them lanes, and feeds their ids.

  Args:
    width: W, lanes there are.

  Returns:
    Rows in which the ids are fed (positions and clock have moved on), and the step.
  """
  t = rows.threads
  number = jnp.arange(t.next_id.shape[1], dtype=jnp.int32)[None, :]
  runs, joins, closing = _runs(rows, controls, width)
  main = runs[:, 0]
  rank = jnp.cumsum(runs, axis=1, dtype=jnp.int32) - 1
  lane = jnp.arange(width, dtype=jnp.int32)[None, :]
  who = runs[:, None, :] & (rank[:, None, :] == lane[:, :, None])
  live = jnp.any(who, axis=2)

  def of(x: jax.Array) -> jax.Array:
    """From threads to lanes."""
    return jnp.sum(jnp.where(who, x[:, None, :], 0), axis=2, dtype=jnp.int32)

  joined = (number > rows.round_start[:, None]) & (number <= rows.opened[:, None])
  chunk_end = jnp.max(jnp.where(joined, t.position + closing.astype(jnp.int32), 0), axis=1)
  late = joins & (rows.policy.scheme == _SCHEME["max"])
  main_position = jnp.where(late, jnp.maximum(t.position[:, 0], chunk_end), t.position[:, 0])
  position = jnp.where(number == 0, main_position[:, None], t.position)
  is_main = live & main[:, None] & (lane == 0)
  sync_time = rows.clock + width
  time = jnp.where(is_main & joins[:, None], sync_time[:, None], rows.clock[:, None] + lane)
  lanes = Lanes(
    ids=of(t.next_id),
    position=of(position),
    thread=of(jnp.broadcast_to(number, runs.shape)),
    time=time,
    visible_at=jnp.where(is_main, time, jnp.where(joins, sync_time, NEVER)[:, None]),
    horizon=jnp.where(is_main, time, of(t.horizon)),
    live=live,
  )
  fed = jnp.any(who, axis=1)
  skip = jnp.where((number == 0) & main[:, None], rows.skip[:, None], 0)
  back = jnp.sum(jnp.where(joined, t.grant - t.body, 0), axis=1, dtype=jnp.int32)
  after = dataclasses.replace(
    rows,
    phase=jnp.where(joins, Phase.MAIN, rows.phase),
    round_start=jnp.where(joins, rows.opened, rows.round_start),
    left=rows.left + jnp.where(joins, back, 0),
    skip=jnp.where(main, 0, rows.skip),
    clock=rows.clock + width + 1,
    threads=dataclasses.replace(t, position=position + fed.astype(jnp.int32) + skip),
  )
  return after, Step(lanes=lanes, who=who, joins=joins, after=rows.round_start, upto=rows.opened)


def _runs(rows: Rows, controls: ControlIds, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Which threads have an id to feed (BxN), which main threads feed a sync (B), which chunks close (BxN)."""
  t = rows.threads
  number = jnp.arange(t.next_id.shape[1], dtype=jnp.int32)[None, :]
  chunk = t.running & (number > 0)
  closing = chunk & (t.next_id == controls.close)
  chunks = jnp.sum(chunk, axis=1, dtype=jnp.int32)
  all_closing = jnp.all(~chunk | closing, axis=1)
  joins = (rows.phase == Phase.WAIT) & ((chunks == 0) | (all_closing & (chunks < width)))
  main = joins | (rows.phase == Phase.MAIN) | (rows.phase == Phase.TOPIC)
  return jnp.where(number == 0, main[:, None], chunk), joins, closing


def lanes_needed(rows: Rows, controls: ControlIds, width: int) -> jax.Array:
  """Lanes that the next step of each request would fill, had it any number; B int32."""
  return jnp.sum(_runs(rows, controls, width)[0], axis=1, dtype=jnp.int32)


def join_slots(slots: Slots, step: Step) -> Slots:
  """What lies in the cache once this step's syncs have joined their chunks."""
  joined = step.joins[:, None] & (slots.thread > step.after[:, None]) & (slots.thread <= step.upto[:, None])
  # The main thread is lane 0 of its request, and has the sync's time.
  return dataclasses.replace(slots, visible_at=jnp.where(joined, step.lanes.time[:, :1], slots.visible_at))


def main_kinds(rows: Rows) -> jax.Array:
  """The kinds of id that each main thread may draw, as bits of grammar.Kind; B int32."""
  thread = {
    "left": rows.left, "ends": rows.policy.ends, "opened": rows.opened, "round_start": rows.round_start,
    "pieces": rows.pieces, "words": rows.words, "body": rows.left, "grant": rows.left,
  }  # fmt: skip
  holds = facts(rows.policy, thread)
  kinds = jnp.zeros_like(rows.phase)
  for phase in (Phase.MAIN, Phase.TOPIC):
    kinds = jnp.where(rows.phase == phase, _kinds(phase, holds), kinds)
  return jnp.where(rows.policy.marks, kinds, int(PLAIN))


def unnamed(rows: Rows, stop_ids: tuple[int, ...]) -> list[jax.Array]:
  """For each of the model's own stop ids, whether a request ends by others of them and not by this; B bool.

  Such an id would stand in the middle of the answer; where none is named (`policy.ends` is false), any may be
  the end that the budget forces.
  """
  may_end = rows.policy.marks & rows.policy.ends
  return [may_end & ~jnp.any(rows.stop_ids == i, axis=1) for i in stop_ids]


def promise_bias(rows: Rows) -> jax.Array:
  """What is added to the logit of a promise, which the main thread alone may draw; B float32."""
  first, later = rows.policy.promise_bias[:, 0], rows.policy.promise_bias[:, 1]
  return jnp.where(rows.opened > 0, 0.0, jnp.where(rows.threads.index[:, 0] == 0, first, later))


def allowed_kinds(rows: Rows, step: Step, controls: ControlIds) -> jax.Array:
  """The same for every lane; BxW int32. Lanes that draw nothing get every kind, so that none is empty."""
  t = rows.threads
  body, granted = (jnp.sum(jnp.where(step.who, x[:, None], 0), axis=2) for x in (t.body, t.grant))
  chunk = _kinds(Phase.CHUNK, {"more_body": body < granted, "has_body": body > 0})
  kinds = jnp.where(step.lanes.thread == 0, main_kinds(rows)[:, None], chunk)
  draws = step.lanes.live & ~_closes(step, controls)
  return jnp.where(draws, kinds, -1)


def _kinds(phase: Phase, holds: Mapping[str, jax.Array]) -> jax.Array:
  kinds = jnp.int32(0)
  for rule in RULES:
    if rule.phase == phase:
      kinds = kinds | jnp.where(holds[rule.when], int(rule.kind), 0)
  return kinds


def _closes(step: Step, controls: ControlIds) -> jax.Array:
  return (step.lanes.thread > 0) & (step.lanes.ids == controls.close)


def scripted(rows: Rows, step: Step, drawn: jax.Array) -> jax.Array:
  """Drawn ids, BxW, replaced by the script's where a request has one."""
  script = rows.script
  at = jnp.sum(jnp.where(step.who, (script.starts + rows.threads.index)[:, None], 0), axis=2)
  ids = jnp.take_along_axis(script.ids, at, axis=1, mode="clip")
  return jnp.where(script.on[:, None], ids, drawn)


def draw_indices(rows: Rows, step: Step) -> jax.Array:
  """How many ids each lane's thread has drawn; BxW int32."""
  return jnp.sum(jnp.where(step.who, rows.threads.index[:, None], 0), axis=2, dtype=jnp.int32)


def apply(
  rows: Rows, step: Step, drawn: jax.Array, kinds: jax.Array, controls: ControlIds
) -> tuple[Rows, jax.Array]:
  """What the drawn ids do: the transition of every thread.

  Args:
    drawn: BxW int32.
    kinds: V, of every id.

  Returns:
    The rows, and `drawn` with NO_ID where a lane drew nothing.
  """
  live, closes = step.lanes.live, _closes(step, controls)
  drawn = jnp.where(live & ~closes, drawn, NO_ID)
  rows = _apply_chunks(rows, step, drawn, closes, controls)
  rows = _apply_main(rows, step, drawn, kinds, controls)
  ended = rows.phase == Phase.ENDED
  t = rows.threads
  # Once the main thread has ended, nobody will see a chunk's `</async>`.
  running = t.running & ~(ended[:, None] & (t.next_id == controls.close))
  rows = dataclasses.replace(rows, threads=dataclasses.replace(t, running=running))
  return dataclasses.replace(rows, active=~ended | jnp.any(running[:, 1:], axis=1)), drawn


def _apply_chunks(rows: Rows, step: Step, drawn: jax.Array, closes: jax.Array, controls: ControlIds) -> Rows:
  t = rows.threads
  closed = jnp.any(step.who & closes[:, :, None], axis=1)
  drew = jnp.any(step.who & (drawn != NO_ID)[:, :, None], axis=1)
  thread_drawn = jnp.sum(jnp.where(step.who, drawn[:, :, None], 0), axis=1, dtype=jnp.int32)
  threads = dataclasses.replace(
    t,
    running=t.running & ~closed,
    next_id=jnp.where(drew, thread_drawn, t.next_id),
    index=t.index + drew.astype(jnp.int32),
    body=t.body + (drew & (thread_drawn != controls.close)).astype(jnp.int32),
  )
  return dataclasses.replace(rows, threads=threads)


def _apply_main(rows: Rows, step: Step, drawn: jax.Array, kinds: jax.Array, controls: ControlIds) -> Rows:
  """The main thread's transition; where it did not run, nothing changes."""
  t, policy = rows.threads, rows.policy
  draws = step.who[:, 0, 0]
  drawn = drawn[:, 0]
  kind = kinds.at[jnp.maximum(drawn, 0)].get(mode="clip").astype(jnp.int32)

  def of(*want: Kind) -> jax.Array:
    return draws & ((kind & int(sum(want))) != 0)

  marks = policy.marks
  in_main, in_topic = rows.phase == Phase.MAIN, rows.phase == Phase.TOPIC
  promise, sync = marks & in_main & of(Kind.PROMISE), marks & in_main & of(Kind.SYNC)
  opens = marks & in_topic & of(Kind.LEN)
  piece = draws & in_topic & ~opens
  left = rows.left - draws.astype(jnp.int32)
  stop = jnp.any(drawn[:, None] == rows.stop_ids, axis=1)
  ends = draws & in_main & (stop | (left <= 0)) & ~promise & ~sync

  # A chunk opens.
  promised = _promised(drawn, controls)
  granted = jnp.where(opens, grant(policy, promised, left, jnp.minimum, jnp.maximum), 0)
  left = left - jnp.where(opens, granted + 1, 0)
  opened = rows.opened + opens.astype(jnp.int32)
  number = jnp.arange(t.next_id.shape[1], dtype=jnp.int32)[None, :]
  fresh = opens[:, None] & (number == opened[:, None])
  true_length = jnp.sum(jnp.where(fresh, rows.script.lengths, 0), axis=1, dtype=jnp.int32)
  reserved = {"pred10": promised, "oracle": true_length, "fixed": policy.fixed}
  skip = jnp.zeros_like(left)
  for scheme, length in reserved.items():
    skip = jnp.where(policy.scheme == _SCHEME[scheme], length, skip)
  eager = policy.fork == _EAGER
  # Waiting chunks of a grouped round start together, and see what the main thread has fed until now.
  waiting = (number > 0) & (number > rows.round_start[:, None]) & (number <= rows.opened[:, None])
  starts = (sync | ends)[:, None] & waiting & ~eager[:, None]
  # `rows.clock` is the time of the next step's first lane, which feeds the length id.
  horizon = jnp.where(fresh, rows.clock[:, None], jnp.where(starts, step.lanes.time[:, :1], t.horizon))
  threads = dataclasses.replace(
    t,
    running=t.running | (fresh & eager[:, None]) | starts,
    next_id=jnp.where(fresh, controls.open, t.next_id),
    position=jnp.where(fresh, t.position[:, :1] + 1, t.position),
    grant=jnp.where(fresh, granted[:, None], t.grant),
    horizon=horizon,
  )
  phase = rows.phase
  for where, to in (
    (promise, Phase.TOPIC), (sync, Phase.WAIT), (opens, Phase.MAIN), (ends, Phase.ENDED)
  ):  # fmt: skip
    phase = jnp.where(where, to, phase)
  begins_word = (of(Kind.WORD) | (rows.pieces == 0)) & piece
  return dataclasses.replace(
    rows,
    phase=phase,
    left=left,
    opened=opened,
    skip=jnp.where(opens, skip, rows.skip),
    pieces=jnp.where(promise, 0, rows.pieces + piece.astype(jnp.int32)),
    words=jnp.where(promise, 0, rows.words + begins_word.astype(jnp.int32)),
    threads=threads,
  )


def _promised(ids: jax.Array, controls: ControlIds) -> jax.Array:
  """Tokens that a length id promises; 0 for other ids."""
  hit = ids[:, None] == jnp.asarray(controls.lens, jnp.int32)[None, :]
  return jnp.sum(jnp.where(hit, jnp.asarray(LENGTHS, jnp.int32)[None, :], 0), axis=1, dtype=jnp.int32)
