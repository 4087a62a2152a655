"""The engine computes what one forward computes, whatever the batch, and stops where it is told to."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.programs import attended_lengths, fit_slots, plan_pieces
from pasta_jax.decode.requests import Request, RequestError, Sampling
from pasta_jax.lang.threads import Threads
from tests.toy import teacher_logits, toy_model


@pytest.fixture(scope="module")
def model():
  return toy_model()


@pytest.fixture(scope="module")
def engine(model):
  return Engine(model, batch_size=3, max_len=160, segment=8)


def varied_requests(count: int, longest: int = 100) -> list[Request]:
  rng = np.random.default_rng(7)
  requests = []
  for i in range(count):
    sampling = Sampling(
      temperature=float(rng.choice([0.0, 0.8, 1.5])),
      top_k=int(rng.choice([0, 5])),
      top_p=float(rng.choice([1.0, 0.7])),
      min_p=float(rng.choice([0.0, 0.1])),
      seed=i,
    )
    prompt = [int(t) for t in rng.integers(0, 256, rng.integers(1, longest))]
    limit = int(rng.integers(1, 50))
    requests.append(Request(prompt, max_new_tokens=limit, sampling=sampling, logprobs=True))
  return requests


def test_greedy_answers_are_the_argmax_of_one_forward(model, engine):
  for result in engine.generate([dataclasses.replace(r, sampling=Sampling()) for r in varied_requests(5)]):
    prompt = list(result.request.prompt)
    logits = teacher_logits(model, prompt + list(result.ids))[len(prompt) - 1 : -1]
    assert list(logits.argmax(-1)) == list(result.ids)


def test_logprobs_are_those_of_one_forward_also_when_sampling(model, engine):
  for result in engine.generate(varied_requests(8)):
    prompt = list(result.request.prompt)
    logits = teacher_logits(model, prompt + list(result.ids))[len(prompt) - 1 : -1]
    expected = jax.nn.log_softmax(logits)[np.arange(len(result.ids)), np.array(result.ids)]
    np.testing.assert_allclose(result.logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_results_do_not_depend_on_the_batch(model, engine, batch_size):
  requests = varied_requests(14)
  expected = {i: r.ids for i, r in enumerate(engine.generate(requests))}
  other = Engine(model, batch_size=batch_size, max_len=160, segment=5)
  order = np.random.default_rng(batch_size).permutation(len(requests))
  for place, result in zip(order, other.generate([requests[i] for i in order]), strict=True):
    assert result.ids == expected[place]


def test_rows_are_compacted_when_the_cache_is_full(model, monkeypatch):
  engine = Engine(model, batch_size=2, max_len=64, segment=8)
  compactions = []
  make_room = engine.programs.make_room
  monkeypatch.setattr(engine.programs, "make_room", lambda state: compactions.append(1) or make_room(state))
  requests = [Request([i, i + 1, i + 2], max_new_tokens=20 + 3 * i) for i in range(12)]
  results = engine.generate(requests)
  assert compactions
  for result in results:
    prompt = list(result.request.prompt)
    logits = teacher_logits(model, prompt + list(result.ids))[len(prompt) - 1 : -1]
    assert list(logits.argmax(-1)) == list(result.ids)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_on_cpu_rows_are_compacted_once_steps_would_attend_over_less(model, monkeypatch, on_cpu):
  engine = Engine(model, batch_size=3, max_len=512, segment=8)
  assert engine.programs.lengths[:2] == (128, 192)
  cursors = []
  make_room = engine.programs.make_room
  monkeypatch.setattr(
    engine.programs, "make_room", lambda state: cursors.append(int(state.cursor)) or make_room(state)
  )
  monkeypatch.setattr(engine.programs, "on_cpu", on_cpu)
  results = engine.generate([Request([i, i + 1, i + 2], max_new_tokens=20 + 17 * i % 41) for i in range(20)])
  assert all(128 < cursor <= 128 + 3 * 8 for cursor in cursors)
  assert bool(cursors) == on_cpu
  for result in results:
    prompt = list(result.request.prompt)
    logits = teacher_logits(model, prompt + list(result.ids))[len(prompt) - 1 : -1]
    assert list(logits.argmax(-1)) == list(result.ids)


def test_an_answer_ends_at_a_stop_id_and_the_text_lacks_it(model, engine):
  free = engine.generate([Request([1, 2, 3], max_new_tokens=30)])[0]
  stop = free.ids[10]
  first = free.ids.index(stop)
  cut = engine.generate([Request([1, 2, 3], max_new_tokens=30, stop_ids=(stop,))])[0]
  assert cut.ids == free.ids[: first + 1]
  assert cut.finish_reason == "stop"
  assert cut.text == model.tokenizer.decode(free.ids[:first])


def test_an_answer_ends_before_a_stop_string_that_spans_tokens(engine):
  free = engine.generate([Request([9, 8, 7], max_new_tokens=40)])[0]
  stop = free.text[5:8]
  request = Request([9, 8, 7], max_new_tokens=40, stop=(stop,))
  # The row must be free again for others: more requests than rows, twice.
  for result in engine.generate([request] * 7):
    assert result.text == free.text[: free.text.index(stop)]
    assert result.finish_reason == "stop"


def test_events_add_up_to_the_text(engine):
  requests = varied_requests(6)
  texts = dict.fromkeys(range(6), "")
  results = {}
  for event in engine.serve(requests):
    assert event.index not in results
    texts[event.index] += event.text
    if event.result:
      results[event.index] = event.result
  assert {i: r.text for i, r in results.items()} == texts


def test_an_answer_is_cut_where_the_slots_end(engine):
  prompt = [5] * (engine.max_len - 4)
  result = engine.generate([Request(prompt, max_new_tokens=50)])[0]
  assert result.tokens == 4
  assert result.finish_reason == "length"


def test_a_stream_that_is_dropped_leaves_the_engine_usable(engine):
  before = engine.generate(["abc"], max_new_tokens=12)[0]
  next(iter(engine.stream("abc", max_new_tokens=40)))
  assert engine.generate(["abc"], max_new_tokens=12)[0].ids == before.ids


@pytest.mark.parametrize(
  ("prompt", "message"),
  [
    ("", "empty"),
    ([], "empty"),
    ([1] * 256, "256 tokens.*max_len 192"),
    ([300], "ids must lie in"),
  ],
)
def test_a_prompt_that_cannot_be_run_is_refused_before_anything_runs(engine, prompt, message):
  with pytest.raises(RequestError, match=message):
    engine.generate(["fine", Request(prompt)])


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"temperature": -1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"top_p": 0}, "top_p"),
    ({"min_p": 1}, "min_p"),
    ({"seed": 2**31}, "seed"),
    ({"seed": True}, "seed"),
  ],
)
def test_settings_out_of_range_are_refused(settings, message):
  with pytest.raises(RequestError, match=message):
    Sampling(**settings)


def test_parameters_that_do_not_fit_are_refused(model):
  broken = dict(model.params)
  broken.pop("layers.1.q")
  with pytest.raises(ValueError, match=r"layers\.1\.q.*missing"):
    Engine(type(model)(config=model.config, params=broken, tokenizer=model.tokenizer))


def test_pieces_cover_a_prompt_and_their_padding_fits_the_slots():
  for max_len in (1, 31, 32, 100, 128, 500, 513, 1000, 2048):
    slots, sizes = fit_slots(max_len, (32, 128, 512))
    assert max_len <= slots < max_len + sizes[-1]
    for length in range(1, slots + 1):
      at = 0
      for start, count, size in plan_pieces(length, sizes):
        assert start == at
        assert 1 <= count <= size
        assert start + size <= slots
        at += count
      assert at == length


def test_stop_ids_and_scripts_that_cannot_be_run_are_refused_before_anything_runs(engine, monkeypatch):
  monkeypatch.setattr(engine.programs, "prefill", lambda *_: pytest.fail("something has run"))
  for wrong, message in (
    (Request("x", stop_ids=tuple(range(8))), "9 stop ids, at most 8"),
    (Request("x", script=Threads((1, 2)), model_stops=False), "script: the request has no stop id"),
    (Request("x", script=Threads((1, 257))), r"script ids must lie in \[0, 257\), got 257"),
  ):
    with pytest.raises(RequestError, match=message):
      engine.generate(["fine", wrong])


def test_ids_of_a_tokenizer_that_the_embedding_has_no_rows_for_are_refused(engine, monkeypatch):
  monkeypatch.setattr(engine.tokenizer, "encode", lambda text, bos: [1, 300])
  with pytest.raises(RequestError, match=r"do not belong together: .* \[0, 257\), got 300"):
    engine.generate(["fine"])


def test_a_model_without_a_tokenizer_answers_ids(model, engine):
  other = Engine(dataclasses.replace(model, tokenizer=None), batch_size=3, max_len=160, segment=8)
  [result] = other.generate([Request([1, 2, 3], max_new_tokens=9)])
  logits = teacher_logits(model, [1, 2, 3, *result.ids])[2:-1]
  assert list(logits.argmax(-1)) == list(result.ids)
  assert result.finish_reason == "length"
  for prompt in ("text", [{"role": "user", "content": "text"}]):
    with pytest.raises(RequestError, match="no tokenizer; give the prompt as token ids"):
      other.generate([Request(prompt)])


def test_a_temperature_next_to_zero_is_greedy(engine):
  warm, greedy = (
    engine.generate([Request([7, 1], max_new_tokens=20, sampling=Sampling(temperature=t, seed=3))])[0]
    for t in (2e-38, 0.0)
  )
  assert warm.ids == greedy.ids


def test_a_cache_stays_within_the_positions_of_the_model(monkeypatch):
  made = []

  def programs(cfg, shapes, *_):
    made.append(shapes)
    return types.SimpleNamespace(wait=lambda: None)

  monkeypatch.setattr("pasta_jax.decode.engine.Programs", programs)
  short = toy_model(max_len=100)
  assert Engine(short).max_len == 100
  assert made[0].num_slots == 128
  assert Engine(toy_model()).max_len == 2048
  with pytest.raises(ValueError, match="max_len 101 exceeds the 100 positions"):
    Engine(short, max_len=101)


def test_what_the_compiler_says_beside_is_raised_by_the_engine(model, monkeypatch):
  def fail(*_):
    raise RuntimeError("no such instruction")

  monkeypatch.setattr("pasta_jax.decode.programs.Lowering.compile_lowered", fail)
  with pytest.raises(RuntimeError, match="no such instruction"):
    Engine(model, max_len=64)


def test_attended_lengths_end_with_the_slots_whatever_these_are():
  assert attended_lengths(64) == attended_lengths(64, halfway=True) == (64,)
  assert attended_lengths(1024) == (128, 256, 512, 1024)
  assert attended_lengths(1024, halfway=True) == (128, 192, 256, 384, 512, 768, 1024)
  for slots in (128, 160, 192, 200, 640, 1184):
    lengths = attended_lengths(slots, halfway=True)
    assert list(lengths) == sorted(set(lengths))
    assert lengths[-1] == slots
    assert set(attended_lengths(slots)) <= set(lengths)


def test_a_cache_that_cannot_fit_is_foreseen_before_anything_is_compiled(model, monkeypatch):
  monkeypatch.setattr("pasta_jax.model.memory.device_bytes_free", lambda device: 300_000)
  monkeypatch.setattr(
    "pasta_jax.decode.programs.Lowering.compile_lowered", lambda *_: pytest.fail("it compiles")
  )
  message = r"not enough memory foreseen: a cache of 3 x 1024 slots in float32 needs 0\.\d\d GB .* batch_size"
  with pytest.raises(ValueError, match=message):
    Engine(model, batch_size=3, max_len=1024)
