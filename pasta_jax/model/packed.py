"""Weights as a CPU decodes fastest: matrices with the same input side by side, float32 ones stored [in, out].

The table of parameters (model/params.py) stores [out, in], as checkpoints do, and training and accelerators
use it as it is. XLA's CPU library for matrix products copies every block of a matrix into panels first, and
in float32 does that twice as fast where outputs lie next to each other (docs/performance.md). So an engine on
CPU packs its weights once:

                      float32       bfloat16
  layers.N.qkv        Dx((H+2K)E)   ((H+2K)E)xD    from q, k and v
  layers.N.o          (HE)xD        Dx(HE)
  layers.N.gate_up    Dx(2F)        (2F)xD         from gate and up
  layers.N.down       FxD           DxF            float32: in the table's form where a step has one row, as
                                                   its longer rows read faster
  head                DxV           VxD            also where it is the embedding, which stays beside it

Everything else keeps its name and shape. bfloat16 is the dtype of the matrices alone: a CPU computes
everything else, and keeps its cache, in float32 (`activation_dtype`), and rounds what a matrix is multiplied
with.

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

from pasta_jax.model.adapted import Widened
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.memory import release_freed
from pasta_jax.model.params import Params, layer_params
from pasta_jax.model.placing import ALIGNMENT, aligned_empty

# Layers after which freed memory is given back: often enough for the peak, seldom enough for the start.
_RELEASE_EVERY = 5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
  """A matrix whose axes are joined into two.

  Attributes:
    w: (product of inputs)x(product of outputs); the other way about where `turned` is False.
    outputs: its output axes.
    turned: whether it is stored the other way about than in the table of parameters.
  """

  w: jax.Array
  outputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  turned: bool = dataclasses.field(default=True, metadata={"static": True})

  @property
  def inputs(self) -> int:
    """The product of its input axes."""
    return self.w.shape[0 if self.turned else 1]


def packs(mesh: Mesh) -> bool:
  """Whether an engine on these devices packs its weights."""
  return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def activation_dtype(dtype: Any, mesh: Mesh) -> Any:
  """The dtype of activations and cache beside weights of a dtype."""
  return jnp.dtype(jnp.float32) if packs(mesh) else jnp.dtype(dtype)


def pack(cfg: ModelConfig, params: Params, take: bool = False, rows: int = 2) -> dict[str, Any]:
  """Packs the parameters of a model, a layer at a time.

  Args:
    params: as in model/params.py.
    take: empty `params` on the way, so that no more than a layer is held twice.
    rows: of a step's matrix products at most: requests times lanes.

  Returns:
    What forward functions accept in the place of `params`.
  """

  halves = params["embed"].dtype == jnp.bfloat16

  def use(name: str) -> Any:
    return params.pop(name) if take else params[name]

  def joined(i: int) -> Any:
    layer = {name: use(f"layers.{i}.{name}") for name in layer_params(params, i)}
    return _pack_layer(layer, not halves, not halves and rows > 1)

  packed: dict[str, Any] = {}
  ahead = joined(0)
  for i in range(cfg.num_layers):
    # JAX joins the next layer while this one is copied.
    layer, ahead = ahead, joined(i + 1) if i + 1 < cfg.num_layers else None
    packed |= {f"layers.{i}.{name}": value for name, value in _settle(layer).items()}
    del layer
    if take and i % _RELEASE_EVERY == 0:
      release_freed()
  packed["final_norm"] = use("final_norm")
  embed = use("embed")
  table = embed if cfg.tied_embeddings else use("head")
  if halves:  # nothing to turn: a table that is both lies there once
    return packed | {"embed": Widened(_bits(embed)), "head": Packed(table, table.shape[:1], False)}
  return packed | {"embed": embed} | _settle({"head": _joined(table, 1, True)})


def _settle(packed: dict[str, Any]) -> dict[str, Any]:
  """The same, with the matrices in one buffer on huge pages where the kernel has them."""
  leaves, tree = jax.tree.flatten(packed)
  if any(isinstance(x, jax.core.Tracer) for x in leaves):  # shapes alone are wanted
    return packed
  step = ALIGNMENT // leaves[0].dtype.itemsize  # all have the dtype in which the weights were loaded
  sizes = [-(-x.size // step) * step for x in leaves]
  buffer = aligned_empty((sum(sizes),), leaves[0].dtype)
  settled, at = [], 0
  for x, size in zip(leaves, sizes):
    view = buffer[at : at + x.size].reshape(x.shape)
    np.copyto(view, np.asarray(x))
    settled.append(jax.device_put(view, x.sharding))
    at += size
  return jax.tree.unflatten(tree, settled)


def _bits(table: jax.Array) -> jax.Array:
  """The bits of a bfloat16 table, in the same memory."""
  if isinstance(table, jax.core.Tracer):
    return jax.lax.bitcast_convert_type(table, jnp.uint16)
  return jax.device_put(np.asarray(table).view(np.uint16), table.sharding)


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
    if isinstance(value, Widened):
      params[name] = jax.lax.bitcast_convert_type(value.bits, jnp.bfloat16)
      continue
    if not isinstance(value, Packed):
      params[name] = value
      continue
    w = value.w.T if value.turned else value.w
    if short == "qkv":
      heads = {"q": cfg.num_heads, "k": cfg.num_kv_heads, "v": cfg.num_kv_heads}
      at = 0
      for part, n in heads.items():
        params[f"{stem}.{part}"] = w[at : at + n * e].reshape(n, e, d)
        at += n * e
    elif short == "gate_up":
      params[f"{stem}.gate"], params[f"{stem}.up"] = w[:f], w[f:]
    elif short == "o":
      params[name] = w.reshape(d, cfg.num_heads, e)
    elif short == "down" or not cfg.tied_embeddings:
      params[name] = w
  return params


@partial(jax.jit, static_argnums=(1, 2))
def _joined(w: jax.Array, outputs: int, turn: bool) -> Packed:
  """A matrix with `outputs` leading output axes."""
  shape = w.shape[:outputs]
  w = w.reshape(math.prod(shape), -1)
  return Packed(w.T if turn else w, shape, turn)


@partial(jax.jit, static_argnums=(1, 2))
def _pack_layer(p: dict[str, jax.Array], turn: bool, turn_down: bool) -> dict[str, Any]:
  q, k, v, gate, up = (p.pop(name) for name in ("q", "k", "v", "gate", "up"))
  return {
    **p,
    "qkv": _joined(jnp.concatenate([q, k, v]), 2, turn),
    "gate_up": _joined(jnp.stack([gate, up]), 2, turn),
    "o": _joined(p["o"], 1, turn),
    "down": _joined(p["down"], 1, turn_down) if turn_down or not turn else p["down"],
  }
