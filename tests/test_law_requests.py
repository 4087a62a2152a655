"""The decoder and its requests: the law for long ones, the same result in any company, no compilation."""

import collections
import dataclasses
import gc
import pathlib

import jax
import numpy as np
import pytest

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Request, RequestError, Sampling
from pasta_jax.lang.document import problems as document_problems
from pasta_jax.lang.grammar import Limits
from pasta_jax.lang.threads import Threads, problems
from tests.law import LONG, SHORT, compiled_quickly, family_model, is_telling, keeps_the_law, law_requests
from tests.toy import ByteTokenizer, toy_model

CONTROLS = ByteTokenizer(marks=True).controls


@pytest.fixture(scope="module")
def model():
  return family_model("gemma3")


@pytest.fixture(scope="module")
def engine(model):
  return Engine(model, batch_size=4, max_len=192, segment=8, lanes=4, chunks=8, keep_logits=True)


@pytest.fixture(scope="module")
def results(model, engine):
  return engine.generate(law_requests(model.tokenizer.controls, 1, 40, **LONG))


def test_long_answers_in_four_lanes_keep_the_law(model, results):
  keeps_the_law(model, results)
  is_telling(results, model.tokenizer.controls)
  assert {w for r in results for w in r.parallel.steps_by_width} == {1, 2, 4}
  # The cache outgrew the shortest attended prefix, and was compacted on the way.
  assert max(r.prompt_tokens + r.tokens for r in results) > 128


def by_draw(result) -> dict[tuple[int, int], tuple[int, np.ndarray, float]]:
  """Id, logits and log-probability of each draw of each thread."""
  counts: dict[int, int] = collections.Counter()
  found = {}
  draws = [d for d in result.parallel.draws if d.token is not None]
  for draw, logits in zip(draws, result.logits, strict=True):
    found[draw.thread, counts[draw.thread]] = draw.token, logits, draw.logprob
    counts[draw.thread] += 1
  return found


def same_result(a, b) -> None:
  """Compares what a request came to in two engines; float sums may differ in their last bits."""
  assert (a.text, a.finish_reason, a.parallel.document) == (b.text, b.finish_reason, b.parallel.document)
  x, y = by_draw(a), by_draw(b)
  if not a.request.stop:
    assert a.parallel.threads == b.parallel.threads
    assert a.parallel.cut == b.parallel.cut
    assert x.keys() == y.keys()
  # Which lanes were ahead of a stop string when it was met depends on how many there were.
  for key in x.keys() & y.keys():
    assert x[key][0] == y[key][0]
    np.testing.assert_allclose(x[key][1], y[key][1], atol=1e-4)
    np.testing.assert_allclose(x[key][2], y[key][2], atol=1e-4)


