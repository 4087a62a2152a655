"""What the tests of the law share: models that split their answers, requests of every kind, the teacher."""

import collections
import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pasta_jax.decode.requests import Request, Sampling
from pasta_jax.lang.grammar import Limits
from pasta_jax.lang.interpreter import FORKS, POSITIONS
from pasta_jax.lang.sequence import training_sequence
from pasta_jax.lang.threads import Threads
from pasta_jax.model import transformer
from tests.toy import toy_model
from tests.weights_files import CONFIGS

# Two layers, one of each kind where a family has two; windows far shorter than the documents, and caps so
# low that a forward without them has other logits.
FAMILIES = {
  name: cfg.replace(
    num_layers=2,
    max_len=2048,
    sliding_pattern=2 if cfg.sliding_window else cfg.sliding_pattern,
    attn_softcap=2.0 if cfg.attn_softcap else None,
    final_softcap=30.0 if cfg.final_softcap else None,
  )
  for name, cfg in CONFIGS.items()
}


# Sizes of requests that a cache of 128 slots holds; see law_requests.
SHORT = {"prompt": 20, "tokens": 100, "parts": 5, "body": 12}
# Of 192 slots: longer than the shortest attended prefix.
LONG = {"prompt": 50, "tokens": 140, "parts": 5, "body": 20}


@functools.partial(jax.jit, static_argnums=0)
def _forward(cfg, params, ids, position, mask):
  return transformer.forward(cfg, params, ids, position, mask)[0]


@contextlib.contextmanager
def compiled_quickly():
  """Leaves LLVM's optimisations out, which take longer than these programs run; XLA's own are the usual."""
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    yield
  finally:
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def family_model(name: str):
  """`split_model` of a family, made once."""
  return split_model(FAMILIES[name])


def teacher(model, result) -> np.ndarray:
  """The logits of every draw of a result, in order of drawing, from one forward."""
  request, parallel = result.request, result.parallel
  lengths = [len(c) for c in request.script.chunks] if request.positions == "oracle" else None
  # A model has several ids to end with, and a request may have more.
  end = next(d.token for d in reversed(parallel.draws) if d.thread == 0)
  sequence = training_sequence(
    request.prompt, parallel.threads, model.tokenizer.controls, end,
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
  return model.__class__(model.config, likes_marks(model), model.tokenizer)


def likes_marks(model) -> dict:
  """Parameters with which about every free answer has rounds of chunks."""
  c = model.tokenizer.controls
  table = "embed" if model.config.tied_embeddings else "head"
  params = dict(model.params)
  for ids, scale in (((c.promise, c.sync), 10.0), ((c.close,), 6.0), (c.lens, 3.0)):
    params[table] = params[table].at[jnp.asarray(ids)].multiply(scale)
  return params


def random_script(rng, controls, parts: int = 7, body: int = 40) -> Threads:
  """A document of any shape: a chunk or more, which keep their promises or break them, joined or not."""
  main: list[int] = list(rng.integers(0, 256, rng.integers(0, 6)))
  chunks = []
  opened = False
  for _ in range(rng.integers(1, parts)):
    if opened and rng.random() < 0.3:
      main.append(controls.sync)
      opened = False
    else:
      topic = rng.integers(0, 256, rng.integers(1, 4))
      main += [controls.promise, *topic, controls.lens[rng.integers(0, 5)]]
      chunks.append(tuple(int(i) for i in rng.integers(0, 256, rng.integers(1, body))))
      opened = True
    main += list(rng.integers(0, 256, rng.integers(0, 5)))
  return Threads(tuple(int(i) for i in main), tuple(chunks))


def law_requests(controls, seed: int, count: int, prompt: int = 80, tokens: int = 160, **script):
  """Free and scripted requests of every fork and scheme, greedy and sampled.

  Args:
    count: of requests; twenty hold each fork and scheme free and scripted, but for the oracle.
    prompt, tokens: lengths are below.
    script: sizes, see random_script.
  """
  rng = np.random.default_rng(seed)
  requests = []
  for n in range(count):
    scheme, fork = POSITIONS[n % 5], FORKS[n // 5 % 2]
    scripted = scheme == "oracle" or n // 10 % 2 == 1
    requests.append(
      Request(
        [int(i) for i in rng.integers(0, 256, rng.integers(1, prompt))],
        max_new_tokens=int(rng.integers(tokens // 2, tokens)),
        sampling=Sampling(
          temperature=(0.0, 1.5, 3.0, 5.0)[(n + n // 20 * 2) % 4],
          top_k=int(rng.choice([0, 30])),
          seed=seed + n,
        ),
        fork=fork,
        positions=scheme,
        fixed=int(rng.integers(0, 50)),
        script=random_script(rng, controls, **script) if scripted else None,
        limits=Limits(round_chunks=3, chunks=6, least_grant=8, chunk_tokens=16, topic_pieces=3),
        logprobs=n % 3 == 0,
      )
    )
  return requests


def keeps_the_law(model, results) -> None:
  for result in results:
    np.testing.assert_allclose(result.logits, teacher(model, result), atol=1e-4)


def is_telling(results, controls) -> None:
  """The law says little about answers without chunks, or without syncs that chunks follow."""
  split: dict[bool, set] = {True: set(), False: set()}
  for r in results:
    if r.parallel.threads.chunks:
      split[r.request.script is not None].add((r.request.positions, r.request.fork))
  assert split[True] == {(p, f) for p in POSITIONS for f in FORKS}
  assert {p for p, _ in split[False]} == set(POSITIONS) - {"oracle"}
  assert {f for _, f in split[False]} == set(FORKS)
  syncs = collections.Counter(
    r.request.script is not None for r in results if controls.sync in r.parallel.threads.main
  )
  assert min(syncs[True], syncs[False]) >= 1
  assert {r.request.sampling.temperature > 0 for r in results if r.parallel.threads.chunks} == {True, False}
