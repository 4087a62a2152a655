"""LoRA: low-rank updates of a frozen model's matrices, and the rows of its marks, as a flat dict of arrays.

  layers.N.q.a      Rx(in...)    starts random
  layers.N.q.b      (out...)xR   starts at zero, so that training starts at the frozen model
  ...               for each target: q k v o gate up down
  embed.rows        36xD         the marks' rows, trained in full
  head.rows         36xD         only where the head is not the embedding

An adapted map computes W x + (alpha / R) b (a x); `merge` adds the product into W once, for decoding.
Reference: Hu et al., arXiv 2106.09685.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pasta_jax.lang.marks import MARKS, ControlIds
from pasta_jax.model.adapted import Adapted, Patched
from pasta_jax.model.config import ModelConfig, _nearest
from pasta_jax.model.params import Params, ParamSpec, init_param, param_key, param_table

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
_INPUTS = {"o": 2}  # input axes of a matrix stored [out..., in...]; 1 for the others


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """What is adapted, and how.

  Attributes:
    rank: R.
    alpha: the update is scaled by alpha / rank.
    targets: of `TARGETS`.
  """

  rank: int = 16
  alpha: float = 32.0
  targets: tuple[str, ...] = TARGETS

  def __post_init__(self):
    object.__setattr__(self, "targets", tuple(self.targets))
    if not isinstance(self.rank, int) or self.rank < 1:
      raise ValueError(f"a LoRA rank must be an integer >= 1, got {self.rank!r}")
    if not self.alpha > 0:
      raise ValueError(f"LoRA's alpha must be positive, got {self.alpha!r}")
    if len(set(self.targets)) != len(self.targets):
      raise ValueError(f"a LoRA target stands twice in {', '.join(self.targets)}")
    for name in self.targets:
      if name not in TARGETS:
        raise ValueError(f"unknown LoRA target {name!r}{_nearest(str(name), TARGETS)}")

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


def adapter_table(cfg: ModelConfig, lora: LoraConfig, marks: bool) -> dict[str, ParamSpec]:
  """Every array of an adapter.

  Args:
    marks: whether the marks' rows are part of it.
  """
  table = {}
  for name, spec in param_table(cfg).items():
    short = name.rpartition(".")[2]
    if short not in lora.targets or not name.startswith("layers."):
      continue
    split = len(spec.shape) - _INPUTS.get(short, 1)
    inputs = math.prod(spec.shape[split:])
    table[f"{name}.a"] = ParamSpec(
      (lora.rank, *spec.shape[split:]), (None, *spec.axes[split:]), "normal", inputs
    )
    table[f"{name}.b"] = ParamSpec((*spec.shape[:split], lora.rank), (*spec.axes[:split], None), "zeros")
  if marks:
    rows = ParamSpec((len(MARKS), cfg.d_model), (None, "embed"), "embed")
    table["embed.rows"] = rows
    if not cfg.tied_embeddings:
      table["head.rows"] = rows
  return table


def first_mark(controls: ControlIds) -> int:
  """The first control id; the others follow it.

  Raises:
    ValueError: the ids are not consecutive.
  """
  start = controls.all[0]
  if controls.all != tuple(range(start, start + len(MARKS))):
    raise ValueError("an adapter needs control ids that follow each other")
  return start


def init_adapter(
  cfg: ModelConfig, lora: LoraConfig, params: Mapping[str, Any], controls: ControlIds | None, seed: int
) -> Params:
  """An adapter that changes nothing yet; float32.

  Args:
    params: of the model; the marks' rows start at what it has.
    controls: ids of the marks; None leaves their rows out.
  """
  key = jax.random.key(seed)
  adapter = {}
  for name, spec in adapter_table(cfg, lora, controls is not None).items():
    if name.endswith(".rows"):
      assert controls is not None
      start = first_mark(controls)
      adapter[name] = params[name.removesuffix(".rows")][start : start + len(MARKS)].astype(jnp.float32)
    else:
      adapter[name] = init_param(spec, param_key(key, name), jnp.float32)
  return adapter


def adapted(
  params: Mapping[str, Any], adapter: Mapping[str, Any], lora: LoraConfig, start: int | None
) -> dict[str, Any]:
  """Parameters for a forward pass with the adapter beside the frozen weights.

  Args:
    start: the first control id; None where the adapter has no rows.
  """
  out = dict(params)
  for name, value in adapter.items():
    base, _, part = name.rpartition(".")
    if part == "a":
      w = params[base]
      b = adapter[f"{base}.b"] * lora.scale
      out[base] = Adapted(w, value.astype(w.dtype), b.astype(w.dtype))
    elif part == "rows":
      out[base] = Patched(params[base], value.astype(params[base].dtype), jnp.asarray(start, jnp.int32))
  return out


def merge(
  params: Mapping[str, Any], adapter: Mapping[str, Any], lora: LoraConfig, start: int | None
) -> Params:
  """Plain parameters with the adapter added in, each in the dtype and sharding that it had."""
  out = dict(params)
  for name, value in adapter.items():
    base, _, part = name.rpartition(".")
    if part == "a":
      w = params[base]
      out[base] = jax.device_put(_merged(w, value, adapter[f"{base}.b"], lora.scale), w.sharding)
    elif part == "rows":
      assert start is not None
      w = params[base]
      out[base] = jax.device_put(w.at[start : start + len(MARKS)].set(value.astype(w.dtype)), w.sharding)
  return out


@jax.jit
def _merged(w: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
  delta = jnp.tensordot(b.astype(jnp.float32), a.astype(jnp.float32), axes=1)
  return (w.astype(jnp.float32) + scale * delta).astype(w.dtype)
