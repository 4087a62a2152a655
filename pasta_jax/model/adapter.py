"""Adapter files: what fine-tuning changed, small enough to ship, and models with it merged in.

One .npz file: `meta`, JSON as bytes, and the arrays of model/lora.py. Low-rank matrices are stored as int8,
each with one float32 scale per rank (`NAME.scale`), 5 MB for rank 16 on every map of SmolLM2-135M; rows of
marks as float16.
"""

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from pasta_jax.model.errors import WeightsError, one_line
from pasta_jax.model.lora import LoraConfig, adapter_table, first_mark, merge
from pasta_jax.model.marks import with_marks

_FORMAT = "pasta_jax adapter 1"
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An adapter with what it needs to know of itself.

  Attributes:
    arrays: see model/lora.py; float32.
    lora: rank, alpha and targets.
    marks: it holds the marks' rows: the model splits its answers. The twin's has none.
    model: what it was trained on, as `load_model` names it.
    metadata: how it was made; plain JSON values.
  """

  arrays: dict[str, Any]
  lora: LoraConfig
  marks: bool
  model: str
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def promise_bias(self) -> tuple[float, float]:
    """What its run said decoding should have, see train/config.py."""
    first, later = (
      self.metadata.get("config", {}).get("promise_bias", (0.0, 0.0)) if self.marks else (0.0, 0.0)
    )
    return float(first), float(later)


def save_adapter(path: str | os.PathLike[str], adapter: Adapter, *, quantize: bool = True) -> Path:
  """Writes an adapter, whole or not at all; an older file in its place is replaced.

  Args:
    path: ends in .npz.
    quantize: int8, as above; else everything as float32.

  Raises:
    WeightsError: it cannot be written, or holds values that are not finite.
  """
  path = Path(path)
  if path.suffix != ".npz":
    raise WeightsError(f"{path}: an adapter's file ends in .npz")
  meta = {
    "format": _FORMAT,
    "model": adapter.model,
    "marks": adapter.marks,
    "lora": dataclasses.asdict(adapter.lora),
    "metadata": adapter.metadata,
  }
  stored: dict[str, np.ndarray] = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
  for name, value in adapter.arrays.items():
    x = np.asarray(value, np.float32)
    if not np.isfinite(x).all():
      raise WeightsError(f"{path}: not saved: {name!r} holds values that are not finite")
    if not quantize:
      stored[name] = x
    elif name.endswith(".rows"):
      stored[name] = x.astype(np.float16)
    else:
      stored[name], stored[f"{name}.scale"] = _to_int8(x, _rank_axis(name, x))
  beside = path.with_name(f".{path.name}.writing")
  try:
    with open(beside, "wb") as f:
      np.savez(f, **stored)  # type: ignore[arg-type]
      f.flush()
      os.fsync(f.fileno())
    os.replace(beside, path)
  except OSError as e:
    beside.unlink(missing_ok=True)
    raise WeightsError(f"{path}: cannot be written: {e.strerror or e}") from None
  return path


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
  """The adapter that `save_adapter` wrote.

  Raises:
    WeightsError: no such file, damaged, or something else.
  """

  def take(file: Any) -> Adapter:
    meta = _meta(Path(path), file)
    stored = {name: file[name] for name in file.files if name != "meta"}
    lora = LoraConfig(**meta["lora"])
    arrays = {
      name: x.astype(np.float32) * _spread(stored[f"{name}.scale"], _rank_axis(name, x), x.ndim)
      if x.dtype == np.int8
      else x.astype(np.float32)
      for name, x in stored.items()
      if not name.endswith(".scale")
    }
    adapter = Adapter(arrays, lora, bool(meta["marks"]), str(meta["model"]), dict(meta["metadata"]))
    _ = adapter.promise_bias  # a file in which it is no pair of numbers is told here
    return adapter

  return _read(Path(path), take)


def _meta(path: Path, file: Any) -> dict[str, Any]:
  meta = json.loads(file["meta"].tobytes())
  if meta["format"] != _FORMAT:
    raise WeightsError(f"{path}: has the format {meta['format']!r}, this version reads {_FORMAT!r}")
  return meta


def _read(path: Path, take: Callable[[Any], _T]) -> _T:
  """What `take` gets from an open file; whatever is wrong with it is a WeightsError."""
  try:
    with np.load(path, allow_pickle=False) as file:
      return take(file)
  except WeightsError:
    raise
  except FileNotFoundError:
    raise WeightsError(f"{path}: no such file") from None
  except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile) as e:
    raise WeightsError(f"{path}: not an adapter, or a damaged one: {one_line(e)}") from None


def adapter_has_marks(path: str | os.PathLike[str]) -> bool:
  """Whether an adapter was trained on marks, without reading its arrays.

  Raises:
    WeightsError: no such file, damaged, or something else.
  """
  return bool(_read(Path(path), lambda file: _meta(Path(path), file)["marks"]))


def adapter_notes(what: str, adapter: Adapter, model: str, scheme: Mapping[str, Any]) -> list[str]:
  """What a user should know before running an adapter otherwise than it was trained, line by line.

  Args:
    what: the adapter, as the user named it.
    model: as the user named it.
    scheme: fork, positions and fixed of the run; empty where there are no marks.
  """
  out = []
  if adapter.model != model:
    out.append(f"note: {what} was trained on {adapter.model}, --model is {model}")
  trained = adapter.metadata.get("config", {})
  keys = ("fork", "positions", "fixed") if scheme.get("positions") == "fixed" else ("fork", "positions")
  for key in keys if scheme else ():
    if trained.get(key, scheme[key]) != scheme[key]:
      out.append(f"note: {what} was trained with {key}={trained[key]}; add --{key}={trained[key]}")
  return out


def check_adapter(what: str, config: Any, adapter: Adapter) -> None:
  """Raises WeightsError where an adapter does not fit a model's shapes."""
  table = adapter_table(config, adapter.lora, adapter.marks)
  if missing := [n for n in table if n not in adapter.arrays]:
    raise WeightsError(f"{what}: {missing[0]!r} is missing ({len(missing)} in all)")
  if unknown := [n for n in adapter.arrays if n not in table]:
    raise WeightsError(f"{what}: the model has no place for {unknown[0]!r} ({len(unknown)} in all)")
  for name, spec in table.items():
    if (shape := tuple(adapter.arrays[name].shape)) != spec.shape:
      raise WeightsError(
        f"{what}: {name!r} has shape {shape}, the model needs {spec.shape}; "
        f"the adapter was trained on {adapter.model}"
      )


