"""Small models and the files that others would write of them, for the tests of weights."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pasta_jax.model.config import ModelConfig, RopeScaling
from pasta_jax.model.gguf_weights import gguf_name, llama3_divisors
from pasta_jax.model.params import param_table
from pasta_jax.model.safetensors_weights import hf_name

_SIZES = {
  "vocab_size": 64, "num_layers": 3, "d_model": 32, "d_ff": 48, "num_heads": 4, "num_kv_heads": 2,
  "head_dim": 16, "max_len": 128,
}  # fmt: skip
_GEMMA = {"norm_offset": 1.0, "norm_eps": 1e-6, "activation": "gelu_tanh", "scale_embeddings": True}

CONFIGS = {
  "gemma": ModelConfig("gemma", **_SIZES, **_GEMMA),
  "gemma2": ModelConfig(
    "gemma2", **_SIZES, **_GEMMA, post_norms=True, attn_softcap=50.0, final_softcap=30.0,
    sliding_window=8, sliding_pattern=2,
  ),
  "gemma3": ModelConfig(
    "gemma3", **_SIZES, **_GEMMA, post_norms=True, qk_norm=True, sliding_window=8, sliding_pattern=6,
    rope_theta=1e6, rope_local_theta=1e4, rope_scaling=RopeScaling("linear", 8.0),
  ),
  "llama": ModelConfig("llama", **_SIZES, tied_embeddings=False),
  "llama-tied": ModelConfig(
    "llama", **_SIZES, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 8.0, original_max_len=8192)
  ),
  "qwen2": ModelConfig("qwen2", **_SIZES, qkv_bias=True, norm_eps=1e-6, rope_theta=1e6),
  "qwen3": ModelConfig("qwen3", **_SIZES, qk_norm=True, norm_eps=1e-6, tied_embeddings=False, rope_theta=1e6),
}  # fmt: skip


def tiny_params(cfg: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
  """Random float32 parameters whose values survive bfloat16."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(size=spec.shape).astype(ml_dtypes.bfloat16).astype(np.float32)
    for name, spec in param_table(cfg).items()
  }


def flat(name: str, array: np.ndarray) -> np.ndarray:
  """An array with heads and their size as one axis, as files have it."""
  short = name.rsplit(".", 1)[-1]
  if short in ("q", "k", "v"):
    return array.reshape(-1, array.shape[-1])
  if short == "o":
    return array.reshape(array.shape[0], -1)
  return array.reshape(-1) if short.endswith("_bias") else array


def llama_cpp_permute(rows: np.ndarray, heads: int) -> np.ndarray:
  """What llama.cpp's converter does to q and k of Llama: halves of each head to neighbouring pairs."""
  return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
  path: Path, cfg: ModelConfig, params: Mapping[str, np.ndarray], types: Mapping[str, str] | None = None,
  raw: Mapping[str, np.ndarray] | None = None, extra: Mapping[str, np.ndarray] | None = None,
  tokenizer: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
  """A GGUF file as llama.cpp's converter writes it.

  Args:
    types: ggml types by parameter, where not F32.
    raw: rows of ready quantised bytes by parameter, of the type in `types`.
    extra: further tensors by their name in the file.
    tokenizer: what the file says of its tokenizer, by the name of gguf's method: `{"token_list": [...]}`.
  """
  import gguf

  types, raw = types or {}, raw or {}
  kind = gguf.GGMLQuantizationType
  w = gguf.GGUFWriter(path, cfg.family)
  w.add_block_count(cfg.num_layers)
  w.add_context_length(cfg.max_len)
  w.add_embedding_length(cfg.d_model)
  w.add_feed_forward_length(cfg.d_ff)
  w.add_head_count(cfg.num_heads)
  w.add_head_count_kv(cfg.num_kv_heads)
  w.add_key_length(cfg.head_dim)
  w.add_value_length(cfg.head_dim)
  w.add_layer_norm_rms_eps(cfg.norm_eps)
  w.add_rope_freq_base(cfg.rope_theta)
  if cfg.sliding_window:
    w.add_sliding_window(cfg.sliding_window)
  if cfg.attn_softcap:
    w.add_attn_logit_softcapping(cfg.attn_softcap)
    w.add_final_logit_softcapping(cfg.final_softcap)
  if cfg.rope_scaling and cfg.rope_scaling.kind == "linear":
    w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    w.add_rope_scaling_factor(cfg.rope_scaling.factor)
  elif cfg.rope_scaling:
    divisors = llama3_divisors(cfg.rope_scaling, cfg.rope_theta, cfg.head_dim)
    w.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
  for what, value in (tokenizer or {}).items():
    getattr(w, f"add_{what}")(value)
  for name, array in params.items():
    short, array = name.rsplit(".", 1)[-1], flat(name, array)
    if cfg.family == "llama" and short in ("q", "k"):
      array = llama_cpp_permute(array, cfg.num_heads if short == "q" else cfg.num_kv_heads)
    if short.endswith("norm"):
      array = array + np.float32(cfg.norm_offset)
    if name in raw:
      w.add_tensor(gguf_name(name), raw[name], raw_dtype=kind[types[name]])
    elif name in types:
      w.add_tensor(
        gguf_name(name), gguf.quants.quantize(array, kind[types[name]]), raw_dtype=kind[types[name]]
      )
    else:
      w.add_tensor(gguf_name(name), np.ascontiguousarray(array))
  for name, array in (extra or {}).items():
    w.add_tensor(name, array)
  w.write_header_to_file()
  w.write_kv_data_to_file()
  w.write_tensors_to_file()
  w.close()
  return path


