"""The interpreter on the device does what the one in plain Python does, step by step, whatever is drawn."""

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
from pasta_jax.decode.state import MAX_STOP_IDS, NO_ID, Policy, State, empty_state
from pasta_jax.lang import stats
from pasta_jax.lang.document import problems as document_problems
from pasta_jax.lang.grammar import Kind, Limits, token_kinds
from pasta_jax.lang.interpreter import FORKS, POSITIONS, interpret
from pasta_jax.lang.threads import Threads, decode_threads, problems
from pasta_jax.model.cache import NO_THREAD
from tests.toy import TOY, ByteTokenizer

TOKENIZER = ByteTokenizer(marks=True)
CONTROLS = TOKENIZER.controls
KINDS = token_kinds(
  TOKENIZER.vocab_size, TOKENIZER.piece, CONTROLS, TOKENIZER.stop_ids, TOKENIZER.special_ids
)
BATCH, THREADS, INDICES, SLOTS = 32, 7, 41, 2048
PROMPT = 3


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

  def scores(self) -> np.ndarray:
    """NxIxV float32; the likeliest allowed id is drawn."""
    rng = np.random.default_rng(self.seed)
    scores = rng.random((THREADS, INDICES, len(KINDS)), np.float32)
    # Each kind of id is likely now and then, so that marks come at odd places.
    for ids, weight in (
      (CONTROLS.promise, self.promise), (CONTROLS.sync, self.sync), (CONTROLS.close, self.close),
      (256, self.end), (list(CONTROLS.lens), 0.3), (32, 0.3),
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
  positions=st.sampled_from([p for p in POSITIONS if p != "oracle"]),
)


def oracle(program: Program, lanes: int):
  scores = program.scores()

  def next_id(thread: int, index: int, allowed: Kind) -> int:
    return int(np.where(KINDS & int(allowed), scores[thread, index % INDICES], -np.inf).argmax())

  return interpret(
    next_id, lambda i: Kind(int(KINDS[i])), CONTROLS, prompt_length=PROMPT, limit=program.limit,
    limits=program.limits, lanes=lanes, fork=program.fork, positions=program.positions,
  )  # fmt: skip


def admitted(batch: list[Program]) -> State:
  """Requests that have had their prompt, and whose first id is still to be drawn."""
  state = empty_state(TOY.replace(num_layers=1), len(batch), SLOTS, jnp.float32, THREADS, 1)
  rows = state.rows

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
    stop_ids=jnp.full((len(batch), MAX_STOP_IDS), NO_ID).at[:, 0].set(256),
    threads=threads,
    policy=Policy(
      marks=ones > 0,
      ends=ones > 0,
      fork=each(lambda p: FORKS.index(p.fork)),
      scheme=each(lambda p: POSITIONS.index(p.positions)),
      fixed=ones * 64,
      **limits,
    ),
  )
  return dataclasses.replace(state, rows=rows, cursor=jnp.int32(PROMPT))


@functools.partial(jax.jit, static_argnums=0)
def run_on_device(loop, state, scores):
  """The first draw, then steps until all have ended; scores BxNxIxV in the place of a model."""
  kinds = jnp.asarray(KINDS, jnp.int32)
  b = jnp.arange(scores.shape[0])[:, None]

  def model(cache, lanes, at):
    slots = jax.tree.map(
      lambda old, new: jax.lax.dynamic_update_slice(old, new, (0, at)), cache.slots, lanes.slots()
    )
    fed = jnp.sum(slots.thread[:, None, :] == lanes.thread[:, :, None], axis=2)
    # The main thread's first draw followed the prompt; a chunk's follows its `<async>`.
    index = jnp.where(lanes.thread == 0, fed, fed - 1)
    logits = scores[b, lanes.thread, index % INDICES]
    return logits, dataclasses.replace(cache, slots=slots)

  _, first = plan(state.rows, CONTROLS, 1)
  drawn, _ = step._draw(loop, state.rows, first, kinds, scores[:, 0, :1])
  rows, drawn = step._apply(loop, state.rows, first, drawn, kinds)
  state, out = step.segment(loop, model, kinds, dataclasses.replace(state, rows=rows))
  return drawn[:, 0], out, state.cache.slots.position


def same(program: Program, run, first, out, positions, row: int) -> None:
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


loops = {
  lanes: step.Loop(280, widths, CONTROLS) for lanes, widths in ((1, (1,)), (2, (1, 2)), (4, (1, 2, 4)))
}


@pytest.mark.parametrize("lanes", loops)
@settings(max_examples=40, deadline=None)
@given(batch=st.lists(programs, min_size=BATCH, max_size=BATCH))
def test_the_device_does_what_the_oracle_does(lanes, batch):
  scores = jnp.asarray(np.stack([p.scores() for p in batch]))
  first, out, positions = jax.device_get(run_on_device(loops[lanes], admitted(batch), scores))
  for row, program in enumerate(batch):
    run = oracle(program, lanes)
    same(program, run, first, out, positions, row)
    threads = Threads(tuple(run.main), tuple(tuple(c) for c in run.chunks))
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


def test_the_programs_above_reach_the_odd_places():
  rng = np.random.default_rng(0)
  seen = set()
  for n in range(150):
    program = Program(
      seed=n, promise=0.3, sync=float(rng.choice([0.0, 0.3])), close=0.1, end=float(rng.choice([0.0, 0.02])),
      limit=int(rng.integers(1, 200)), limits=Limits(round_chunks=4, chunks=6, least_grant=12),
      fork=FORKS[n % 2], positions="max",
    )  # fmt: skip
    run = oracle(program, 2)
    controls = [i for i in run.main if i >= 257]
    seen |= {
      *(["cut"] if run.cut else ["ended"]),
      *(["waited"] if len(run.steps) > len(oracle(program, THREADS).steps) else []),
      *(["two rounds"] if controls.count(CONTROLS.sync) > 1 else []),
      *(["never joined"] if None in run.joined else []),
      *(["main ends first"] if run.steps and run.steps[-1][0].thread > 0 else []),
      *(["chunk limit"] if len(run.chunks) == 6 else []),
      *(["grant used up"] if any(len(c) == 20 for c in run.chunks) else []),
    }
  assert seen == {
    "cut", "ended", "waited", "two rounds", "never joined", "main ends first", "chunk limit", "grant used up",
  }  # fmt: skip
