"""Milliseconds of a decode step by width and by attended length, with every lane running a thread.

Each width is a program of its own, the same step as in the engine's; a script supplies the ids, so that no
thread ends. What interpreter, sampling and bookkeeping cost is measured by leaving them out: a loop that only
runs the model on the same lanes.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pasta_jax.decode import step
from pasta_jax.decode.forward import lane_logits
from pasta_jax.decode.interpreter import plan
from pasta_jax.decode.programs import attended_lengths, compiler_options
from pasta_jax.decode.state import MAX_STOP_IDS, NO_ID, State, empty_state
from pasta_jax.lang.grammar import Phase
from pasta_jax.model.packed import activation_dtype

# Room for a segment beside what is attended over.
SEGMENT = 16


def running_state(
  engine: Any, width: int, attended: int, slots: int, requests: int = 1, dtype: Any = None
) -> State:
  """Requests whose main thread and `width` - 1 chunks are all running, and never end.

  Args:
    attended: tokens of the prompt, all in the cache.
    slots: of the cache.
  """
  cfg = engine.config
  dtype = dtype or activation_dtype(engine.programs.shapes.dtype, engine.mesh)
  state = empty_state(cfg, requests, slots, dtype, width + 1, 1)
  rows, cache = state.rows, state.cache
  number = jnp.arange(width + 1, dtype=jnp.int32)[None, :] * jnp.ones((requests, 1), jnp.int32)
  ones = jnp.ones((requests,), jnp.int32)
  threads = dataclasses.replace(
    rows.threads,
    running=(number > 0) & (number < width),
    next_id=jnp.full_like(number, 1000 % cfg.vocab_size),
    position=number * 0 + attended,
    grant=number * 0 + 2**20,
    horizon=number * 0 + attended,
  )
  policy = dataclasses.replace(
    rows.policy, marks=ones > 0, ends=ones > 0, round_chunks=ones * width, chunks=ones * width,
    chunk_tokens=ones * 2**20, overrun=ones, least_grant=ones, topic_pieces=ones,
  )  # fmt: skip
  script = dataclasses.replace(rows.script, on=ones > 0, ids=jnp.full((requests, 1), 1000 % cfg.vocab_size))
  rows = dataclasses.replace(
    rows,
    active=ones > 0,
    phase=ones * int(Phase.MAIN),
    left=ones * 2**28,
    opened=ones * (width - 1),
    clock=ones * attended,
    stop_ids=jnp.full((requests, MAX_STOP_IDS), NO_ID, jnp.int32),
    threads=threads,
    policy=policy,
    script=script,
  )
  time_ = jnp.arange(slots, dtype=jnp.int32)[None, :] * ones[:, None]
  full = time_ < attended
  slots_ = dataclasses.replace(
    cache.slots,
    position=time_,
    time=time_,
    thread=jnp.where(full, 0, cache.slots.thread),
    visible_at=jnp.where(full, time_, cache.slots.visible_at),
  )
  state = State(dataclasses.replace(cache, slots=slots_), jnp.int32(attended), rows)
  return jax.tree.map(lambda x: jnp.array(x, copy=True), state)  # donated: no two fields may share a buffer


def step_program(engine: Any, width: int, slots: int, requests: int = 1) -> tuple[Callable, State]:
  """The compiled segment of one width, and what it starts from but for the attended length."""
  loop = step.Loop(SEGMENT, (width,), engine.tokenizer.controls)
  lengths = attended_lengths(slots)

  def run(params: Any, kinds: Any, state: State) -> tuple[State, step.Outputs]:
    return step.segment(loop, partial(lane_logits, engine.config, params, lengths), kinds, state)

  state = running_state(engine, width, 1, slots, requests)
  return _compiled(run, engine, state), state


def _compiled(run: Callable, engine: Any, state: State) -> Callable:
  shapes = engine.programs.shapes
  options = compiler_options(engine.mesh.devices.flat[0], shapes.rows, shapes.dtype)
  lowered = jax.jit(run, donate_argnums=2).lower(engine.params, engine.programs.kinds, state)
  return lowered.compile(compiler_options=options)


def model_program(engine: Any, width: int, slots: int) -> Callable:
  """The same loop with the model alone: no interpreter, no sampling, nothing kept for the host."""
  lengths = attended_lengths(slots)

  def run(params: Any, kinds: Any, state: State) -> tuple[State, jax.Array]:
    _, planned = plan(state.rows, engine.tokenizer.controls, width)
    lanes = planned.lanes

    def body(i: jax.Array, carry: tuple) -> tuple:
      cache, cursor, kept = carry
      now = dataclasses.replace(
        lanes,
        time=lanes.time + i * (width + 1),
        position=lanes.position + i,
        visible_at=jnp.where(lanes.thread == 0, lanes.time + i * (width + 1), lanes.visible_at),
        horizon=jnp.where(lanes.thread == 0, lanes.time + i * (width + 1), lanes.horizon),
      )
      logits, cache = lane_logits(engine.config, params, lengths, cache, now, cursor)
      return cache, cursor + width, jnp.maximum(kept, jnp.max(logits))

    cache, cursor, kept = jax.lax.fori_loop(
      0, SEGMENT, body, (state.cache, state.cursor, jnp.float32(-jnp.inf))
    )
    return State(cache, cursor, state.rows), kept

  state = running_state(engine, width, 1, slots)
  return _compiled(run, engine, state)


def _seconds(engine: Any, program: Callable, make: Callable[[], State]) -> float:
  state = jax.block_until_ready(make())
  start = time.perf_counter()
  jax.block_until_ready(program(engine.params, engine.programs.kinds, state))
  return time.perf_counter() - start


def measure_widths(
  engine: Any,
  widths: Sequence[int] = (1, 2, 4, 8, 16),
  attended: int = 128,
  slots: int = 1024,
  rounds: int = 7,
) -> dict[str, Any]:
  """Step times by width, medians over rounds in which the widths take turns.

  Returns:
    `width_ms` {"1": ms, ...}, `length_ms` {"256": ms, ...} at width 8 (or the widest below), and
    `overhead_percent`: what interpreter, sampling and bookkeeping take of a step of that width.
  """
  programs = {w: step_program(engine, w, slots)[0] for w in widths}
  wide = max(w for w in widths if w <= 8)
  bare = model_program(engine, wide, slots)
  lengths = [n for n in (256, 512) if n + SEGMENT * wide <= slots]

  def run(program: Callable, width: int, length: int) -> float:
    return _seconds(engine, program, lambda: running_state(engine, width, length, slots))

  runs: dict[Any, Callable[[], float]] = {w: partial(run, programs[w], w, attended) for w in widths}
  runs["bare"] = partial(run, bare, wide, attended)
  runs |= {f"length {n}": partial(run, programs[wide], wide, n) for n in lengths}
  taken: dict[Any, list[float]] = {name: [] for name in runs}
  for n in range(rounds + 1):
    for name, timed in runs.items():
      seconds = timed()
      if n:  # the first warms up
        taken[name].append(seconds)
  ms = {name: 1e3 * statistics.median(values) / SEGMENT for name, values in taken.items()}
  # Pair by pair, so that a drift of the machine's speed cancels.
  over = statistics.median(1 - b / a for a, b in zip(taken[wide], taken["bare"]))
  return {
    "width_ms": {str(w): ms[w] for w in widths},
    "length_ms": {str(attended): ms[wide], **{str(n): ms[f"length {n}"] for n in lengths}},
    "overhead_percent": 100 * over,
  }
