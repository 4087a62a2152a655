"""The interpreter on the device does what the one in plain Python does, step by step, whatever is drawn.

What its lanes see, and at which positions they stand, is what the training sequence of the document says.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_jax.decode import step
from pasta_jax.decode.interpreter import plan
from pasta_jax.decode.lanes import lane_mask, main_lanes
from pasta_jax.decode.state import MAX_STOP_IDS, NO_ID, Policy, State, empty_state
from pasta_jax.lang import stats
from pasta_jax.lang.document import problems as document_problems
from pasta_jax.lang.grammar import Kind, Limits, token_kinds
from pasta_jax.lang.interpreter import FORKS, POSITIONS, interpret
from pasta_jax.lang.sequence import training_sequence
from pasta_jax.lang.threads import Threads, decode_threads, problems
from pasta_jax.model.cache import NO_THREAD
from tests.toy import TOY, ByteTokenizer

TOKENIZER = ByteTokenizer(marks=True)
CONTROLS = TOKENIZER.controls
BATCH, THREADS, INDICES = 32, 7, 41
PROMPT = 3
STEPS = 280
STOPS = END, OTHER_END = 256, 8  # the model's own stop ids
TEXT_STOP = 9  # a piece of text that a request names as one
KINDS = token_kinds(TOKENIZER.vocab_size, TOKENIZER.piece, CONTROLS, STOPS, TOKENIZER.special_ids)


@dataclasses.dataclass(frozen=True)
class Program:
  """Scores of every id for each draw of each thread, and the settings of a request."""

  seed: int
  promise: float
  sync: float
  close: float
  end: float
  limit: int
  limits: Limits
  fork: str
  positions: str
  reserved: tuple[int, ...]
  ends: tuple[int, ...] = STOPS
  stops: bool = False

  @property
  def layout(self) -> dict:
    """What a training sequence and the oracle take alike."""
    return {
      "fork": self.fork, "positions": self.positions, "fixed": 64, "true_lengths": self.reserved
    }  # fmt: skip

  @property
  def stop_ids(self) -> tuple[int, ...]:
    return self.ends + (TEXT_STOP,) * self.stops

  @property
  def kinds(self) -> np.ndarray:
    """Of every id; a request that names some stop ids of the model does not have the others."""
    kinds = KINDS.copy()
    kinds[[i for i in STOPS if self.ends and i not in self.ends]] = 0
    return kinds

  def scores(self) -> np.ndarray:
    """NxIxV float32; the likeliest allowed id is drawn."""
    rng = np.random.default_rng(self.seed)
    scores = rng.random((THREADS, INDICES, len(KINDS)), np.float32)
    # Each kind of id is likely now and then, so that marks come at odd places.
    for ids, weight in (
      (CONTROLS.promise, self.promise), (CONTROLS.sync, self.sync), (CONTROLS.close, self.close),
      (END, self.end), (OTHER_END, self.end), (TEXT_STOP, self.end), (list(CONTROLS.lens), 0.3), (32, 0.3),
    ):  # fmt: skip
      hit = rng.random((THREADS, INDICES)) < weight
      scores[:, :, ids] += (
        np.where(hit, 1.0, -1.0)[..., None] if isinstance(ids, list) else np.where(hit, 1, -1)
      )
    return scores.astype(np.float32)


weights = st.sampled_from([0.0, 0.05, 0.3, 0.9])
programs = st.builds(
  Program,
  seed=st.integers(0, 2**32 - 1),
  promise=weights,
  sync=weights,
  close=weights,
  end=st.sampled_from([0.0, 0.02, 0.3]),
  limit=st.integers(1, 60) | st.integers(100, 200),
  limits=st.builds(
    Limits,
    round_chunks=st.integers(1, 4),
    chunks=st.integers(1, THREADS - 1),
    chunk_tokens=st.integers(1, 30),
    overrun=st.integers(1, 2),
    least_grant=st.integers(1, 12),
    topic_pieces=st.integers(1, 4),
  ),
  fork=st.sampled_from(FORKS),
  positions=st.sampled_from(POSITIONS),
  reserved=st.tuples(*[st.integers(0, 40)] * (THREADS - 1)),
  ends=st.sampled_from([STOPS, STOPS, (OTHER_END,), ()]),
  stops=st.booleans(),
)


def oracle(program: Program, lanes: int):
  scores, kinds = program.scores(), program.kinds

  def next_id(thread: int, index: int, allowed: Kind) -> int:
    return int(np.where(kinds & int(allowed), scores[thread, index % INDICES], -np.inf).argmax())

  return interpret(
    next_id, lambda i: Kind(int(kinds[i])), CONTROLS, prompt_length=PROMPT, limit=program.limit,
    limits=program.limits, lanes=lanes, ends=bool(program.ends),
    stop_ids=(TEXT_STOP,) * program.stops, **program.layout,
  )  # fmt: skip


def admitted(batch: list[Program], lanes: int) -> State:
  """Requests that have had their prompt, and whose first id is still to be drawn.

  In the place of keys, the cache has room for what the lane that wrote each slot sees; BxSxS bool.
  """
  slots = PROMPT + lanes * (STEPS + 1)
  state = empty_state(TOY.replace(num_layers=1), len(batch), slots, jnp.float32, THREADS, 1)
  rows = state.rows
  times = jnp.broadcast_to(jnp.arange(PROMPT, dtype=jnp.int32), (len(batch), PROMPT))
  prompt = main_lanes(times, times, times >= 0).slots()
  cache = dataclasses.replace(
    state.cache,
    k=(jnp.zeros((len(batch), slots, slots), bool),),
    v=(),
    slots=jax.tree.map(lambda old, new: old.at[:, :PROMPT].set(new), state.cache.slots, prompt),
  )

  def each(value, dtype=np.int32):
    return jnp.asarray([value(p) for p in batch], dtype)

  limits = {f.name: each(lambda p, n=f.name: getattr(p.limits, n)) for f in dataclasses.fields(Limits)}
  ones = jnp.ones((len(batch),), jnp.int32)
  threads = dataclasses.replace(rows.threads, position=rows.threads.position.at[:, 0].set(PROMPT))
  rows = dataclasses.replace(
    rows,
    active=ones > 0,
    phase=ones * 0,
    left=each(lambda p: p.limit),
    clock=ones * PROMPT,
    stop_ids=each(lambda p: (*p.stop_ids, *[NO_ID] * (MAX_STOP_IDS - len(p.stop_ids)))),
    threads=threads,
    policy=Policy(
      marks=ones > 0,
      ends=each(lambda p: bool(p.ends), bool),
      promise_bias=jnp.zeros((len(batch), 2)),
      fork=each(lambda p: FORKS.index(p.fork)),
      scheme=each(lambda p: POSITIONS.index(p.positions)),
      fixed=ones * 64,
      **limits,
    ),
    script=dataclasses.replace(rows.script, lengths=each(lambda p: (0, *p.reserved))),
  )
  return State(cache=cache, rows=rows, cursor=jnp.int32(PROMPT))


@functools.partial(jax.jit, static_argnums=0)
def run_on_device(loop, state, scores):
  """The first draw, then steps until all have ended; scores BxNxIxV in the place of a model."""
  kinds = jnp.asarray(KINDS, jnp.int32)
  b = jnp.arange(scores.shape[0])[:, None]

  def model(cache, lanes, at, among=None):
    slots = jax.tree.map(
      lambda old, new: jax.lax.dynamic_update_slice(old, new, (0, at)), cache.slots, lanes.slots()
    )
    answer = slots.thread[:, None, PROMPT:]
    fed = jnp.sum(answer == lanes.thread[:, :, None], axis=2)
    seen = jax.lax.dynamic_update_slice(cache.k[0], lane_mask(lanes, slots), (0, at, 0))
    # The main thread's first draw followed the prompt; a chunk's follows its `<async>`.
    index = jnp.where(lanes.thread == 0, fed, fed - 1)
    logits = scores[b, lanes.thread, index % INDICES]
    logits = logits if among is None else among.rows(logits)
    return logits, dataclasses.replace(cache, slots=slots, k=(seen,))

  _, first = plan(state.rows, CONTROLS, 1)
  drawn, _ = step._draw(loop, state.rows, first, kinds, scores[:, 0, :1])
  rows, drawn = step._apply(loop, state.rows, first, drawn, kinds)
  state, out = step.segment(loop, model, kinds, dataclasses.replace(state, rows=rows))
  return drawn[:, 0], out, state.cache.slots.position, state.cache.k[0]


def same(run, first, out, positions, row: int) -> None:
  """Compares what the device did in a row with the oracle's run, step by step."""
  drawn = [*run.main, run.end]
  assert first[row] == drawn[0]
  starts = PROMPT + np.concatenate([[0], np.cumsum(out.widths)])
  for i, expected in enumerate(run.steps):
    live = out.threads[row, i] != NO_THREAD
    assert live[: live.sum()].all(), "lanes in use are the lowest ones"
    got = [
      (int(out.threads[row, i, w]), int(positions[row, starts[i] + w]), int(out.ids[row, i, w]))
      for w in range(live.sum())
    ]
    assert got == [(f.thread, f.position, f.drawn) for f in expected]
  assert (out.threads[row, len(run.steps) :] == NO_THREAD).all()
  assert not out.active[row]


