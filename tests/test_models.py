"""Every family computes the logits of Hugging Face transformers, in one forward and through the cache.

The golden files come from tools/make_logits_goldens.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Request
from pasta_jax.lang.threads import Threads
from pasta_jax.model import transformer
from pasta_jax.model.config import RopeScaling
from pasta_jax.model.hf_config import hf_config
from pasta_jax.model.weights import LoadedModel, load_model
from tests.logits_cases import CASES, END, GOLDEN, PROMPTS, STEPS, case_ids, case_params, digest, write_case

TOLERANCE = 1e-4


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


@functools.partial(jax.jit, static_argnums=0)
def forward(cfg, params, ids, lengths):
  size = ids.shape[1]
  positions = jnp.broadcast_to(jnp.arange(size)[None], ids.shape)
  return transformer.forward(cfg, params, ids, positions, transformer.causal_mask(lengths, size))


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


def test_prefill_in_pieces_and_steps_with_the_cache_match(case):
  _, model, golden = case
  engine = Engine(model, batch_size=4, max_len=256, segment=STEPS, keep_logits=True)
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
  got = forward(cfg.replace(**changes), case_params(cfg), ids, jnp.asarray(PROMPTS[3:]))
  off = np.abs(np.asarray(got)[0] - golden["prefill"][-PROMPTS[3] :]).max()
  assert off > 100 * TOLERANCE
