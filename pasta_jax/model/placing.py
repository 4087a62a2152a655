"""From files into shardings: one tensor at a time, each in one host buffer that a CPU device adopts.

A loader describes every parameter by a `Source`, which fills rows on request. `build_params` then goes
through the table of parameters:

  file --rows, in blocks, by several threads--> one aligned buffer (this process's rows) --> shards

The blocks keep what a conversion needs on the side (raw bytes, float32 values) small beside a large tensor,
and in the caches. A JAX CPU device takes over a 64-byte-aligned buffer as it is, so that on CPU no tensor
is copied at all; elsewhere the buffer is freed once the device has it.
"""

import math
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.memory import check_fits
from pasta_jax.model.params import Params, ParamSpec, param_table
from pasta_jax.model.sharding import param_shardings

# Bytes; at such an address a JAX CPU device adopts a buffer without copying it.
ALIGNMENT = 64
_BLOCK_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class Source:
  """Where one parameter comes from.

  Attributes:
    where: file and tensor, for messages.
    shape: the parameter's shape.
    read: `read(start, stop, out)` fills `out`, of shape (stop - start, *shape[1:]) in the target dtype, with
      rows start to stop along the first axis. Threads call it at the same time.
  """

  where: str
  shape: tuple[int, ...]
  read: Callable[[int, int, np.ndarray], None]


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An uninitialised array at an address that a JAX CPU device adopts without copying."""
  dtype = np.dtype(dtype)
  size = math.prod(shape) * dtype.itemsize
  raw = np.empty(size + ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)


def place(source: Source, dtype: Any, sharding: Sharding, pool: ThreadPoolExecutor) -> jax.Array:
  """Reads one parameter into its sharding; only the rows that this process's devices hold are read."""
  shape = source.shape
  rows = [i[0].indices(shape[0]) for i in sharding.addressable_devices_indices_map(shape).values() if i]
  low, high = min(r[0] for r in rows), max(r[1] for r in rows)
  buffer = aligned_empty((high - low, *shape[1:]), dtype)
  step = max(1, _BLOCK_ELEMENTS // math.prod(shape[1:]))
  starts = range(low, high, step)

  def fill(start: int) -> None:
    stop = min(start + step, high)
    # Values beyond the target dtype become infinite, as in any cast.
    with np.errstate(all="ignore"):
      source.read(start, stop, buffer[start - low : stop - low])

  if len(starts) == 1:
    fill(low)
  else:
    list(pool.map(fill, starts))

  def shard(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None  # JAX says None for devices of other processes, and asks for ours only
    start, stop, _ = index[0].indices(shape[0])
    return buffer[(slice(start - low, stop - low), *index[1:])]

  if len(sharding.device_set) == 1:
    array = jax.device_put(buffer, sharding)
  else:
    array = jax.make_array_from_callback(shape, sharding, shard)
  # Without waiting, the host buffers of many tensors would be in flight together.
  return array.block_until_ready()


FLOAT_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16)}


def widen(raw: np.ndarray, kind: str) -> np.ndarray:
  """Bytes of one of `FLOAT_TYPES` as float32 values; F32 without a copy."""
  if kind == "BF16":  # a shift is several times as fast as the cast of the extension type
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
  return raw.view(FLOAT_TYPES[kind]).astype(np.float32, copy=False)


def target_shardings(cfg: ModelConfig, mesh: Mesh | None) -> dict[str, Sharding]:
  """Where each parameter shall lie: on `mesh`, or whole on the default device."""
  if mesh is not None:
    return dict(param_shardings(cfg, mesh))
  default = jax.device_put(np.zeros(())).sharding  # minds jax_default_device
  return dict.fromkeys(param_table(cfg), default)


def build_params(
  what: str, cfg: ModelConfig, source_of: Callable[[str, ParamSpec], Source], *, dtype: Any, mesh: Mesh | None
) -> Params:
  """All parameters of `cfg`, tensor by tensor.

  Args:
    what: the file or folder, for messages.
    source_of: from a parameter's name and spec to its source; called just before the parameter is read.
    dtype: of every parameter.
    mesh: None for one device.

  Raises:
    WeightsError: a shape is wrong, the weights would not fit, or a source says so.
  """
  dtype = jnp.dtype(dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise WeightsError(f"{what}: weights load in a floating-point dtype, not {dtype.name}")
  table = param_table(cfg)
  shardings = target_shardings(cfg, mesh)
  check_fits(what, table, dtype, shardings)
  params: Params = {}
  with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    for name, spec in table.items():
      source = source_of(name, spec)
      if source.shape != spec.shape:
        raise WeightsError(f"{source.where}: gives shape {source.shape}, the model's {name} has {spec.shape}")
      params[name] = place(source, dtype, shardings[name], pool)
  return params


def check_names(
  what: str, wanted: Mapping[str, str], present: Collection[str], ignored: Collection[str]
) -> None:
  """Raises WeightsError unless the tensors of a file are those that the model wants.

  Args:
    what: the file or folder.
    wanted: from parameter to tensor name.
    present: the file's tensor names.
    ignored: those among them that the model has no use for, on purpose.
  """
  names = set(wanted.values())
  have = set(present)
  if missing := [t for t in wanted.values() if t not in have]:
    raise WeightsError(
      f"{what}: tensor {missing[0]!r} is missing ({len(missing)} of {len(names)} missing); "
      "the file is not whole or not of this model: fetch it again"
    )
  if unknown := sorted(have - names - set(ignored)):
    raise WeightsError(
      f"{what}: tensor {unknown[0]!r} is unknown ({len(unknown)} in all); "
      "the model that the file describes has no place for it"
    )


def file_shape(param: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """A parameter's shape as GGUF and HF files have it, where heads and their size are one axis."""
  name = param.rsplit(".", 1)[-1]
  if name in ("q", "k", "v"):
    return (shape[0] * shape[1], shape[2])
  if name == "o":
    return (shape[0], shape[1] * shape[2])
  if name in ("q_bias", "k_bias", "v_bias"):
    return (shape[0] * shape[1],)
  return shape