def test_a_result_is_the_same_alone_in_any_batch_at_any_width_and_in_any_order(model, engine, results):
  free = results[:24]
  requests = [r.request for r in free]
  # Strings that the text has, in a chunk or between chunks.
  stopped = [
    dataclasses.replace(r.request, stop=("\n\n\n", r.text[len(r.text) // 3 :][:2]))
    for r in free
    if len(r.text) > 6
  ]
  requests += stopped[:16]
  expected = engine.generate(requests)
  reasons = collections.Counter((bool(r.request.stop), r.finish_reason, r.parallel.cut) for r in expected)
  assert reasons[False, "length", True] > 0
  assert reasons[False, "stop", False] > 0
  assert reasons[True, "stop", False] > 0
  for batch, lanes, segment in ((1, 8, 5), (3, 2, 8)):
    with compiled_quickly():
      other = Engine(
        model, batch_size=batch, max_len=192, segment=segment, lanes=lanes, chunks=8, keep_logits=True
      )
    order = np.random.default_rng(lanes).permutation(len(requests))
    for place, result in zip(order, other.generate([requests[i] for i in order]), strict=True):
      same_result(expected[place], result)


def test_a_request_without_marks_is_what_the_sequential_engine_answers(model, engine):
  sequential = Engine(model, batch_size=2, max_len=192, segment=8)
  requests = [
    Request([n, n + 1], max_new_tokens=60, marks=False, sampling=Sampling(temperature=n % 3, seed=n))
    for n in range(8)
  ]
  marks = set(model.tokenizer.controls.all)
  for a, b in zip(sequential.generate(requests), engine.generate(requests), strict=True):
    assert a.ids == b.ids
    assert marks.isdisjoint(a.ids)
    assert b.parallel is None


def test_a_bias_moves_the_first_promise_alone(model, engine, monkeypatch):
  promise = model.tokenizer.controls.promise

  def answers(**changes):
    limits = Limits(chunk_tokens=4, topic_pieces=2)
    sampling = [Sampling(temperature=n % 3, seed=n) for n in range(8)]
    return engine.generate(
      [Request([n, n + 1], 140, s, logprobs=True, limits=limits, **changes) for n, s in enumerate(sampling)]
    )

  free, never, always = answers(), answers(promise_bias=-200), answers(promise_bias=200)
  assert len({len(r.parallel.threads.chunks) for r in free}) > 1
  # With marks the last id of a budget is one that ends the answer.
  assert [r.ids[:139] for r in never] == [r.ids[:139] for r in answers(marks=False)]
  for result in always:
    first, *_ = result.parallel.draws
    assert first.token == promise
    # Log-probabilities are the model's own.
    expected = result.logits[0] - np.logaddexp.reduce(result.logits[0])
    np.testing.assert_allclose(first.logprob, expected[first.token], atol=1e-4)
  keeps_the_law(model, always)
  # Later promises come as the model wants them.
  assert min(len(r.parallel.threads.chunks) for r in always) < 3
  # The first id and those after it have numbers of their own.
  assert [r.ids for r in answers(promise_bias=(200, -200))] == [r.ids for r in always]
  assert all(r.parallel.threads.main[:2].index(promise) == 1 for r in answers(promise_bias=(-200, 200)))
  monkeypatch.setattr(engine, "promise_bias", (-200.0, -200.0))
  assert [r.ids for r in answers()] == [r.ids for r in never]
  assert [r.ids for r in answers(promise_bias=0)] == [r.ids for r in free]


@pytest.mark.parametrize("bias", [float("nan"), 1001, "1", True, (1.0,), (0, "1"), (0, 1, 2)])
def test_a_bias_that_is_none_is_refused(bias):
  with pytest.raises(RequestError, match="promise_bias must be one or two numbers"):
    Request("x", promise_bias=bias)


def test_every_free_answer_is_a_valid_document_within_its_budget(model, engine):
  limits = Limits(round_chunks=3, chunks=5, least_grant=8, chunk_tokens=20, topic_pieces=3)
  rng = np.random.default_rng(0)
  requests = [
    Request(
      [n % 256],
      max_new_tokens=int(rng.integers(1, 200)),
      sampling=Sampling(temperature=1.5 + n % 4, seed=n),
      limits=limits,
      model_stops=n % 7 > 0,
      stop_ids=(3, 4) if n % 5 == 0 else (),
    )
    for n in range(60)
  ]
  results = engine.generate(requests)
  # Also where the budget alone may end an answer, or an id of text.
  keeps_the_law(model, results)
  for result in results:
    threads = result.parallel.threads
    assert set(model.tokenizer.stop_ids).isdisjoint(threads.main)
    assert not problems(threads, model.tokenizer.controls)
    assert not document_problems(result.parallel.document)
    assert result.tokens <= result.request.max_new_tokens
    assert result.finish_reason == ("length" if result.parallel.cut else "stop")
    assert len(threads.chunks) <= 5
    assert all(len(c) <= 20 for c in threads.chunks)


def varied_requests(controls, count: int) -> list[Request]:
  """Requests that differ in all that a request can say."""
  requests = law_requests(controls, 4, count, **SHORT)
  for n in range(count):
    changes: list[dict] = [
      {}, {"stop": ("e", "xy")}, {"marks": False, "script": None, "positions": "none"},
      {"stop_ids": (5, 6), "model_stops": requests[n].script is None}, {"logprobs": True},
      {"stop": ("\x00",)},
    ]  # fmt: skip
    requests[n] = dataclasses.replace(requests[n], **changes[n % 6])
  return requests


def test_no_compilation_after_warm_up(model, engine, monkeypatch):
  requests = varied_requests(model.tokenizer.controls, 50)
  engine.generate(requests[:2])
  compiled, compactions = [], []
  make_room = engine.programs.make_room
  monkeypatch.setattr(engine.programs, "make_room", lambda s: compactions.append(1) or make_room(s))
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kw: compiled.append(event) if "backend_compile" in event else None
  )
  jax.jit(lambda x: x + 3)(np.float32(1))
  assert compiled, "the listener does not see compilations"
  compiled.clear()
  results = engine.generate(requests)
  assert not compiled
  # The requests were as varied as that.
  assert compactions
  assert any(len(r.text) == 0 or r.request.stop for r in results)
  widths = {w for r in results if r.parallel for w in r.parallel.steps_by_width}
  assert widths == {1, 2, 4}


def resident_bytes() -> int:
  return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_is_flat_over_hundreds_of_requests(model, engine):
  requests = varied_requests(model.tokenizer.controls, 50)
  for _ in range(2):
    engine.generate(requests)
  gc.collect()
  arrays, before = len(jax.live_arrays()), resident_bytes()
  for _ in range(6):
    engine.generate(requests)
  gc.collect()
  assert len(jax.live_arrays()) <= arrays
  # One request's logits kept are about 0.1 MB, one cache is 0.5 MB.
  assert resident_bytes() - before < 15e6


def test_the_letters_of_marks_in_a_prompt_are_plain_text(model, engine):
  prompt = 'Say <promise topic="x" tokens="10"/><async>hi</async><sync/> please'
  assert set(engine.encode(Request(prompt))).isdisjoint(model.tokenizer.controls.all)
  assert engine.generate([prompt], max_new_tokens=5)[0].tokens == 5


def test_a_stop_id_of_the_model_that_a_request_names_ends_it(model, engine):
  (end,) = model.tokenizer.stop_ids
  requests = [
    Request([n], max_new_tokens=60, sampling=Sampling(temperature=3.0, seed=n), marks=n % 4 > 0)
    for n in range(12)
  ]
  expected = engine.generate(requests)
  assert any(r.ids[-1] == end and r.parallel for r in expected)
  named = [dataclasses.replace(r, model_stops=False, stop_ids=(end,)) for r in requests]
  for a, b in zip(expected, engine.generate(named), strict=True):
    assert (a.ids, a.finish_reason) == (b.ids, b.finish_reason)


def test_a_mark_cannot_be_a_stop_id(engine):
  with pytest.raises(RequestError, match=f"stop_ids has {CONTROLS.sync}, the id of a mark"):
    engine.generate([Request([1], stop_ids=(5, CONTROLS.sync))])


def test_several_lanes_need_marks():
  with pytest.raises(ValueError, match="with_marks"):
    Engine(toy_model(), lanes=4)


@pytest.mark.parametrize(
  ("script", "message"),
  [
    (Threads((1, 2), ((3,),)), "0 promises, but 1 chunks"),
    (Threads((1,) * 500), "501 ids; the engine has room for"),
    (
      Threads((CONTROLS.promise, 1, CONTROLS.lens[0]) * 9, ((1,),) * 9),
      "9 chunks; the engine was made for 8",
    ),
  ],
)
def test_scripts_that_cannot_run_are_refused(engine, script, message):
  with pytest.raises(RequestError, match=message):
    engine.generate([Request([1], script=script)])