def with_adapter(model: Any, adapter: Adapter | str | os.PathLike[str]) -> Any:
  """The model with an adapter merged into its weights, and with marks where the adapter has them.

  Args:
    model: from `load_model`.
    adapter: or its file.

  Raises:
    WeightsError: the file is damaged, or does not fit the model.
  """
  what = "adapter" if isinstance(adapter, Adapter) else str(adapter)
  if not isinstance(adapter, Adapter):
    adapter = load_adapter(adapter)
  check_adapter(what, model.config, adapter)
  start = None
  if adapter.marks:
    model = with_marks(model)
    start = first_mark(model.tokenizer.controls)
  params = merge(model.params, adapter.arrays, adapter.lora, start)
  model = dataclasses.replace(model, params=params)
  bias = adapter.promise_bias
  return dataclasses.replace(model, promise_bias=bias) if any(bias) else model


def quantized(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The arrays as they come back from a quantised file."""
  out = {}
  for name, value in arrays.items():
    x = np.asarray(jax.device_get(value), np.float32)
    if name.endswith(".rows"):
      out[name] = x.astype(np.float16).astype(np.float32)
    else:
      axis = _rank_axis(name, x)
      q, scale = _to_int8(x, axis)
      out[name] = q.astype(np.float32) * _spread(scale, axis, x.ndim)
  return out


def _rank_axis(name: str, x: np.ndarray) -> int:
  return 0 if name.endswith(".a") else x.ndim - 1


def _to_int8(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
  """Values, and one scale for each index of `axis`."""
  others = tuple(i for i in range(x.ndim) if i != axis)
  scale = np.maximum(np.abs(x).max(axis=others), 1e-30).astype(np.float32) / 127
  return np.rint(x / _spread(scale, axis, x.ndim)).astype(np.int8), scale


def _spread(scale: np.ndarray, axis: int, ndim: int) -> np.ndarray:
  return scale.reshape([-1 if i == axis else 1 for i in range(ndim)])
