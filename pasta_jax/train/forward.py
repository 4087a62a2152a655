"""The forward pass of training: the layers' parameters stacked, one layer compiled once and scanned.

  decoding   layers.0.q  HxExD    layers.1.q  HxExD  ...     unrolled: a step reads each matrix where it lies
  training   layers.q    LxHxExD                             scanned: compiling takes a layer's time, not L

A slice of the stack is copied for each layer; beside hundreds of tokens' matrix products that is nothing. The
layer itself is the one of model/transformer.py.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pasta_jax.model.adapted import Adapted
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.layers import rms_norm, rope_angles, rope_frequencies
from pasta_jax.model.params import ParamSpec
from pasta_jax.model.transformer import embed, run_layer

_IN_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_PREFIX = "layers."

# (whether the layer is local, q_BxTxHxE, k_BxTxKxE, v_BxTxKxE) -> BxTxHxE
Attention = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def _layer_number(name: str) -> int:
  match = _IN_LAYER.fullmatch(name)
  return int(match[1]) if match else 0


def stacked_names(names: Mapping[str, Any]) -> dict[str, list[str]]:
  """From each name of the stacked form to the names that it holds, by layer."""
  out: dict[str, list[str]] = {}
  for name in names:
    match = _IN_LAYER.fullmatch(name)
    out.setdefault(_PREFIX + match[2] if match else name, []).append(name)
  for parts in out.values():
    parts.sort(key=_layer_number)
  return out


def stack_table(table: Mapping[str, ParamSpec]) -> dict[str, ParamSpec]:
  """The table of parameters (or of an adapter) in stacked form."""
  out = {}
  for name, parts in stacked_names(table).items():
    spec = table[parts[0]]
    if name.startswith(_PREFIX):
      spec = dataclasses.replace(spec, shape=(len(parts), *spec.shape), axes=(None, *spec.axes))
    out[name] = spec
  return out


def stacked(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Parameters (or an adapter's arrays) in stacked form."""
  return {
    name: jnp.stack([params[n] for n in parts]) if name.startswith(_PREFIX) else params[name]
    for name, parts in stacked_names(params).items()
  }


def stack(params: Mapping[str, jax.Array], shardings: Mapping[str, Any]) -> dict[str, jax.Array]:
  """`stacked`, one stack at a time, so that only one is there twice.

  Args:
    params: flat; entries are taken out as they are stacked, if it is a dict.
    shardings: of the stacked form.
  """
  out = {}
  for name, parts in stacked_names(params).items():
    if name.startswith(_PREFIX):
      join = jax.jit(lambda *x: jnp.stack(x), out_shardings=shardings[name])
      out[name] = jax.block_until_ready(join(*(params[n] for n in parts)))
    else:
      out[name] = jax.device_put(params[name], shardings[name])
    if isinstance(params, dict):
      for part in parts:
        del params[part]
  return out


def unstack(params: Mapping[str, Any]) -> dict[str, Any]:
  """Flat parameters from stacked ones, of NumPy or JAX arrays."""
  out: dict[str, Any] = {}
  for name, value in params.items():
    if name.startswith(_PREFIX):
      short = name.removeprefix(_PREFIX)
      out |= {f"{_PREFIX}{layer}.{short}": value[layer] for layer in range(value.shape[0])}
    else:
      out[name] = value
  return out


def _joined(p: dict[str, Any]) -> dict[str, Any]:
  """A layer's parameters with q, k and v as one, (H+2K)xExD, where they are plain arrays."""
  parts = [p[name] for name in ("q", "k", "v")]
  if any(isinstance(part, Adapted) for part in parts):
    return p
  rest = {name: value for name, value in p.items() if name not in ("q", "k", "v")}
  return rest | {"qkv": jnp.concatenate(parts)}


def hidden_states(
  cfg: ModelConfig,
  params: Mapping[str, Any],
  ids: jax.Array,
  positions: jax.Array,
  attention: Attention,
  wrap: Callable[[Callable], Callable],
  dtype: Any = None,
  join: bool = False,
) -> jax.Array:
  """What `transformer.hidden_states` computes, from stacked parameters: BxTxD.

  Args:
    ids, positions: BxT int32.
    wrap: applied to a layer as a function of (x, its parameters and flags): rematerialisation, shardings.
    dtype: of activations; None: that of the embedding.
    join: multiply with a layer's plain q, k and v at once. A CPU is slow with narrow matrices, so that the
      copy which joins them pays (docs/performance.md).
  """
  with jax.named_scope("embed"):
    x = embed(cfg, dict(params), ids)
    x = x if dtype is None else x.astype(dtype)
  kinds = list(dict.fromkeys(cfg.rope_of(layer) for layer in range(cfg.num_layers)))
  ropes = [rope_angles(positions, rope_frequencies(cfg.head_dim, *kind)) for kind in kinds]
  which = np.array([kinds.index(cfg.rope_of(layer)) for layer in range(cfg.num_layers)])
  local = np.array([cfg.is_local(layer) for layer in range(cfg.num_layers)])
  layers = {n.removeprefix(_PREFIX): v for n, v in params.items() if n.startswith(_PREFIX)}

  def layer(x: jax.Array, xs: Any) -> jax.Array:
    p, kind, is_local = xs
    p = _joined(p) if join else p
    rope = ropes[0] if len(kinds) == 1 else jax.tree.map(lambda *r: jnp.stack(r)[kind], *ropes)
    own = is_local if local.any() else False
    return run_layer(cfg, p, x, rope, lambda q, k, v: attention(own, q, k, v))

  run = wrap(layer)
  with jax.named_scope("layers"):
    x, _ = jax.lax.scan(lambda x, xs: (run(x, xs), None), x, (layers, which, local))
  return rms_norm(x, params["final_norm"], cfg.norm_eps, cfg.norm_offset)
