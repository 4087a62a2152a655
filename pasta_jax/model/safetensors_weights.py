"""Hugging Face folders: config.json and safetensors files into a configuration and parameters."""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.gguf_file import read_into
from pasta_jax.model.hf_config import hf_config
from pasta_jax.model.params import Params, ParamSpec, param_table
from pasta_jax.model.placing import FLOAT_TYPES, Source, build_params, check_names, file_shape, widen
from pasta_jax.model.safetensors_file import SafetensorsFolder, StoredTensor

# Parts of a checkpoint that a text model has no use for: Gemma 3's vision tower and its bridge into the
# text model, and rotary frequencies that old Llama files carry although they follow from the configuration.
IGNORED_PREFIXES = (
  "vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.",
)  # fmt: skip
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"

# The text model's tensors begin with one of these: plain, and in Gemma 3 files with vision, old and new.
_TEXT_PREFIXES = ("model.", "language_model.model.", "model.language_model.")
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")

_LAYER = {
  "attn_norm": "input_layernorm.weight",
  "q": "self_attn.q_proj.weight",
  "k": "self_attn.k_proj.weight",
  "v": "self_attn.v_proj.weight",
  "q_bias": "self_attn.q_proj.bias",
  "k_bias": "self_attn.k_proj.bias",
  "v_bias": "self_attn.v_proj.bias",
  "q_norm": "self_attn.q_norm.weight",
  "k_norm": "self_attn.k_norm.weight",
  "o": "self_attn.o_proj.weight",
  "mlp_norm": "post_attention_layernorm.weight",
  "gate": "mlp.gate_proj.weight",
  "up": "mlp.up_proj.weight",
  "down": "mlp.down_proj.weight",
}
# Where norms stand on both sides of a block, HF's "post_attention" is one of attention.
_LAYER_POST_NORMS = _LAYER | {
  "attn_post_norm": "post_attention_layernorm.weight",
  "mlp_norm": "pre_feedforward_layernorm.weight",
  "mlp_post_norm": "post_feedforward_layernorm.weight",
}


def load_safetensors(
  folder: str | os.PathLike[str], *, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
  """Configuration and parameters of a Hugging Face folder.

  Raises:
    WeightsError: naming the file and the tensor or key that is wrong.
  """
  folder = Path(folder)
  with SafetensorsFolder(folder) as stored:
    cfg = hf_config(folder / "config.json", len(stored.tensors))
    prefix = next(
      (p for p in _TEXT_PREFIXES if f"{p}embed_tokens.weight" in stored.tensors), _TEXT_PREFIXES[0]
    )
    table = param_table(cfg)
    names = {param: hf_name(param, cfg, prefix) for param in table}
    ignored = [t for t in stored.tensors if t.startswith(IGNORED_PREFIXES) or t.endswith(_IGNORED_SUFFIX)]
    if cfg.tied_embeddings:  # some files hold the embedding again
      ignored += _HEADS
    check_names(str(folder), names, stored.tensors, ignored)
    # Every shape and type is checked before the first tensor is read.
    sources = {param: _source(param, spec, stored.tensors[names[param]]) for param, spec in table.items()}
    return cfg, build_params(str(folder), cfg, lambda param, _: sources[param], dtype=dtype, mesh=mesh)


def hf_name(param: str, cfg: ModelConfig, prefix: str = "model.") -> str:
  """The HF name of one of our parameters: "layers.3.q" -> "model.layers.3.self_attn.q_proj.weight"."""
  if param == "embed":
    return f"{prefix}embed_tokens.weight"
  if param == "final_norm":
    return f"{prefix}norm.weight"
  if param == "head":
    return _HEADS[1] if prefix.startswith("language_model.") else _HEADS[0]
  _, layer, name = param.split(".")
  return f"{prefix}layers.{layer}.{(_LAYER_POST_NORMS if cfg.post_norms else _LAYER)[name]}"


def _source(param: str, spec: ParamSpec, tensor: StoredTensor) -> Source:
  shape = file_shape(param, spec.shape)
  if tensor.type not in FLOAT_TYPES:
    raise WeightsError(f"{tensor.where} has the unsupported type {tensor.type}; use {', '.join(FLOAT_TYPES)}")
  if tensor.shape != shape:
    raise WeightsError(f"{tensor.where} has shape {tensor.shape}, expected {shape} for {param}")
  stored = FLOAT_TYPES[tensor.type]
  row = spec.size // spec.shape[0] * stored.itemsize

  def read(start: int, stop: int, out: np.ndarray) -> None:
    if out.dtype == stored:
      read_into(tensor.fd, tensor.offset + start * row, out, tensor.where)
      return
    raw = np.empty((stop - start) * row, np.uint8)
    read_into(tensor.fd, tensor.offset + start * row, raw, tensor.where)
    out[:] = widen(raw, tensor.type).reshape(out.shape)

  return Source(tensor.where, spec.shape, read)
