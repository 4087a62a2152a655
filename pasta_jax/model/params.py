"""The table of parameters: every array's shape, logical axes and initialiser, from a config alone.

Parameters are one flat dict from name to array, in the axis letters of docs/shapes.md. Matrices are stored
[out, in], as checkpoints have them: a step of width 1 then reads each row contiguously.

  embed                       VxD
  head                        VxD       only if not tied
  final_norm                  D
  layers.N.attn_norm          D
  layers.N.q                  HxExD     q_bias HxE     q_norm E
  layers.N.k, layers.N.v      KxExD     k_bias, v_bias KxE     k_norm E
  layers.N.o                  DxHxE
  layers.N.attn_post_norm     D         only with post_norms
  layers.N.mlp_norm           D
  layers.N.gate, layers.N.up  FxD
  layers.N.down               DxF
  layers.N.mlp_post_norm      D         only with post_norms
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pasta_jax.model.config import ModelConfig

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """One parameter.

  Attributes:
    shape: sizes.
    axes: a logical axis name per dimension (see model/sharding.py), None where nothing shards it.
    init: "normal" (standard deviation 1/sqrt(fan_in)), "embed", "ones" or "zeros".
    fan_in: inputs per output, for "normal".
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: str
  fan_in: int = 1

  @property
  def size(self) -> int:
    return math.prod(self.shape)


def param_table(cfg: ModelConfig) -> dict[str, ParamSpec]:
  """Every parameter of a model, in the order in which a forward pass uses them."""
  d, f, h, k, e, v = cfg.d_model, cfg.d_ff, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.vocab_size
  # A norm that multiplies by (1 + w) starts at w = 0.
  unit = "zeros" if cfg.norm_offset else "ones"

  def norm(n: int, axis: str | None = "embed") -> ParamSpec:
    return ParamSpec((n,), (axis,), unit)

  layer = {
    "attn_norm": norm(d),
    "q": ParamSpec((h, e, d), ("heads", "head", "embed"), "normal", d),
    "k": ParamSpec((k, e, d), ("kv_heads", "head", "embed"), "normal", d),
    "v": ParamSpec((k, e, d), ("kv_heads", "head", "embed"), "normal", d),
  }
  if cfg.qkv_bias:
    layer["q_bias"] = ParamSpec((h, e), ("heads", "head"), "zeros")
    layer["k_bias"] = ParamSpec((k, e), ("kv_heads", "head"), "zeros")
    layer["v_bias"] = ParamSpec((k, e), ("kv_heads", "head"), "zeros")
  if cfg.qk_norm:
    layer["q_norm"] = norm(e, "head")
    layer["k_norm"] = norm(e, "head")
  layer["o"] = ParamSpec((d, h, e), ("embed", "heads", "head"), "normal", h * e)
  if cfg.post_norms:
    layer["attn_post_norm"] = norm(d)
  layer["mlp_norm"] = norm(d)
  layer["gate"] = ParamSpec((f, d), ("ff", "embed"), "normal", d)
  layer["up"] = ParamSpec((f, d), ("ff", "embed"), "normal", d)
  layer["down"] = ParamSpec((d, f), ("embed", "ff"), "normal", f)
  if cfg.post_norms:
    layer["mlp_post_norm"] = norm(d)

  table = {"embed": ParamSpec((v, d), ("vocab", "embed"), "embed", d)}
  for i in range(cfg.num_layers):
    table |= {f"layers.{i}.{name}": spec for name, spec in layer.items()}
  table["final_norm"] = norm(d)
  if not cfg.tied_embeddings:
    table["head"] = ParamSpec((v, d), ("vocab", "embed"), "normal", d)
  return table


def layer_params(params: Mapping[str, Any], layer: int) -> dict[str, Any]:
  """The parameters of one layer, by their short names."""
  prefix = f"layers.{layer}."
  return {name[len(prefix) :]: value for name, value in params.items() if name.startswith(prefix)}


def num_params(cfg: ModelConfig) -> int:
  return sum(spec.size for spec in param_table(cfg).values())


def param_bytes(cfg: ModelConfig, dtype: Any) -> int:
  return num_params(cfg) * jnp.dtype(dtype).itemsize


def abstract_params(
  cfg: ModelConfig, dtype: Any, shardings: Mapping[str, Any] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes without values, for ahead-of-time compilation and for restoring checkpoints."""
  return {
    name: jax.ShapeDtypeStruct(spec.shape, dtype, sharding=shardings[name] if shardings else None)
    for name, spec in param_table(cfg).items()
  }


def init_param(spec: ParamSpec, key: jax.Array, dtype: Any) -> jax.Array:
  """One parameter's initial value."""
  if spec.init == "zeros":
    return jnp.zeros(spec.shape, dtype)
  if spec.init == "ones":
    return jnp.ones(spec.shape, dtype)
  scale = 0.02 if spec.init == "embed" else 1.0 / math.sqrt(spec.fan_in)
  return (scale * jax.random.truncated_normal(key, -3.0, 3.0, spec.shape, jnp.float32)).astype(dtype)


def init_params(cfg: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
  """Random parameters. A parameter's values depend on `key` and its own name only."""
  table = param_table(cfg)
  return {name: init_param(spec, param_key(key, name), dtype) for name, spec in table.items()}


def param_key(key: jax.Array, name: str) -> jax.Array:
  """The key of one parameter: folding in the name keeps values when layers are added."""
  digest = np.frombuffer(name.encode(), np.uint8).astype(np.uint64)
  weights = np.power(np.uint64(1099511628211), np.arange(1, digest.size + 1, dtype=np.uint64))
  return jax.random.fold_in(key, int((digest * weights).sum() & np.uint64(0x7FFFFFFF)))


def check_params(cfg: ModelConfig, params: Mapping[str, Any]) -> None:
  """Raises ValueError, naming the parameter, where `params` does not fit `cfg`."""
  table = param_table(cfg)
  if missing := [n for n in table if n not in params]:
    raise ValueError(f"parameter {missing[0]!r} is missing ({len(missing)} missing in all)")
  if unknown := [n for n in params if n not in table]:
    raise ValueError(f"parameter {unknown[0]!r} is not one of this model's ({len(unknown)} unknown in all)")
  for name, spec in table.items():
    if tuple(params[name].shape) != spec.shape:
      raise ValueError(f"parameter {name!r} has shape {tuple(params[name].shape)}, expected {spec.shape}")
