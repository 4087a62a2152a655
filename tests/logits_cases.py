"""What the golden logits are of: a small model per family, and prompts of the packaged models.

tools/make_logits_goldens.py has other code compute the logits; tests/test_models.py compares ours. The golden
files hold ids and logits only: weights come from a seed, and a digest tells when they are not the same.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pasta_jax.model.config import ModelConfig, RopeScaling
from pasta_jax.model.params import param_table
from tests.weights_files import hf_json, tiny_params, write_hf

GOLDEN = Path(__file__).parent / "golden"
END = 0  # the id that ends an answer; the rows have no other use for it
PROMPTS = (1, 7, 33, 120)  # tokens of each row's prompt: one that is a single token, one of two pieces
STEPS = 20  # tokens after each prompt; the longest row passes slot 128, where a longer prefix is attended

_SIZES = {"vocab_size": 40, "max_len": 256}
_GEMMA = {"norm_offset": 1.0, "norm_eps": 1e-6, "activation": "gelu_tanh", "scale_embeddings": True}
_LLAMA3 = RopeScaling("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=48)


@dataclasses.dataclass(frozen=True)
class Case:
  """A configuration, and what its config.json says besides `weights_files.hf_json`."""

  config: ModelConfig
  values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Windows, caps and the trained length of rope scaling are short, so that 140 tokens feel them.
CASES: dict[str, Case] = {
  # One key head, heads wider than D / H.
  "gemma": Case(
    ModelConfig(
      "gemma", **_SIZES, **_GEMMA, num_layers=3, d_model=32, d_ff=48, num_heads=4, num_kv_heads=1,
      head_dim=24,
    )
  ),
  # Both soft-caps, alternating windows, norms on both sides, its own query scale.
  "gemma2": Case(
    ModelConfig(
      "gemma2", **_SIZES, **_GEMMA, num_layers=4, d_model=32, d_ff=48, num_heads=4, num_kv_heads=2,
      head_dim=16, post_norms=True, attn_softcap=3.0, final_softcap=5.0, query_scale=13**-0.5,
      sliding_window=7, sliding_pattern=2,
    ),
    {"query_pre_attn_scalar": 13, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
  ),
  # Two local layers to a global one, a rope base of each, linear scaling of the global one, qk-norm.
  "gemma3": Case(
    ModelConfig(
      "gemma3", **_SIZES, **_GEMMA, num_layers=4, d_model=32, d_ff=48, num_heads=4, num_kv_heads=2,
      head_dim=12, post_norms=True, qk_norm=True, query_scale=10**-0.5, sliding_window=9,
      sliding_pattern=3, rope_theta=1e4, rope_local_theta=100.0, rope_scaling=RopeScaling("linear", 4.0),
    ),
    {"query_pre_attn_scalar": 10, "rope_local_base_freq": 100.0, "sliding_window_pattern": 3},
  ),
  # As many key heads as query heads, a separate output head.
  "llama2": Case(
    ModelConfig(
      "llama", **_SIZES, num_layers=3, d_model=32, d_ff=48, num_heads=4, num_kv_heads=4, head_dim=8,
      tied_embeddings=False,
    )
  ),
  # Grouped queries, rope scaling with fast, blended and slow frequencies, a separate head.
  "llama3": Case(
    ModelConfig(
      "llama", **_SIZES, num_layers=3, d_model=32, d_ff=48, num_heads=4, num_kv_heads=2, head_dim=16,
      tied_embeddings=False, rope_theta=500.0, rope_scaling=_LLAMA3,
    )
  ),
  # Three queries to a key head, as many heads as tensor parallelism does not like, tied.
  "smollm2": Case(
    ModelConfig(
      "llama", **_SIZES, num_layers=4, d_model=36, d_ff=48, num_heads=9, num_kv_heads=3, head_dim=4,
      rope_theta=1e5,
    )
  ),
  # Biases on q, k and v.
  "qwen2.5": Case(
    ModelConfig(
      "qwen2", **_SIZES, num_layers=3, d_model=32, d_ff=48, num_heads=4, num_kv_heads=2, head_dim=8,
      qkv_bias=True, norm_eps=1e-6, rope_theta=1e6,
    )
  ),
  # qk-norm without Gemma's offset, heads wider than D / H, a separate head.
  "qwen3": Case(
    ModelConfig(
      "qwen3", **_SIZES, num_layers=3, d_model=32, d_ff=48, num_heads=4, num_kv_heads=2, head_dim=16,
      qk_norm=True, norm_eps=1e-6, rope_theta=1e6, tied_embeddings=False,
    )
  ),
}  # fmt: skip


def case_params(cfg: ModelConfig) -> dict[str, np.ndarray]:
  """Random float32 weights under which attention is neither flat nor one-hot and no two logits are alike."""
  params = tiny_params(cfg, seed=11)
  for name, spec in param_table(cfg).items():
    short = name.rsplit(".", 1)[-1]
    if short.endswith("norm"):
      params[name] = (1 - cfg.norm_offset) + 0.3 * params[name]
    elif name == "embed" and cfg.tied_embeddings:
      params[name] = 0.4 * params[name]
    elif spec.init == "normal":
      gain = 2.0 if short in ("q", "k", "head") else 1.0
      params[name] = params[name] * (gain / spec.fan_in**0.5)
    params[name] = np.float32(params[name])
  return params


def case_ids() -> np.ndarray:
  """The tokens of every row, right-padded with `END`; BxT int32."""
  rng = np.random.default_rng(5)
  ids = np.full((len(PROMPTS), max(PROMPTS) + STEPS), END, np.int32)
  for row, prompt in zip(ids, PROMPTS, strict=True):
    row[: prompt + STEPS] = rng.integers(END + 1, _SIZES["vocab_size"], prompt + STEPS)
  return ids


def digest(arrays: Mapping[str, np.ndarray]) -> str:
  """Of names and bytes."""
  out = hashlib.sha256()
  for name, array in arrays.items():
    out.update(name.encode())
    out.update(np.ascontiguousarray(array).tobytes())
  return out.hexdigest()


def write_case(folder: Path, case: Case, params: Mapping[str, np.ndarray]) -> Path:
  """The case as a Hugging Face folder."""
  return write_hf(folder, case.config, params, config=hf_json(case.config) | dict(case.values))


# By the preset of a packaged model: text, with the model's own marks of a chat where it was trained on them.
# `{LICENSE}` stands for the first letters of this project's licence: longer than Gemma 3's window of 512.
TRAVEL = "Name three ways to travel from Paris to Rome, with one sentence about each."
REAL_PROMPTS: dict[str, tuple[str, ...]] = {
  "smollm2-135m": (
    f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{TRAVEL}<|im_end|>\n"
    "<|im_start|>assistant\n",
    "def fibonacci(n: int) -> int:\n  '''The n-th number.'''\n  if n < 2:\n    return",
    "{LICENSE}",
  ),
  "gemma3-270m": (
    f"<bos>{TRAVEL}\n\n1.",
    "<bos>Der schnellste Weg von Paris nach Rom ist das Flugzeug. Auf Französisch: Le moyen le plus",
    "<bos>{LICENSE}",
  ),
}
LICENSE_LETTERS = 3400
POSITIONS = 12  # of each prompt, evenly spread, the last one among them
TOP = 64  # largest logits of a position
REAL_STEPS = 24  # ids that the model goes on with, greedily