def same_sight(program: Program, run, threads: Threads, out, positions, seen, row: int) -> None:
  """Compares what each lane saw, and its position, with the training sequence of the document."""
  sequence = training_sequence([0] * PROMPT, threads, CONTROLS, END, **program.layout)
  order = [np.flatnonzero(sequence.thread == k).tolist()[::-1] for k in range(len(threads.chunks) + 1)]
  del order[0][-PROMPT:]
  slots, at = list(range(PROMPT)), list(range(PROMPT))  # in the cache, and in the sequence
  start = PROMPT
  for i in range(len(run.steps)):
    for w in np.flatnonzero(out.threads[row, i] != NO_THREAD):
      slots.append(start + w)
      at.append(order[out.threads[row, i, w]].pop())
    start += out.widths[i]
  unfed = [int(sequence.ids[i]) for rest in order for i in rest]
  assert set(unfed) <= {CONTROLS.close}, "all but what closes chunks that nobody sees"
  got = seen[row, slots[PROMPT:]]
  assert (got[:, slots] == sequence.mask()[np.ix_(at[PROMPT:], at)]).all()
  assert got.sum() == got[:, slots].sum(), "nothing else is seen"
  assert (positions[row, slots] == sequence.position[at]).all()


# Of four lanes, steps of their own for few lanes over all requests.
loops = {
  lanes: step.Loop(STEPS, widths, CONTROLS, stop_ids=STOPS, rows=rows)
  for lanes, widths, rows in (
    (1, (1,), ()),
    (2, (1, 2), ()),
    (4, (1, 2, 4), ((), (BATCH,), (BATCH // 2, 2 * BATCH))),
  )
}


@pytest.mark.parametrize("lanes", loops)
@settings(max_examples=40, deadline=None)
@given(batch=st.lists(programs, min_size=BATCH, max_size=BATCH))
def test_the_device_does_what_the_oracle_does(lanes, batch):
  scores = jnp.asarray(np.stack([p.scores() for p in batch]))
  first, out, positions, seen = jax.device_get(run_on_device(loops[lanes], admitted(batch, lanes), scores))
  for row, program in enumerate(batch):
    run = oracle(program, lanes)
    same(run, first, out, positions, row)
    threads = Threads(tuple(run.main), tuple(tuple(c) for c in run.chunks))
    same_sight(program, run, threads, out, positions, seen, row)
    assert not problems(threads, CONTROLS)
    assert not document_problems(decode_threads(threads, TOKENIZER.decode, CONTROLS))
    ids = len(run.main) + 1 + sum(len(c) + 1 for c in run.chunks)
    assert ids <= program.limit
    assert run.cut == (out.left[row] <= 0)


@settings(max_examples=300, deadline=None)
@given(program=programs)
def test_steps_with_a_lane_for_every_thread_are_the_critical_path(program):
  run = oracle(program, THREADS)
  threads = Threads(tuple(run.main), tuple(tuple(c) for c in run.chunks))
  assert len(run.steps) == stats.critical_path(threads, CONTROLS, program.fork)


@settings(max_examples=200, deadline=None)
@given(program=programs)
def test_ids_do_not_depend_on_the_number_of_lanes(program):
  runs = [oracle(program, lanes) for lanes in (1, 2, 3, THREADS)]
  for run in runs:
    assert (run.main, run.chunks, run.end, run.joined) == (
      runs[0].main, runs[0].chunks, runs[0].end, runs[0].joined,
    )  # fmt: skip


def odd_places(program: Program, lanes: int) -> set[str]:
  """What is out of the ordinary in a program's run."""
  scores, kinds = program.scores(), program.kinds
  tried = set()  # marks that were likeliest where they may not stand

  def next_id(thread: int, index: int, allowed: Kind) -> int:
    at = scores[thread, index % INDICES]
    tried.add((thread > 0, Kind(int(kinds[at.argmax()])) & ~allowed))
    if program.ends == (END,) and at.argmax() == OTHER_END:
      tried.add("an end not named")
    return int(np.where(kinds & int(allowed), at, -np.inf).argmax())

  run = interpret(
    next_id, lambda i: Kind(int(kinds[i])), CONTROLS, prompt_length=PROMPT, limit=program.limit,
    limits=program.limits, lanes=lanes, ends=bool(program.ends),
    stop_ids=(TEXT_STOP,) * program.stops, **program.layout,
  )  # fmt: skip
  steps = [{f.thread: f.fed for f in s} for s in run.steps]
  syncs = [s for s in steps if s.get(0) == CONTROLS.sync]
  lens = [CONTROLS.length(i) for i in run.main if i in CONTROLS.lens]
  granted = [min(max(program.limits.overrun * n, program.limits.least_grant), program.limits.chunk_tokens)
             for n in lens]  # fmt: skip
  found = {
    "cut": run.cut,
    "ended": not run.cut,
    "never ends by itself": not program.ends,
    "ended by an id of text": run.end == TEXT_STOP,
    "one id": not run.steps,
    "more threads than lanes": len(run.steps) > len(oracle(program, THREADS).steps),
    "two rounds": len(syncs) > 1,
    "a sync beside the last close": any(len(s) > 1 for s in syncs),
    "a sync after the last close": any(len(s) == 1 for s in syncs),
    "never joined": None in run.joined,
    "joined and not": None in run.joined and len(set(run.joined)) > 1,
    "main ends first": bool(steps) and 0 not in steps[-1],
    "chunk limit": len(run.chunks) == program.limits.chunks,
    "round limit": bool(run.joined) and max(map(run.joined.count, run.joined)) == program.limits.round_chunks,
    "grant used up": any(len(c) == g for c, g in zip(run.chunks, granted, strict=True)),
    "the budget cut a grant": any(len(c) < g for c, g in zip(run.chunks, granted, strict=True)) and run.cut,
    "a chunk outruns its promise": any(len(c) > n for c, n in zip(run.chunks, lens, strict=True)),
    "a sync without chunks refused": (False, Kind.SYNC) in tried,
    "a promise refused": (False, Kind.PROMISE) in tried,
    "a mark refused in a chunk": (True, Kind.PROMISE) in tried,
    "an end refused in a chunk": (True, Kind.END) in tried,
    "an empty chunk refused": (True, Kind.CLOSE) in tried,
    "a stop id that is not the request's refused": "an end not named" in tried,
  }  # fmt: skip
  if run.chunks:
    found |= {f"{program.fork}, {program.positions}": True}
  return {name for name, holds in found.items() if holds}


def test_the_programs_above_reach_the_odd_places():
  rng = np.random.default_rng(0)
  seen: set[str] = set()
  for n in range(150):
    program = Program(
      seed=n, promise=0.3, sync=float(rng.choice([0.0, 0.3])), close=float(rng.choice([0.0, 0.1])),
      end=float(rng.choice([0.0, 0.02])), limit=int(rng.integers(1, 200)), fork=FORKS[n % 2],
      limits=Limits(round_chunks=2 + n % 3, chunks=int(rng.integers(2, 7)), least_grant=12,
                    chunk_tokens=int(rng.choice([9, 30]))),
      positions=POSITIONS[n % 5], reserved=(7,) * 6, ends=(STOPS, (END,), (OTHER_END,), ())[n % 4],
      stops=n % 3 > 0,
    )  # fmt: skip
    seen |= odd_places(program, 2)
  everything = {f"{f}, {p}" for f in FORKS for p in POSITIONS} | {
    "cut", "ended", "never ends by itself", "ended by an id of text", "one id", "more threads than lanes",
    "two rounds", "a sync beside the last close", "a sync after the last close", "never joined",
    "joined and not", "main ends first", "chunk limit", "round limit", "grant used up",
    "the budget cut a grant", "a chunk outruns its promise", "a sync without chunks refused",
    "a promise refused", "a mark refused in a chunk", "an end refused in a chunk", "an empty chunk refused",
    "a stop id that is not the request's refused",
  }  # fmt: skip
  assert seen == everything
