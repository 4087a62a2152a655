"""Engines as accelerators run them, on a CPU: bfloat16, pieces of two sizes, products of eight rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.decode import engine as engine_module
from pasta_jax.decode import programs
from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Request, Sampling
from pasta_jax.model import packed
from tests.law import SHORT, compiled_quickly, keeps_the_law, law_requests, split_model, teacher
from tests.toy import teacher_logits, toy_model

PIECES = (32, 128)


@pytest.fixture
def accelerator(monkeypatch):
  """Engines choose as on a TPU, but for the lengths of pieces."""
  monkeypatch.setattr(engine_module, "piece_sizes", lambda platform: PIECES)
  monkeypatch.setattr(engine_module, "step_rows", lambda *_: ())
  monkeypatch.setattr(programs, "least_rows", lambda platform: 8)
  for module in (engine_module, programs, packed):
    monkeypatch.setattr(module, "packs", lambda mesh: False)


def make(model, **settings) -> Engine:
  with compiled_quickly():
    return Engine(model, batch_size=2, segment=8, keep_logits=True, **settings)


def in_bfloat16(model):
  return dataclasses.replace(model, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params))


def varied_prompts(lengths) -> list[Request]:
  rng = np.random.default_rng(3)
  return [
    Request(
      [int(i) for i in rng.integers(0, 256, n)], max_new_tokens=12,
      sampling=Sampling(temperature=float(n % 2), seed=n), model_stops=False,
    )
    for n in lengths
  ]  # fmt: skip


def forward_of(model, result) -> np.ndarray:
  """The logits of every draw of a sequential answer, from one forward."""
  prompt = list(result.request.prompt)
  return teacher_logits(model, prompt + list(result.ids))[len(prompt) - 1 : -1]


def is_as_near_as_one_forward(got, half, full) -> None:
  """Logits of many draws: bfloat16 takes a decoder about as far from float32 as it takes one forward."""
  got, half, full = (np.concatenate(x).astype(np.float64) for x in (got, half, full))
  rounding = np.sqrt(np.mean((half - full) ** 2))
  assert 0 < rounding < 0.1 * np.std(full)
  assert np.sqrt(np.mean((got - full) ** 2)) < 1.5 * rounding
  assert np.abs(got - half).max() < 3 * np.abs(half - full).max()


def test_prompts_of_every_length_of_pieces_keep_the_logits_of_one_forward(accelerator):
  model = toy_model()
  engine = make(model, max_len=256)
  assert engine.programs.shapes.pieces == PIECES
  assert engine.params is model.params
  for result in engine.generate(varied_prompts((1, 7, 8, 9, 31, 32, 33, 127, 128, 129, 160, 161, 200))):
    np.testing.assert_allclose(result.logits, forward_of(model, result), atol=1e-4)


def test_lanes_of_eight_rows_keep_the_law(accelerator):
  model = split_model()
  engine = make(model, max_len=128, lanes=3, chunks=8)
  assert engine.programs.shapes.loop.widths == (8,)
  results = engine.generate(law_requests(model.tokenizer.controls, 3, 20, **SHORT))
  keeps_the_law(model, results)
  assert any(len(r.parallel.threads.chunks) > 1 for r in results)


def test_lanes_in_bfloat16_are_as_near_to_float32_as_one_forward_in_bfloat16(accelerator):
  lanes_in_bfloat16_are_near(jnp.bfloat16)


def test_lanes_in_bfloat16_on_a_cpu_are_so_too():
  lanes_in_bfloat16_are_near(jnp.float32)


def lanes_in_bfloat16_are_near(cache_dtype):
  exact = split_model()
  model = in_bfloat16(exact)
  engine = make(model, max_len=128, lanes=3, chunks=8)
  assert engine.programs.new_state().cache.k[0].dtype == cache_dtype
  results = engine.generate(law_requests(model.tokenizer.controls, 3, 20, **SHORT))
  assert any(len(r.parallel.threads.chunks) > 1 for r in results)
  # Of the same weights: those that bfloat16 holds.
  held = dataclasses.replace(exact, params=jax.tree.map(lambda x: x.astype(jnp.float32), model.params))
  is_as_near_as_one_forward(
    [r.logits for r in results], [teacher(model, r) for r in results], [teacher(held, r) for r in results]
  )


def test_one_lane_in_bfloat16_on_a_cpu_is_as_near_to_float32_as_one_forward_in_bfloat16():
  exact = toy_model()
  model = in_bfloat16(exact)
  engine = make(model, max_len=128)
  results = engine.generate(varied_prompts(range(1, 100, 9)))
  held = dataclasses.replace(exact, params=jax.tree.map(lambda x: x.astype(jnp.float32), model.params))
  is_as_near_as_one_forward(
    [r.logits for r in results],
    [forward_of(model, r) for r in results],
    [forward_of(held, r) for r in results],
  )
