"""Every family computes the logits of Hugging Face transformers, in one forward and through the cache.

The golden files come from tools/make_logits_goldens.py. tests/test_law_real.py holds an engine against a
packaged model's.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.forward import forward_lanes, lane_logits
from pasta_jax.decode.lanes import main_lanes
from pasta_jax.decode.programs import plan_pieces
from pasta_jax.decode.requests import Request
from pasta_jax.lang.threads import Threads
from pasta_jax.model import transformer
from pasta_jax.model.attention import attend
from pasta_jax.model.cache import empty_cache
from pasta_jax.model.config import RopeScaling
from pasta_jax.model.hf_config import hf_config
from pasta_jax.model.packages import PACKAGES
from pasta_jax.model.weights import LoadedModel, load_model
from tests.logits_cases import (
  CASES,
  END,
  GOLDEN,
  PROMPTS,
  REAL_PROMPTS,
  REAL_STEPS,
  STEPS,
  case_ids,
  case_params,
  digest,
  write_case,
)

TOLERANCE = 1e-4
SLOTS = 256
# Of the packaged models, relative to the largest logit; 2.4e-6 is reached.
REAL_TOLERANCE = 1e-5


class Ids:
  """A tokenizer for those who speak in ids: all that the engine asks for."""

  stop_ids = (END,)
  special_ids = frozenset((END,))
  controls = None
  add_bos = False
  has_chat_template = False

  def __init__(self, vocab_size: int):
    self.vocab_size = vocab_size

  def piece(self, token: int) -> bytes:
    return b"x"

  def stream(self):
    return self

  def push(self, token: int) -> str:
    return ""

  def flush(self) -> str:
    return ""


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
  """Name, the model as loaded from a Hugging Face folder, and its golden arrays."""
  name = request.param
  golden = np.load(GOLDEN / f"logits_{name}.npz")
  params = case_params(CASES[name].config)
  assert digest(params) == str(golden["weights"]), "other weights than the golden file's; make it again"
  assert np.array_equal(case_ids(), golden["ids"]), "other ids than the golden file's; make it again"
  folder = write_case(tmp_path_factory.mktemp(name), CASES[name], params)
  loaded = load_model(str(folder))
  return name, LoadedModel(loaded.config, loaded.params, Ids(loaded.config.vocab_size)), golden


def rows_of(golden) -> list[np.ndarray]:
  """The golden logits of every row, of its prompt and the steps after it, TxV each."""
  prompts = np.split(golden["prefill"], np.cumsum(PROMPTS)[:-1])
  return [np.concatenate(r) for r in zip(prompts, golden["steps"], strict=True)]


def logits_of(cfg, params, ids, lengths):
  size = ids.shape[1]
  positions = jnp.broadcast_to(jnp.arange(size)[None], ids.shape)
  return transformer.forward(cfg, params, ids, positions, transformer.causal_mask(lengths, size))


forward = jax.jit(logits_of, static_argnums=0)


def test_the_configuration_is_read_in_both_spellings_of_transformers(case, tmp_path):
  name, model, golden = case
  assert model.config.replace(name="") == CASES[name].config
  path = tmp_path / "config.json"
  path.write_text(str(golden["config"]))
  assert hf_config(path).replace(name="") == CASES[name].config


def test_one_forward_over_a_ragged_batch_matches(case):
  _, model, golden = case
  width = max(PROMPTS)
  got = forward(model.config, model.params, golden["ids"][:, :width], jnp.asarray(PROMPTS))
  live = np.arange(width)[None] < np.array(PROMPTS)[:, None]
  np.testing.assert_allclose(np.asarray(got)[live], golden["prefill"], rtol=0, atol=TOLERANCE)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def piece(cfg, params, cache, row, ids, start, count):
  """A piece of a prompt through one row of the cache, as decode.step.prefill runs it; also the cache."""
  offset = jnp.arange(ids.shape[0])[None]
  lanes = main_lanes(ids[None], start + offset, offset < count)
  hidden, cache = forward_lanes(cfg, params, cache, lanes, start, (SLOTS,), row)
  return transformer.logits(cfg, params, hidden)[0], cache


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def steps(cfg, params, cache, ids, times, at):
  """Steps of all rows, one token of each at a time, from slot `at` on; ids, times BxI -> logits BxIxV."""

  def step(carry, now):
    cache, at = carry
    lanes = main_lanes(now[0][:, None], now[1][:, None], jnp.ones((ids.shape[0], 1), bool))
    logits, cache = lane_logits(cfg, params, (SLOTS,), cache, lanes, at)
    return (cache, at + 1), logits[:, 0]

  (cache, _), logits = jax.lax.scan(step, (cache, at), (ids.T, times.T))
  return logits.swapaxes(0, 1), cache


def test_prefill_in_pieces_and_steps_with_the_cache_match(case):
  _, model, golden = case
  cfg, ids = model.config, golden["ids"]
  cache = empty_cache(cfg, len(PROMPTS), SLOTS, jnp.float32)
  prefill = []
  for row, prompt in enumerate(PROMPTS):
    for start, count, size in plan_pieces(prompt, (64,)):
      part = np.zeros(size, np.int32)
      part[:count] = ids[row, start : start + count]
      logits, cache = piece(cfg, model.params, cache, row, part, start, count)
      prefill.append(logits[:count])
  np.testing.assert_allclose(np.concatenate(prefill), golden["prefill"], rtol=0, atol=TOLERANCE)
  # One shared cursor: every row goes on in the slot after the longest prompt, whatever its own length.
  times = np.asarray(PROMPTS)[:, None] + np.arange(STEPS)[None]
  got, _ = steps(cfg, model.params, cache, np.take_along_axis(ids, times, 1), times, max(PROMPTS))
  np.testing.assert_allclose(got, golden["steps"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["gemma3"], indirect=True)
def test_the_engine_hands_out_the_same_logits_wherever_a_prompt_ends(case):
  _, model, golden = case
  engine = Engine(model, batch_size=4, max_len=SLOTS, segment=STEPS, keep_logits=True)
  ids, expected = golden["ids"], rows_of(golden)
  # Each prompt, then the steps after it: the golden file's own division.
  cuts = [(row, prompt) for row, prompt in enumerate(PROMPTS)]
  # Prompts that end around the border of a piece and of an attended length, and rows run by steps alone.
  cuts += [(3, n) for n in (1, 63, 64, 65, 127, 128, 129)] + [(2, 1)]
  requests = []
  for row, prompt in cuts:
    rest = ids[row, prompt : PROMPTS[row] + STEPS]
    requests.append(Request([int(i) for i in ids[row, :prompt]], script=Threads(tuple(map(int, rest)))))
  for (row, prompt), result in zip(cuts, engine.generate(requests), strict=True):
    message = f"row {row}, prompt of {prompt}"
    np.testing.assert_allclose(
      result.logits, expected[row][prompt - 1 :], rtol=0, atol=TOLERANCE, err_msg=message
    )


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("gemma", {"scale_embeddings": False}),
    ("gemma", {"activation": "silu"}),
    ("gemma2", {"attn_softcap": None}),
    ("gemma2", {"final_softcap": None}),
    ("gemma2", {"sliding_window": 8}),
    ("gemma2", {"sliding_pattern": 3}),
    ("gemma2", {"query_scale": 0.0}),
    ("gemma3", {"rope_local_theta": None}),
    ("gemma3", {"rope_scaling": None}),
    ("gemma3", {"sliding_window": None}),
    ("llama2", {"rope_theta": 2e4}),
    ("llama2", {"norm_eps": 1e-2}),
    ("llama3", {"rope_scaling": RopeScaling("llama3", 8.0, original_max_len=56)}),
    ("llama3", {"rope_scaling": RopeScaling("linear", 8.0)}),
  ],
)
def test_the_golden_logits_feel_every_feature(name, changes):
  golden = np.load(GOLDEN / f"logits_{name}.npz")
  cfg = CASES[name].config
  ids = golden["ids"][3:, : PROMPTS[3]]
  # Not compiled: a program for each change would take longer.
  params = jax.tree.map(jnp.asarray, case_params(cfg))
  got = logits_of(cfg.replace(**changes), params, ids, jnp.asarray(PROMPTS[3:]))
  off = np.abs(np.asarray(got)[0] - golden["prefill"][-PROMPTS[3] :]).max()
  assert off > 100 * TOLERANCE


@functools.partial(jax.jit, static_argnums=0)
def reaches(cfg, params, ids, mask):
  """Whether the logits of token t (axis 0) depend on the embedding of token s, by gradients; TxT bool."""
  size = ids.shape[0]

  def sums(embed_TxD):
    # Token t is row t of the embedding. The head is another array, which the gradient does not go through.
    p = params | {"embed": embed_TxD, "head": params.get("head", params["embed"])}
    untied = cfg.replace(tied_embeddings=False)
    logits = transformer.forward(untied, p, jnp.arange(size)[None], jnp.arange(size)[None], mask[None])[0]
    return logits @ jnp.linspace(-1.0, 1.0, cfg.vocab_size)

  return jnp.any(jax.jacrev(sums)(params["embed"][ids]) != 0, axis=-1)


@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
def test_gradients_are_exactly_zero_where_the_masks_let_nothing_through_and_nowhere_else(name):
  cfg = CASES[name].config
  params = jax.tree.map(jnp.asarray, case_params(cfg))
  size = 32
  rng = np.random.default_rng(3)
  causal = np.tri(size, dtype=bool)
  ids = rng.permutation(cfg.vocab_size)[:size]
  for mask in (causal, causal & (rng.random((size, size)) < 0.15) | np.eye(size, dtype=bool)):
    distance = np.arange(size)[:, None] - np.arange(size)[None]
    expected = np.eye(size, dtype=bool)
    for layer in range(cfg.num_layers):
      seen = mask & (distance < cfg.sliding_window) if cfg.is_local(layer) else mask
      expected = (seen.astype(int) @ expected) > 0
    assert np.array_equal(reaches(cfg, params, ids, mask), expected)


@pytest.fixture(scope="module", params=REAL_PROMPTS)
def real(request):
  """A packaged model and its golden arrays."""
  name = request.param
  package = PACKAGES[name]
  if importlib.util.find_spec(package.module) is None:
    pytest.skip(f"{name} is not installed: pip install {package.install}")
  return load_model(name), np.load(GOLDEN / f"logits_{name}.npz")


def check_summary(logits: np.ndarray, golden, prefix: str) -> None:
  """Compares logits PxV with the largest of the golden ones and their logsumexp; the first P of them."""
  top, top_ids, total = (golden[f"{prefix}{part}"][: len(logits)] for part in ("top", "top_ids", "logsumexp"))
  tolerance = REAL_TOLERANCE * np.abs(top).max()
  np.testing.assert_allclose(np.take_along_axis(logits, top_ids, axis=1), top, rtol=0, atol=tolerance)
  np.testing.assert_allclose(jax.nn.logsumexp(logits, axis=1), total, rtol=0, atol=tolerance)
  # The largest is the same id, wherever the first two are further apart than the tolerance.
  clear = top[:, 0] - top[:, 1] > 2 * tolerance
  assert clear.mean() > 0.9
  assert np.array_equal(logits.argmax(1)[clear], top_ids[clear, 0])


@functools.partial(jax.jit, static_argnums=0)
def logits_at(cfg, params, ids, segments, positions, at):
  """Logits at P places of one row of T tokens, PxV; a segment sees itself only."""
  mask = np.tri(ids.shape[0], dtype=bool) & (segments[:, None] == segments[None])
  positions = positions[None]
  window = transformer.window_mask(cfg, positions, positions)

  def attention(layer, q, k, v):
    seen = mask[None] & window if cfg.is_local(layer) else mask[None]
    return attend(cfg, q, k.swapaxes(1, 2), v.swapaxes(1, 2), seen)

  hidden = transformer.hidden_states(cfg, params, ids[None], positions, attention)
  return transformer.logits(cfg, params, hidden[:, at])[0]


@pytest.mark.real
def test_a_packaged_model_computes_the_golden_logits_of_real_prompts_and_answers(real):
  model, golden = real
  # One forward over all of them, side by side.
  texts = [np.concatenate([golden[f"{n}.ids"], golden[f"{n}.next_ids"]]) for n in range(3)]
  assert model.config.sliding_window is None or len(texts[2]) > model.config.sliding_window + 100
  starts = np.cumsum([0, *map(len, texts)])
  at = [golden[f"{n}.at"] + starts[n] for n in range(3)]
  at += [starts[n + 1] - REAL_STEPS + np.arange(REAL_STEPS) for n in range(3)]
  segments = np.concatenate([np.full(len(t), n) for n, t in enumerate(texts)])
  positions = np.concatenate([np.arange(len(t)) for t in texts])
  got = logits_at(model.config, model.params, np.concatenate(texts), segments, positions, np.concatenate(at))
  parts = np.split(np.asarray(got), np.cumsum([len(a) for a in at])[:-1])
  for part, prefix in zip(parts, ("0.", "1.", "2.", "0.next_", "1.next_", "2.next_"), strict=True):
    check_summary(part, golden, prefix)