def safetensors_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
  """A safetensors file, written out by hand."""
  kinds = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}
  header, pieces, at = {}, [], 0
  for name, array in tensors.items():
    raw = array.tobytes()
    offsets = [at, at + len(raw)]
    header[name] = {"dtype": kinds[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
    pieces.append(raw)
    at += len(raw)
  text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
  text += b" " * (-len(text) % 8)
  return b"".join([struct.pack("<Q", len(text)), text, *pieces])


def hf_tensors(
  cfg: ModelConfig, params: Mapping[str, np.ndarray], dtype: type = np.float32, prefix: str = "model."
) -> dict[str, np.ndarray]:
  return {hf_name(name, cfg, prefix): flat(name, array).astype(dtype) for name, array in params.items()}


def hf_json(cfg: ModelConfig) -> dict:
  """The config.json of transformers 4 for a configuration of `CONFIGS`."""
  values = {
    "model_type": "gemma3_text" if cfg.family == "gemma3" else cfg.family,
    "vocab_size": cfg.vocab_size, "hidden_size": cfg.d_model, "intermediate_size": cfg.d_ff,
    "num_hidden_layers": cfg.num_layers, "num_attention_heads": cfg.num_heads,
    "num_key_value_heads": cfg.num_kv_heads, "head_dim": cfg.head_dim, "rms_norm_eps": cfg.norm_eps,
    "max_position_embeddings": cfg.max_len, "tie_word_embeddings": cfg.tied_embeddings,
    "rope_theta": cfg.rope_theta,
  }  # fmt: skip
  if cfg.sliding_window:
    values |= {"sliding_window": cfg.sliding_window, "query_pre_attn_scalar": cfg.head_dim}
  if s := cfg.rope_scaling:
    values["rope_scaling"] = {"rope_type": s.kind, "factor": s.factor}
    if s.kind == "llama3":
      values["rope_scaling"] |= {
        "low_freq_factor": s.low_freq_factor,
        "high_freq_factor": s.high_freq_factor,
        "original_max_position_embeddings": s.original_max_len,
      }
  return values


def write_hf(
  folder: Path, cfg: ModelConfig, params: Mapping[str, np.ndarray], *, dtype: type = np.float32,
  shards: int = 1, prefix: str = "model.", config: dict | None = None,
  extra: Mapping[str, np.ndarray] | None = None,
) -> Path:  # fmt: skip
  """A Hugging Face folder."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config or hf_json(cfg)))
  tensors = hf_tensors(cfg, params, dtype, prefix) | dict(extra or {})
  if shards == 1:
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder
  names, index = list(tensors), {}
  for i in range(shards):
    file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
    part = names[i::shards]
    (folder / file).write_bytes(safetensors_bytes({n: tensors[n] for n in part}))
    index |= dict.fromkeys(part, file)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  return folder
