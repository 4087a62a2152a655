"""The loop of segments: no stray transfer, nothing compiled in it, and the device ahead of the host."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Request, Sampling
from pasta_jax.decode.serving import Serving
from tests.toy import toy_model


@pytest.fixture(scope="module")
def engine():
  return Engine(toy_model(), batch_size=2, max_len=64, segment=4)


def test_nothing_is_compiled_after_the_engine_is_made_not_even_for_the_first_request(engine, monkeypatch):
  rng = np.random.default_rng(0)
  requests = [
    Request(
      [int(t) for t in rng.integers(0, 256, int(rng.integers(1, 60)))],
      max_new_tokens=int(rng.integers(1, 40)),
      sampling=Sampling(temperature=i % 3 / 2, top_k=i % 4, top_p=1 - i % 5 / 10, min_p=i % 2 / 10, seed=i),
      stop=tuple("abcdefghijklmnopqrstuvwxyz") if i % 3 else (), stop_ids=(i,), logprobs=i % 2 == 0,
    )
    for i in range(16)
  ]  # fmt: skip
  compacted = []
  make_room = engine.programs.make_room
  monkeypatch.setattr(engine.programs, "make_room", lambda state: compacted.append(1) or make_room(state))
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kw: compiled.append(event) if "backend_compile" in event else None
  )
  jax.jit(lambda x: x - 29)(np.float32(1))
  assert compiled, "the listener does not see compilations"
  compiled.clear()
  results = engine.generate(requests)
  assert not compiled
  assert compacted
  assert {r.finish_reason for r in results} == {"stop", "length"}


def test_an_implicit_transfer_inside_a_segment_is_an_error(engine, monkeypatch):
  segment = engine.programs.segment

  def careless(params, state):
    jnp.ones(3) + np.ones(3, np.float32)
    return segment(params, state)

  monkeypatch.setattr(engine.programs, "segment", careless)
  with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
    engine.generate(["abc"])


def test_the_next_segment_is_under_way_while_the_last_ones_ids_become_text(engine, monkeypatch):
  seen = []
  segment, finish = engine.programs.segment, Serving._finish
  monkeypatch.setattr(engine.programs, "segment", lambda *args: seen.append("dispatch") or segment(*args))
  monkeypatch.setattr(Serving, "_finish", lambda self, s: seen.append("finish") or finish(self, s))
  [result] = engine.generate([Request([1, 2, 3], max_new_tokens=13, model_stops=False)])
  assert result.tokens == 13  # one from the prompt, and three segments of four
  assert seen == ["dispatch", *3 * ("dispatch", "finish"), "finish"]


def test_a_caller_that_leaves_early_finds_the_device_at_rest(engine, monkeypatch):
  """A device still at work when the interpreter ends may abort the process, whatever its exit status."""
  segment, states = engine.programs.segment, []

  @jax.jit
  def late(state):
    square = jnp.full((500, 500), 1 / 500)
    zero = jax.lax.fori_loop(0, 2000, lambda _, x: x @ square, square)[0, 0] * 0
    return jax.tree.map(lambda x: x + zero.astype(x.dtype) if x.dtype != bool else x, state)

  def slow_segment(params, state):
    state, outputs = segment(params, state)
    with jax.transfer_guard("allow"):  # what is being compiled has constants
      states.append(late(state))
    return states[-1], outputs

  def at_rest():
    return all(x.is_ready() for x in jax.tree.leaves(states[-1]))

  monkeypatch.setattr(engine.programs, "segment", slow_segment)
  events = engine.stream("abc", max_new_tokens=20)
  next(events)
  assert not at_rest()
  events.close()
  assert at_rest()


def test_what_the_caller_does_between_events_is_not_guarded(engine):
  def requests():
    for prompt in ("abc", "de"):
      jnp.ones(3) + np.ones(3, np.float32)
      yield Request(prompt, max_new_tokens=6)

  for _ in engine.serve(requests()):
    jnp.ones(3) + np.ones(3, np.float32)


def test_arrays_of_different_ranks_do_not_broadcast_in_tests():
  with pytest.raises(ValueError, match="rank"):
    jnp.ones((2, 3)) + jnp.ones(3)
  assert os.environ["JAX_NUMPY_RANK_PROMOTION"] == "raise"
