"""Which mesh axis shards which logical axis of parameters, caches and activations.

The one table is `RULES`. `tensor` splits what a matrix product can split without exchanging weights: heads,
feed-forward, vocabulary. `fsdp` splits the model axis of every matrix, so that each chip stores a part and
gathers the rest when it is needed; a batch is split over `data` and `fsdp`, since both hold different rows.
An axis whose size the mesh axis does not divide stays whole (one key/value head on four chips, say).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pasta_jax.model.config import ModelConfig, _nearest
from pasta_jax.model.params import param_table

MESH_AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, str | tuple[str, ...]] = {
  "vocab": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "ff": "tensor",
  "embed": "fsdp",
  "batch": ("data", "fsdp"),
}


def parse_mesh(text: str) -> dict[str, int]:
  """`"data:1,tensor:4"` -> {"data": 1, "fsdp": 1, "tensor": 4}; `""` -> all ones. -1 takes what is left.

  Raises:
    ValueError: an unknown axis, one named twice, or a size that is no integer.
  """
  sizes = dict.fromkeys(MESH_AXES, 1)
  seen = set()
  for part in filter(None, (p.strip() for p in text.split(","))):
    axis, colon, size = part.partition(":")
    if axis not in MESH_AXES:
      raise ValueError(f"mesh axis {axis!r} in {text!r} is unknown{_nearest(axis, MESH_AXES)}")
    if axis in seen:
      raise ValueError(f"mesh axis {axis!r} stands twice in {text!r}")
    seen.add(axis)
    try:
      sizes[axis] = int(size)
    except ValueError:
      raise ValueError(f"mesh {text!r}: {part!r} is not axis:size, e.g. data:1,tensor:4") from None
    if not colon or (sizes[axis] < 1 and sizes[axis] != -1):
      raise ValueError(f"mesh {text!r}: size of {axis!r} must be positive, or -1 for what is left")
  return sizes


def make_mesh(sizes: Mapping[str, int] | str = "", devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh with the axes `data`, `fsdp` and `tensor`.

  Args:
    sizes: from axis to size, or text for `parse_mesh`; one size may be -1.
    devices: defaults to `jax.devices()`; the mesh takes the first ones it needs.

  Raises:
    ValueError: the sizes do not fit the number of devices.
  """
  shape = parse_mesh(sizes) if isinstance(sizes, str) else dict.fromkeys(MESH_AXES, 1) | dict(sizes)
  devices = list(jax.devices() if devices is None else devices)
  free = [a for a in MESH_AXES if shape[a] == -1]
  if len(free) > 1:
    raise ValueError(f"only one mesh axis may be -1, got {' and '.join(free)}")
  fixed = math.prod(s for s in shape.values() if s != -1)
  if free:
    shape[free[0]] = max(len(devices) // fixed, 1)
  need = math.prod(shape.values())
  if need > len(devices):
    asked = ",".join(f"{a}:{shape[a]}" for a in MESH_AXES)
    raise ValueError(f"mesh {asked} needs {need} devices, but {len(devices)} are there")
  grid = np.asarray(devices[:need], dtype=object).reshape([shape[a] for a in MESH_AXES])
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> P:
  """Mesh axes for one array from its logical axes; sizes that do not divide stay whole."""
  parts: list[str | tuple[str, ...] | None] = []
  for axis, size in zip(axes, shape, strict=True):
    rule = RULES.get(axis) if axis else None
    names = (rule,) if isinstance(rule, str) else rule or ()
    names = tuple(n for n in names if mesh.shape[n] > 1)
    while names and size % math.prod(mesh.shape[n] for n in names):
      names = names[:-1]
    parts.append(None if not names else names[0] if len(names) == 1 else names)
  return P(*parts)


def named_sharding(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, partition_spec(axes, shape, mesh))


def param_shardings(cfg: ModelConfig, mesh: Mesh) -> dict[str, NamedSharding]:
  """The sharding of every parameter in `param_table(cfg)`."""
  return {name: named_sharding(s.axes, s.shape, mesh) for name, s in param_table(cfg).items()}


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())
