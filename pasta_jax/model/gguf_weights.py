"""GGUF files: configuration from their metadata, and their tensors dequantised into parameters.

What llama.cpp's converter did to the weights is undone here:
  * architecture llama only: the rows of q and k of each head are interleaved, (0, E/2, 1, E/2 + 1, ...), for
    a rotary embedding of neighbouring pairs; ours turns the halves of a head, as HF does;
  * gemma, gemma2, gemma3: norms are stored as 1 + w, ours hold w (ModelConfig.norm_offset);
  * llama3 rope scaling is stored as a tensor of divisors, rope_freqs.weight.
Sources: convert_hf_to_gguf.py and the architectures' hyper-parameters in llama.cpp (MIT).
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pasta_jax.model.config import FAMILIES, ModelConfig, RopeScaling
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.gguf_file import GgufFile, TensorInfo, import_gguf
from pasta_jax.model.params import Params, param_table
from pasta_jax.model.placing import FLOAT_TYPES, Source, build_params, check_names, file_shape, widen

TYPES = (*FLOAT_TYPES, "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")

_GLOBAL = {"embed": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}
_LAYER = {
  "attn_norm": "attn_norm.weight",
  "q": "attn_q.weight",
  "k": "attn_k.weight",
  "v": "attn_v.weight",
  "q_bias": "attn_q.bias",
  "k_bias": "attn_k.bias",
  "v_bias": "attn_v.bias",
  "q_norm": "attn_q_norm.weight",
  "k_norm": "attn_k_norm.weight",
  "o": "attn_output.weight",
  "attn_post_norm": "post_attention_norm.weight",
  "mlp_norm": "ffn_norm.weight",
  "gate": "ffn_gate.weight",
  "up": "ffn_up.weight",
  "down": "ffn_down.weight",
  "mlp_post_norm": "post_ffw_norm.weight",
}
_ROPE_FREQS = "rope_freqs.weight"


def load_gguf(
  file: GgufFile, *, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
  """Configuration and parameters of an open GGUF file, dequantised row block by row block.

  Raises:
    WeightsError: naming the tensor or metadata key that is wrong.
  """
  cfg = gguf_config(file)
  table = param_table(cfg)
  names = {param: gguf_name(param) for param in table}
  check_names(str(file.path), names, file.tensors, ignored=[_ROPE_FREQS])
  # Every shape and type is checked before the first tensor is read.
  sources = {p: _source(file, cfg, p, spec.shape, file.tensors[names[p]]) for p, spec in table.items()}
  return cfg, build_params(str(file.path), cfg, lambda p, _: sources[p], dtype=dtype, mesh=mesh)


def gguf_name(param: str) -> str:
  """The GGUF name of one of our parameters: "layers.3.q" -> "blk.3.attn_q.weight"."""
  if param in _GLOBAL:
    return _GLOBAL[param]
  _, layer, name = param.split(".")
  return f"blk.{layer}.{_LAYER[name]}"


def gguf_config(file: GgufFile) -> ModelConfig:
  """The configuration that a file's metadata and tensors describe.

  Raises:
    WeightsError: an architecture or a feature that the model code does not have, a key missing or unfit.
  """
  meta = _Metadata(file)
  arch = file.metadata.get("general.architecture")
  if arch not in FAMILIES:
    raise WeightsError(
      f"{file.path}: architecture {arch!r} is not supported; use one of {', '.join(FAMILIES)}"
    )
  if meta.get("expert_count", 0):
    raise WeightsError(f"{file.path}: a mixture of experts is not supported; use a dense model")
  gemma = arch.startswith("gemma")
  layers, d, heads = (
    meta.integer("block_count"),
    meta.integer("embedding_length"),
    meta.integer("attention.head_count"),
  )
  if layers > len(file.tensors):
    raise WeightsError(f"{file.path}: {layers} layers in {len(file.tensors)} tensors; the file is damaged")
  head_dim = meta.integer("attention.key_length", d // heads or 1)
  for key in ("attention.value_length", "rope.dimension_count"):
    if meta.integer(key, head_dim) != head_dim:
      raise WeightsError(
        f"{file.path}: {arch}.{key} differs from the head size {head_dim}; that is not supported"
      )
  theta = meta.number("rope.freq_base", 10_000.0)
  values: dict[str, Any] = {
    "family": arch,
    "name": str(file.metadata.get("general.name", file.path.stem)),
    "vocab_size": _vocab_size(file),
    "num_layers": layers,
    "d_model": d,
    "d_ff": meta.integer("feed_forward_length"),
    "num_heads": heads,
    "num_kv_heads": meta.integer("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
    "norm_offset": 1.0 if gemma else 0.0,
    "activation": "gelu_tanh" if gemma else "silu",
    "tied_embeddings": _GLOBAL["head"] not in file.tensors,
    "scale_embeddings": gemma,
    "qkv_bias": "blk.0.attn_q.bias" in file.tensors,
    "qk_norm": arch in ("gemma3", "qwen3"),
    "post_norms": arch in ("gemma2", "gemma3"),
    "query_scale": meta.number("attention.scale", _query_scale(arch, layers, d, heads, head_dim)),
    "rope_theta": theta,
    "rope_scaling": _rope_scaling(file, meta, theta, head_dim),
    "max_len": meta.integer("context_length"),
  }
  if arch == "gemma2":
    values["attn_softcap"] = meta.number("attn_logit_softcapping", 50.0)
    values["final_softcap"] = meta.number("final_logit_softcapping", 30.0)
    values["sliding_window"] = meta.integer("attention.sliding_window", 4096)
    values["sliding_pattern"] = _pattern(file, meta, 2, layers)
  elif arch == "gemma3":
    if meta.get("final_logit_softcapping"):
      values["final_softcap"] = meta.number("final_logit_softcapping")
    if meta.get("attention.sliding_window"):
      values["sliding_window"] = meta.integer("attention.sliding_window")
      values["sliding_pattern"] = _pattern(file, meta, 6, layers)
      values["rope_local_theta"] = meta.number("rope.freq_base_swa", 10_000.0)
  elif meta.get("attention.sliding_window"):
    raise WeightsError(f"{file.path}: {arch}.attention.sliding_window is not supported for {arch}")
  try:
    return ModelConfig(**values)
  except ValueError as e:
    raise WeightsError(f"{file.path}: metadata does not fit: {e}") from None


class _Metadata:
  """Values of an architecture's keys, checked for type and range."""

  def __init__(self, file: GgufFile):
    self._file, self._arch = file, file.metadata.get("general.architecture")

  def get(self, key: str, default: Any = None) -> Any:
    return self._file.metadata.get(f"{self._arch}.{key}", default)

  def integer(self, key: str, default: int | None = None) -> int:
    value = self._present(key, default)
    if isinstance(value, list) and value and all(v == value[0] for v in value):
      value = value[0]  # one value per layer, all the same
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
      raise WeightsError(
        f"{self._file.path}: metadata key '{self._arch}.{key}' is {value!r:.50}, expected one count"
      )
    return value

  def number(self, key: str, default: float | None = None) -> float:
    value = self._present(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
      raise WeightsError(
        f"{self._file.path}: metadata key '{self._arch}.{key}' is {value!r:.50}, expected a positive number"
      )
    # The file holds float32: 1e-05 comes as 9.999999747378752e-06; the shortest spelling is what was meant.
    return float(str(np.float32(value))) if default is None or value != default else float(default)

  def _present(self, key: str, default: Any) -> Any:
    value = self.get(key, default)
    if value is None:
      raise WeightsError(f"{self._file.path}: metadata key '{self._arch}.{key}' is missing")
    return value


def _vocab_size(file: GgufFile) -> int:
  embedding = file.tensors.get(_GLOBAL["embed"])
  if embedding is None:
    raise WeightsError(f"{file.path}: tensor {_GLOBAL['embed']!r} is missing")
  # Rows may be padded beyond the tokenizer's pieces, so that the tensor decides.
  return embedding.shape[0]


def _query_scale(arch: str, layers: int, d: int, heads: int, head_dim: int) -> float:
  # The two 27B models scale by D / H instead of E, and no metadata key says so: llama.cpp too goes by depth.
  if (arch, layers) in (("gemma2", 46), ("gemma3", 62)):
    return (d // heads) ** -0.5
  return 1.0 / math.sqrt(head_dim)


def _pattern(file: GgufFile, meta: _Metadata, default: int, layers: int) -> int:
  value = meta.get("attention.sliding_window_pattern", default)
  if isinstance(value, list):  # whether each layer is local
    for period in (default, *range(1, layers + 1)):
      if all(bool(local) == ((i + 1) % period != 0) for i, local in enumerate(value)):
        return period
    raise WeightsError(f"{file.path}: the sliding window's pattern over the layers has no period")
  return meta.integer("attention.sliding_window_pattern", default)


def _rope_scaling(file: GgufFile, meta: _Metadata, theta: float, head_dim: int) -> RopeScaling | None:
  kind = meta.get("rope.scaling.type", "none")
  if _ROPE_FREQS in file.tensors:
    original = meta.integer("rope.scaling.original_context_length", 8192)
    return _scaling_of_divisors(file, theta, head_dim, original)
  if kind == "linear":
    factor = meta.number("rope.scaling.factor", 1.0)
    return RopeScaling("linear", factor) if factor != 1.0 else None
  if kind == "none":
    # The key of files older than rope.scaling.type.
    old = meta.number("rope.scale_linear", 1.0)
    return RopeScaling("linear", old) if old != 1.0 else None
  raise WeightsError(
    f"{file.path}: rope scaling {kind!r:.30} is not supported; use a model with none, linear or llama3"
  )


def _scaling_of_divisors(file: GgufFile, theta: float, head_dim: int, original: int) -> RopeScaling | None:
  tensor = file.tensors[_ROPE_FREQS]
  if tensor.shape != (head_dim // 2,):
    raise WeightsError(
      f"{file.path}: tensor {_ROPE_FREQS!r} has shape {tensor.shape}, expected ({head_dim // 2},)"
    )
  _check_type(file, tensor)
  divisors = _dequantise(file, tensor, 0, tensor.shape[0])
  factor = float(divisors.max(initial=1.0))
  if np.all(divisors == 1.0):
    return None
  if 1.0 < factor < 1e6:
    scaling = RopeScaling("llama3", float(str(np.float32(factor))), original_max_len=original)
    if np.allclose(divisors, llama3_divisors(scaling, theta, head_dim), rtol=1e-3):
      return scaling
  raise WeightsError(
    f"{file.path}: tensor {_ROPE_FREQS!r} is not a llama3 scaling of an original length of {original}; "
    "no other is supported"
  )


def llama3_divisors(scaling: RopeScaling, theta: float, head_dim: int) -> np.ndarray:
  """What each rotary frequency is divided by, [E/2] (Llama 3.1): 1 when fast, `factor` when slow."""
  wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  smooth = np.clip((scaling.original_max_len / wavelength - low) / (high - low), 0.0, 1.0)
  return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)


def _check_type(file: GgufFile, tensor: TensorInfo) -> None:
  if tensor.type not in TYPES:
    raise WeightsError(
      f"{file.path}: tensor {tensor.name!r} has the unsupported type {tensor.type}; "
      f"use a file in {', '.join(TYPES)}"
    )


def _dequantise(file: GgufFile, tensor: TensorInfo, start: int, stop: int) -> np.ndarray:
  """Elements `start` to `stop` of a tensor, float32; both on borders of blocks."""
  elements, nbytes = tensor.block
  raw = file.read(tensor, start // elements * nbytes, (stop - start) // elements * nbytes)
  if tensor.type in FLOAT_TYPES:
    return widen(raw, tensor.type)
  gguf = import_gguf()
  return gguf.quants.dequantize(raw.reshape(1, -1), gguf.GGMLQuantizationType[tensor.type]).reshape(-1)


def _source(
  file: GgufFile, cfg: ModelConfig, param: str, shape: tuple[int, ...], tensor: TensorInfo
) -> Source:
  where = f"{file.path}: tensor {tensor.name!r}"
  _check_type(file, tensor)
  name = param.rsplit(".", 1)[-1]
  flat = file_shape(param, shape)
  if tensor.shape != flat:
    raise WeightsError(f"{where} has shape {tensor.shape}, expected {flat} for {param}")
  row = math.prod(shape[1:])
  interleaved = cfg.family == "llama" and name in ("q", "k", "q_bias", "k_bias")
  shifted = cfg.norm_offset if name.endswith("norm") else 0.0

  def read(start: int, stop: int, out: np.ndarray) -> None:
    if row % tensor.block[0]:  # a quantised vector: its blocks do not end with our rows
      values = _dequantise(file, tensor, 0, shape[0] * row)[start * row : stop * row]
    else:
      values = _dequantise(file, tensor, start * row, stop * row)
    if shifted:
      values = values - shifted
    if interleaved:
      heads, size = out.shape[0], shape[1]
      pairs = values.reshape(heads, size // 2, 2, -1)
      out.reshape(heads, 2, size // 2, -1)[:] = pairs.swapaxes(1, 2)
    else:
      out[:] = values.reshape(out.shape)

  return Source(where, shape, read)
