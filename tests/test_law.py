"""The law: the parallel decoder's logits equal one teacher-forced forward over the document it produced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Request, RequestError, Sampling
from pasta_jax.lang.document import problems as document_problems
from pasta_jax.lang.grammar import Limits
from pasta_jax.lang.interpreter import FORKS, POSITIONS
from pasta_jax.lang.sequence import training_sequence
from pasta_jax.lang.threads import Threads, problems
from pasta_jax.model import transformer
from tests.toy import ByteTokenizer, toy_model
from tests.weights_files import CONFIGS

CONTROLS = ByteTokenizer(marks=True).controls


@functools.partial(jax.jit, static_argnums=0)
def _forward(cfg, params, ids, position, mask):
  return transformer.forward(cfg, params, ids, position, mask)[0]


def teacher(model, result) -> np.ndarray:
  """The logits of every draw of a result, in order of drawing, from one forward."""
  request, parallel = result.request, result.parallel
  controls = model.tokenizer.controls
  lengths = [len(c) for c in request.script.chunks] if request.positions == "oracle" else None
  sequence = training_sequence(
    request.prompt, parallel.threads, controls, model.tokenizer.stop_ids[0],
    fork=request.fork, positions=request.positions, fixed=request.fixed, true_lengths=lengths,
  )  # fmt: skip
  size = -(-len(sequence) // 128) * 128
  pad = size - len(sequence)
  ids, position = (np.pad(x, (0, pad))[None] for x in (sequence.ids, sequence.position))
  mask = np.pad(sequence.mask(), ((0, pad), (0, pad)))[None]
  logits = np.asarray(_forward(model.config, model.params, ids, position, mask))
  at = {
    thread: np.flatnonzero((sequence.thread == thread) & (sequence.target >= 0))
    for thread in range(len(parallel.threads.chunks) + 1)
  }
  seen = dict.fromkeys(at, 0)
  rows = []
  for draw in parallel.draws:
    if draw.token is not None:
      rows.append(at[draw.thread][seen[draw.thread]])
      assert sequence.target[rows[-1]] == draw.token
      seen[draw.thread] += 1
  assert all(seen[t] == len(at[t]) for t in at)
  return logits[rows]


def split_model(cfg=None, **changes):
  """A toy model that likes marks: their rows of the embedding are long, so that their logits are large."""
  model = toy_model(marks=True, cfg=cfg, **changes)
  c = model.tokenizer.controls
  table = "embed" if model.config.tied_embeddings else "head"
  for ids, scale in (((c.promise, *c.lens), 5.0), ((c.close, c.sync), 4.0)):
    model.params[table] = model.params[table].at[jnp.asarray(ids)].multiply(scale)
  return model


def random_script(rng, controls) -> Threads:
  """A document of any shape: chunks that keep their promises, break them, and that no sync joins."""
  main: list[int] = list(rng.integers(0, 256, rng.integers(0, 6)))
  chunks = []
  opened = False
  for _ in range(rng.integers(0, 7)):
    if opened and rng.random() < 0.3:
      main.append(controls.sync)
      opened = False
    else:
      topic = rng.integers(0, 256, rng.integers(1, 4))
      main += [controls.promise, *topic, controls.lens[rng.integers(0, 5)]]
      chunks.append(tuple(int(i) for i in rng.integers(0, 256, rng.integers(1, 40))))
      opened = True
    main += list(rng.integers(0, 256, rng.integers(0, 5)))
  return Threads(tuple(int(i) for i in main), tuple(chunks))


def law_requests(controls, seed, count, schemes=POSITIONS):
  """Free and scripted requests of every fork and scheme, greedy and sampled."""
  rng = np.random.default_rng(seed)
  requests = []
  for n in range(count):
    scheme, fork = schemes[n % len(schemes)], FORKS[n // len(schemes) % 2]
    script = random_script(rng, controls) if scheme == "oracle" or rng.random() < 0.5 else None
    hot = Sampling(temperature=float(rng.choice([0.0, 1.0, 2.0])), top_k=int(rng.choice([0, 30])), seed=n)
    requests.append(
      Request(
        [int(i) for i in rng.integers(0, 256, rng.integers(1, 80))],
        max_new_tokens=int(rng.integers(20, 160)),
        sampling=hot,
        fork=fork,
        positions=scheme,
        fixed=int(rng.integers(0, 50)),
        script=script,
        limits=Limits(round_chunks=3, chunks=6, least_grant=8, chunk_tokens=40),
      )
    )
  return requests


FAMILIES = {name: cfg.replace(num_layers=2, max_len=2048) for name, cfg in CONFIGS.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_one_forward(family):
  model = split_model(FAMILIES[family])
  engine = Engine(model, batch_size=4, max_len=320, segment=8, lanes=4, chunks=8, keep_logits=True)
  results = engine.generate(law_requests(model.tokenizer.controls, 1, 20))
  for result in results:
    np.testing.assert_allclose(result.logits, teacher(model, result), atol=1e-4)
  # The law says little about answers without chunks, syncs, or threads that wait for a lane.
  chunks = [len(r.parallel.threads.chunks) for r in results]
  assert max(chunks) > 4
  assert sum(c > 0 for c in chunks) >= 10
  assert {w for r in results for w in r.parallel.steps_by_width} == {1, 2, 4}
  assert any(model.tokenizer.controls.sync in r.parallel.threads.main for r in results)


@pytest.fixture(scope="module")
def model():
  return split_model()


@pytest.fixture(scope="module")
def engine(model):
  return Engine(model, batch_size=4, max_len=448, segment=8, lanes=8, chunks=8, keep_logits=True)


def test_free_answers_of_each_scheme_and_fork_keep_the_law_one_at_a_time():
  model = split_model()
  engine = Engine(model, batch_size=1, max_len=448, segment=8, lanes=8, chunks=8, keep_logits=True)
  free = [(p, f) for p in POSITIONS if p != "oracle" for f in FORKS]
  requests = [
    Request(
      [n, 7],
      max_new_tokens=200,
      sampling=Sampling(temperature=1.5, seed=n),
      positions=free[n % len(free)][0],
      fork=free[n % len(free)][1],
    )
    for n in range(10 * len(free))
  ]
  split = set()
  for result in engine.generate(requests):
    np.testing.assert_allclose(result.logits, teacher(model, result), atol=1e-4)
    if result.parallel.document.splits:
      split.add((result.request.positions, result.request.fork))
  assert split == set(free)


def test_a_result_is_the_same_alone_in_any_batch_at_any_width_and_in_any_order(model):
  requests = law_requests(model.tokenizer.controls, 3, 24)
  expected = None
  for batch, lanes, segment in ((1, 8, 8), (1, 2, 5), (3, 4, 8)):
    engine = Engine(model, batch_size=batch, max_len=320, segment=segment, lanes=lanes, chunks=8)
    order = np.random.default_rng(lanes).permutation(len(requests))
    got = [None] * len(requests)
    for place, r in zip(order, engine.generate([requests[i] for i in order]), strict=True):
      got[place] = (r.text, r.finish_reason, r.parallel.threads, r.parallel.document)
    expected = expected or got
    assert got == expected


def test_a_request_without_marks_is_what_the_sequential_engine_answers(model):
  sequential = Engine(model, batch_size=2, max_len=320, segment=8)
  lanes = Engine(model, batch_size=2, max_len=320, segment=8, lanes=4)
  requests = [
    Request([n, n + 1], max_new_tokens=60, marks=False, sampling=Sampling(temperature=n % 3, seed=n))
    for n in range(8)
  ]
  marks = set(model.tokenizer.controls.all)
  for a, b in zip(sequential.generate(requests), lanes.generate(requests), strict=True):
    assert a.ids == b.ids
    assert marks.isdisjoint(a.ids)
    assert b.parallel is None


def test_every_free_answer_is_a_valid_document_within_its_budget(model, engine):
  limits = Limits(round_chunks=3, chunks=5, least_grant=8, chunk_tokens=20, topic_pieces=3)
  rng = np.random.default_rng(0)
  requests = [
    Request(
      [n % 256],
      max_new_tokens=int(rng.integers(1, 200)),
      sampling=Sampling(temperature=1.5, seed=n),
      limits=limits,
    )
    for n in range(60)
  ]
  for result in engine.generate(requests):
    threads = result.parallel.threads
    assert not problems(threads, model.tokenizer.controls)
    assert not document_problems(result.parallel.document)
    assert result.tokens <= result.request.max_new_tokens
    assert result.finish_reason == ("length" if result.parallel.cut else "stop")
    assert len(threads.chunks) <= 5
    assert all(len(c) <= 20 for c in threads.chunks)


def test_no_compilation_after_warm_up_and_no_growth(model, engine):
  requests = law_requests(model.tokenizer.controls, 4, 50)
  engine.generate(requests[:2])
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kw: compiled.append(event) if "backend_compile" in event else None
  )
  jax.jit(lambda x: x + 3)(np.float32(1))
  assert compiled, "the listener does not see compilations"
  compiled.clear()
  engine.generate(requests)
  assert not compiled
  arrays = len(jax.live_arrays())
  for _ in range(10):
    engine.generate(requests)
  assert len(jax.live_arrays()) <= arrays


def test_the_letters_of_marks_in_a_prompt_are_plain_text(model, engine):
  prompt = 'Say <promise topic="x" tokens="10"/><async>hi</async><sync/> please'
  assert set(engine.encode(Request(prompt))).isdisjoint(model.tokenizer.controls.all)
  assert engine.generate([prompt], max_new_tokens=5)[0].tokens == 5


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
