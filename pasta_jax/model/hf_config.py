"""Hugging Face's config.json to `ModelConfig`, in the spellings of transformers 4 and 5."""

import math
from pathlib import Path
from typing import Any

from pasta_jax.model.config import ModelConfig, RopeScaling
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.safetensors_file import read_json

_FAMILY = {
  "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "gemma3": "gemma3",
  "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
}  # fmt: skip

# What transformers assumes where a file is silent; Gemma 3's published files leave out what equals these.
_COMMON = {
  "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
  "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6,
  "max_position_embeddings": 8192, "query_pre_attn_scalar": 256, "sliding_window": 4096,
  "tie_word_embeddings": True,
}  # fmt: skip
_QWEN = {"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "tie_word_embeddings": False}
_DEFAULTS: dict[str, dict[str, Any]] = {
  "gemma": _COMMON
  | {"hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28, "num_attention_heads": 16}
  | {"num_key_value_heads": 16, "sliding_window": None},
  "gemma2": _COMMON | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
  "gemma3": _COMMON | {"vocab_size": 262_208, "max_position_embeddings": 131_072, "rope_theta": 1e6},
  "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "tie_word_embeddings": False},
  "qwen2": _QWEN,
  "qwen3": _QWEN | {"head_dim": 128},
}


def hf_config(path: Path, num_tensors: int = 1 << 20) -> ModelConfig:
  """The configuration in a config.json.

  Args:
    path: of the file.
    num_tensors: how many the weights have; more layers than that are an error.

  Raises:
    WeightsError: a model type or feature that the model code does not have, a value missing or unfit.
  """
  values = _Values(path, num_tensors)
  family, gemma = values.family, values.family.startswith("gemma")
  for key in ("attention_bias", "mlp_bias"):
    if values.get(key) and not (family == "qwen2" and key == "attention_bias"):
      raise WeightsError(f"{path}: {key} is not supported for {family}")
  if values.get("use_bidirectional_attention"):
    raise WeightsError(f"{path}: use_bidirectional_attention: an encoder; only decoders are supported")
  heads, d = values.integer("num_attention_heads"), values.integer("hidden_size")
  head_dim = values.integer("head_dim", d // heads or 1)
  layers = values.integer("num_hidden_layers")
  window, period = _sliding(values, layers)
  theta, local_theta, scaling = _rope(values)
  try:
    return ModelConfig(
      family=family,
      name=str(values.get("_name_or_path") or path.parent.name),
      vocab_size=values.integer("vocab_size"),
      num_layers=layers,
      d_model=d,
      d_ff=values.integer("intermediate_size"),
      num_heads=heads,
      num_kv_heads=values.integer("num_key_value_heads", heads),
      head_dim=head_dim,
      norm_eps=values.number("rms_norm_eps"),
      norm_offset=1.0 if gemma else 0.0,
      activation=_activation(values),
      tied_embeddings=bool(values.get("tie_word_embeddings")),
      scale_embeddings=gemma,
      qkv_bias=family == "qwen2",
      qk_norm=family in ("gemma3", "qwen3"),
      post_norms=family in ("gemma2", "gemma3"),
      query_scale=_query_scale(values, head_dim),
      attn_softcap=values.optional("attn_logit_softcapping"),
      final_softcap=values.optional("final_logit_softcapping"),
      sliding_window=window,
      sliding_pattern=period,
      rope_theta=theta,
      rope_local_theta=local_theta if window else None,
      rope_scaling=scaling,
      max_len=values.integer("max_position_embeddings"),
    )
  except WeightsError:
    raise
  except ValueError as e:
    raise WeightsError(f"{path}: does not fit: {e}") from None


class _Values:
  """The text model's values in a config.json, over its family's defaults, checked for type and range."""

  def __init__(self, path: Path, num_tensors: int):
    self.path, self._num_tensors = path, num_tensors
    whole = read_json(path)
    kind = whole.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILY:
      raise WeightsError(f"{path}: model_type {kind!r:.40} is not supported; use one of {', '.join(_FAMILY)}")
    self.family = _FAMILY[kind]
    self.values: dict[str, Any] = whole
    if kind == "gemma3":
      text = whole.get("text_config")
      if not isinstance(text, dict):
        raise WeightsError(f"{path}: model_type gemma3 without a text_config")
      self.values = {k: whole[k] for k in ("tie_word_embeddings",) if k in whole} | text

  def get(self, key: str, default: Any = None) -> Any:
    return self.values.get(key, _DEFAULTS[self.family].get(key, default))

  def integer(self, key: str, default: int | None = None) -> int:
    value = self.get(key)
    value = default if value is None else value
    limit = self._num_tensors if key == "num_hidden_layers" else 2**31
    if type(value) is not int or not 1 <= value <= limit:
      raise WeightsError(f"{self.path}: {key} is {value!r:.50}, expected a count that fits the weights")
    return value

  def number(self, key: str, default: float | None = None) -> float:
    return positive(self.path, key, self.get(key, default))

  def optional(self, key: str) -> float | None:
    return None if self.get(key) is None else self.number(key)


def positive(path: Path, key: str, value: Any) -> float:
  """`value` as a float; WeightsError unless it is a finite positive number."""
  if type(value) not in (int, float) or not 0 < value < 1e30:
    raise WeightsError(f"{path}: {key} is {value!r:.50}, expected a positive number")
  return float(value)


def _activation(values: _Values) -> Any:
  kind = values.get("hidden_activation") or values.get("hidden_act")
  if values.family.startswith("gemma"):
    # Gemma 1's first files say "gelu", but the models were trained with its tanh approximation.
    if kind in (None, "gelu", "gelu_pytorch_tanh"):
      return "gelu_tanh"
  elif kind in (None, "silu"):
    return "silu"
  raise WeightsError(f"{values.path}: activation {kind!r:.40} is not supported for {values.family}")


def _query_scale(values: _Values, head_dim: int) -> float:
  if values.family in ("gemma2", "gemma3"):
    return values.number("query_pre_attn_scalar") ** -0.5
  return 1.0 / math.sqrt(head_dim)


def _sliding(values: _Values, layers: int) -> tuple[int | None, int]:
  """The window and how often a layer is global; (None, 1) where all layers are."""
  if values.family in ("gemma", "llama") or values.get("sliding_window") is None:
    return None, 1
  if values.family.startswith("qwen") and not values.get("use_sliding_window"):
    return None, 1
  usual = {"gemma2": 2, "gemma3": 6}.get(values.family, 1)
  kinds = values.get("layer_types")
  if kinds is None:
    if values.family.startswith("qwen"):
      raise WeightsError(f"{values.path}: use_sliding_window without layer_types is not supported")
    period = values.get("sliding_window_pattern", values.get("_sliding_window_pattern", usual))
    if type(period) is not int or period < 1:
      raise WeightsError(f"{values.path}: sliding_window_pattern is {period!r:.40}, expected a count")
    return values.integer("sliding_window"), period
  if not isinstance(kinds, list) or len(kinds) != layers:
    raise WeightsError(f"{values.path}: layer_types does not list {layers} layers")
  if unknown := [k for k in kinds if k not in ("sliding_attention", "full_attention")]:
    raise WeightsError(f"{values.path}: layer_types has {unknown[0]!r:.40}; that is not supported")
  if "sliding_attention" not in kinds:
    return None, 1
  for period in (usual, *range(1, layers + 2)):
    if all((k == "full_attention") == ((i + 1) % period == 0) for i, k in enumerate(kinds)):
      return values.integer("sliding_window"), period
  raise WeightsError(f"{values.path}: layer_types has no period; that is not supported")


def _rope(values: _Values) -> tuple[float, float | None, RopeScaling | None]:
  """Base, base of local layers (None: the same), scaling."""
  rope = values.get("rope_parameters")
  if rope is None:  # transformers 4
    theta = values.number("rope_theta", 10_000.0)
    local = values.number("rope_local_base_freq", 10_000.0) if values.family == "gemma3" else None
    return theta, local, _scaling(values, values.get("rope_scaling"))
  if not isinstance(rope, dict):
    raise WeightsError(f"{values.path}: rope_parameters is {rope!r:.50}, expected an object")
  usual = values.number("rope_theta", 10_000.0)
  if "full_attention" not in rope:  # one set for all layers
    theta = positive(values.path, "rope_theta", rope.get("rope_theta", usual))
    return theta, 10_000.0 if values.family == "gemma3" else None, _scaling(values, rope)
  full, sliding = rope["full_attention"], rope.get("sliding_attention") or {}
  if not isinstance(full, dict) or not isinstance(sliding, dict):
    raise WeightsError(f"{values.path}: rope_parameters is {rope!r:.50}, expected objects")
  if _scaling(values, sliding):
    raise WeightsError(f"{values.path}: rope scaling in sliding layers is not supported")
  theta = positive(values.path, "rope_theta", full.get("rope_theta", usual))
  return (
    theta,
    positive(values.path, "rope_theta", sliding.get("rope_theta", 10_000.0)),
    _scaling(values, full),
  )


def _scaling(values: _Values, rope: Any) -> RopeScaling | None:
  if rope is None:
    return None
  if not isinstance(rope, dict):
    raise WeightsError(f"{values.path}: rope_scaling is {rope!r:.50}, expected an object")
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind == "default":
    return None

  def number(key: str) -> float:
    return positive(values.path, f"rope scaling's {key}", rope.get(key))

  if kind == "linear":
    return RopeScaling("linear", number("factor"))
  if kind == "llama3":
    low, high = number("low_freq_factor"), number("high_freq_factor")
    original = number("original_max_position_embeddings")
    return RopeScaling("llama3", number("factor"), low, high, int(original))
  raise WeightsError(f"{values.path}: rope scaling {kind!r:.30} is not supported; use none, linear or llama3")
