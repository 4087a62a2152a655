"""Model configurations: one frozen dataclass describes every family of decoder-only transformer.

Families differ only in the values of these fields; no other code asks for a family's name except the
loaders, which map a family's tensor names.
"""

import dataclasses
import difflib
import json
import math
from typing import Any, Literal

FAMILIES = ("gemma", "gemma2", "gemma3", "llama", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched beyond the trained context.

  Attributes:
    kind: "linear" divides every frequency by `factor`; "llama3" only the slow ones, with a smooth band.
    factor: the stretch.
    low_freq_factor, high_freq_factor, original_max_len: the band of "llama3" (Llama 3.1 model card).
  """

  kind: Literal["linear", "llama3"]
  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_len: int = 8192

  def __post_init__(self):
    if self.kind not in ("linear", "llama3"):
      raise ValueError(f"rope scaling {self.kind!r} is not supported; use 'linear' or 'llama3'")
    if not self.factor > 0:
      raise ValueError(f"rope scaling factor must be positive, got {self.factor}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Everything that fixes a model's shapes and arithmetic. Axis letters are those of docs/shapes.md.

  Attributes:
    family: one of `FAMILIES`; decides tensor names in files, nothing else.
    vocab_size: V, rows of the embedding.
    num_layers, d_model, d_ff: L, D, F.
    num_heads, num_kv_heads, head_dim: H, K, E; H is a multiple of K, and H * E need not be D.
    norm_eps: added to the mean square in RMSNorm.
    norm_offset: 1.0 where a norm multiplies by (1 + w) (Gemma), else 0.0.
    activation: "silu" (SwiGLU) or "gelu_tanh" (GeGLU).
    tied_embeddings: the output head is the embedding.
    scale_embeddings: embeddings are multiplied by sqrt(D) (Gemma).
    qkv_bias: biases on q, k and v (Qwen2.5).
    qk_norm: RMSNorm over E of each query and key head (Gemma 3, Qwen3).
    post_norms: a norm after attention and after the feed-forward, before the residual sum (Gemma 2, 3).
    query_scale: factor on q . k; 1 / sqrt(E) unless the model says otherwise.
    attn_softcap, final_softcap: x -> cap * tanh(x / cap) on attention scores / output logits.
    sliding_window: a local layer sees keys less than this many positions back; None: no local layers.
    sliding_pattern: layer i is global iff (i + 1) % sliding_pattern == 0; 1 means that all are global.
    rope_theta: base of the rotary frequencies (global layers).
    rope_local_theta: base in local layers; None: the same. Local layers take no rope scaling then.
    rope_scaling: see RopeScaling.
    max_len: positions that the model was trained for.
    name: for people.
  """

  family: str
  vocab_size: int
  num_layers: int
  d_model: int
  d_ff: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  norm_eps: float = 1e-5
  norm_offset: float = 0.0
  activation: Literal["silu", "gelu_tanh"] = "silu"
  tied_embeddings: bool = True
  scale_embeddings: bool = False
  qkv_bias: bool = False
  qk_norm: bool = False
  post_norms: bool = False
  query_scale: float = 0.0  # 0 stands for 1 / sqrt(E)
  attn_softcap: float | None = None
  final_softcap: float | None = None
  sliding_window: int | None = None
  sliding_pattern: int = 1
  rope_theta: float = 10_000.0
  rope_local_theta: float | None = None
  rope_scaling: RopeScaling | None = None
  max_len: int = 8192
  name: str = ""

  def __post_init__(self):
    if self.family not in FAMILIES:
      raise ValueError(f"unknown family {self.family!r}{_nearest(self.family, FAMILIES)}")
    for field in ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
    if self.head_dim % 2:
      raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
    if self.activation not in ("silu", "gelu_tanh"):
      raise ValueError(f"unknown activation {self.activation!r}; use 'silu' or 'gelu_tanh'")
    if not self.query_scale:
      object.__setattr__(self, "query_scale", 1.0 / math.sqrt(self.head_dim))

  def is_local(self, layer: int) -> bool:
    """Whether layer `layer` (from 0) attends through the sliding window."""
    return self.sliding_window is not None and (layer + 1) % self.sliding_pattern != 0

  def rope_of(self, layer: int) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling of one layer."""
    if self.is_local(layer) and self.rope_local_theta is not None:
      return self.rope_local_theta, None
    return self.rope_theta, self.rope_scaling

  def replace(self, **changes: Any) -> "ModelConfig":
    """A copy with `changes`; a misspelt field fails with the nearest right one named."""
    names = [f.name for f in dataclasses.fields(self)]
    for key in changes:
      if key not in names:
        raise ValueError(f"ModelConfig has no field {key!r}{_nearest(key, names)}")
    return dataclasses.replace(self, **changes)

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self), indent=1)

  @classmethod
  def from_json(cls, text: str) -> "ModelConfig":
    """The config that `to_json` wrote.

    Raises:
      ValueError: not JSON, an unknown field, or a value that does not fit.
    """
    try:
      values = json.loads(text)
    except json.JSONDecodeError as e:
      raise ValueError(f"model config is not JSON: {e}") from None
    if not isinstance(values, dict):
      raise ValueError("model config is not a JSON object")
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
      if key not in names:
        raise ValueError(f"model config has an unknown field {key!r}{_nearest(key, names)}")
    if values.get("rope_scaling"):
      values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
    try:
      return cls(**values)
    except TypeError as e:
      raise ValueError(f"model config: {e}") from None


def _nearest(word: str, choices) -> str:
  near = difflib.get_close_matches(word, list(choices), n=1)
  return f"; did you mean {near[0]!r}?" if near else f"; choose one of {', '.join(choices)}"
