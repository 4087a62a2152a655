"""Weights as a CPU decodes fastest: matrices stored [in, out], those with the same input side by side.

The table of parameters (model/params.py) stores [out, in], as checkpoints do, and training and accelerators
use it as it is. XLA's CPU library for matrix products copies every block of a matrix into panels first, and
does that twice as fast where outputs lie next to each other (docs/performance.md). So an engine on CPU packs
its weights once:

  layers.N.qkv        Dx((H+2K)E)   from q, k and v
  layers.N.o          (HE)xD
  layers.N.gate_up    Dx(2F)        from gate and up
  layers.N.down       FxD           in the table's form where a step has one row: its longer rows read faster
  head                DxV           also where it is the embedding, which stays beside it

Everything else keeps its name and shape.

The packed matrices of a layer lie in one buffer of NumPy's, which asks the kernel for huge pages for large
ones; XLA's own allocations get small pages, and a step that reads every weight once runs into their borders.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.memory import release_freed
from pasta_jax.model.params import Params, layer_params
from pasta_jax.model.placing import ALIGNMENT, aligned_empty

# Layers after which freed memory is given back: often enough for the peak, seldom enough for the start.
_RELEASE_EVERY = 5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
  """A matrix stored [in, out].

  Attributes:
    w: (product of inputs)x(product of outputs).
    outputs: its output axes.
  """

  w: jax.Array
  outputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def packs(mesh: Mesh) -> bool:
  """Whether an engine on these devices packs its weights."""
  return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def pack(cfg: ModelConfig, params: Params, take: bool = False, rows: int = 2) -> dict[str, Any]:
  """Packs the parameters of a model, a layer at a time.

  Args:
    params: as in model/params.py.
    take: empty `params` on the way, so that no more than a layer is held twice.
    rows: of a step's matrix products at most: requests times lanes.

  Returns:
    What forward functions accept in the place of `params`.
  """

  def use(name: str) -> Any:
    return params.pop(name) if take else params[name]

  def turned(i: int) -> Any:
    names = list(layer_params(params, i))
    return _pack_layer({name: use(f"layers.{i}.{name}") for name in names}, rows > 1)

  packed: dict[str, Any] = {}
  ahead = turned(0)
  for i in range(cfg.num_layers):
    # JAX turns the next layer while this one is copied.
    layer, ahead = ahead, turned(i + 1) if i + 1 < cfg.num_layers else None
    packed |= {f"layers.{i}.{name}": value for name, value in _settle(layer).items()}
    del layer
    if take and i % _RELEASE_EVERY == 0:
      release_freed()
  packed["final_norm"] = use("final_norm")
  packed["embed"] = use("embed")
  table = packed["embed"] if cfg.tied_embeddings else use("head")
  return packed | _settle({"head": _turned(table, 1)})


def _settle(packed: dict[str, Any]) -> dict[str, Any]:
  """The same, with the matrices in one buffer on huge pages where the kernel has them."""
  leaves, tree = jax.tree.flatten(packed)
  if any(isinstance(x, jax.core.Tracer) for x in leaves):  # shapes alone are wanted
    return packed
  step = ALIGNMENT // leaves[0].dtype.itemsize
  sizes = [-(-x.size // step) * step for x in leaves]
  buffer = aligned_empty((sum(sizes),), leaves[0].dtype)
  settled, at = [], 0
  for x, size in zip(leaves, sizes):
    view = buffer[at : at + x.size].reshape(x.shape)
    np.copyto(view, np.asarray(x))
    settled.append(jax.device_put(view, x.sharding))
    at += size
  return jax.tree.unflatten(tree, settled)


def abstract_packed(
  cfg: ModelConfig, params: Mapping[str, jax.ShapeDtypeStruct], sharding: Sharding, rows: int
) -> dict[str, Any]:
  """Shapes of the packed parameters, for ahead-of-time compilation; each lies in `sharding`."""
  shapes = jax.eval_shape(lambda p: pack(cfg, p, rows=rows), dict(params))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def unpack(cfg: ModelConfig, packed: Mapping[str, Any]) -> Params:
  """The parameters that were packed."""
  params: Params = {}
  d, f, e = cfg.d_model, cfg.d_ff, cfg.head_dim
  for name, value in packed.items():
    stem, _, short = name.rpartition(".")
    if not isinstance(value, Packed):
      params[name] = value
    elif short == "qkv":
      heads = {"q": cfg.num_heads, "k": cfg.num_kv_heads, "v": cfg.num_kv_heads}
      at = 0
      for part, n in heads.items():
        params[f"{stem}.{part}"] = value.w[:, at : at + n * e].T.reshape(n, e, d)
        at += n * e
    elif short == "gate_up":
      params[f"{stem}.gate"], params[f"{stem}.up"] = value.w[:, :f].T, value.w[:, f:].T
    elif short == "o":
      params[name] = value.w.T.reshape(d, cfg.num_heads, e)
    elif short == "down" or not cfg.tied_embeddings:
      params[name] = value.w.T
  return params


@partial(jax.jit, static_argnums=1)
def _turned(w: jax.Array, outputs: int) -> Packed:
  """A matrix with `outputs` leading output axes."""
  shape = w.shape[:outputs]
  return Packed(w.reshape(math.prod(shape), -1).T, shape)


@partial(jax.jit, static_argnums=1)
def _pack_layer(p: dict[str, jax.Array], turn_down: bool) -> dict[str, Any]:
  q, k, v, gate, up = (p.pop(name) for name in ("q", "k", "v", "gate", "up"))
  return {
    **p,
    "qkv": _turned(jnp.concatenate([q, k, v]), 2),
    "gate_up": _turned(jnp.stack([gate, up]), 2),
    "o": _turned(p["o"], 1),
    "down": _turned(p["down"], 1) if turn_down else p["down"],
  }
