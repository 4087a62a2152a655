"""The safetensors format: one file's header, and a folder of one file or of shards with an index.

A file is a length (8 bytes, little-endian), that many bytes of JSON, and the tensors' raw data:
  {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}
Every number is checked against the file's size before anything is read by it.
Source: the format's description in the safetensors repository (Apache-2.0).
"""

import itertools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pasta_jax.model.errors import WeightsError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER = 100_000_000
_SIZES = {
  "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1,
  "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
  """One tensor: where it stands and what it is.

  Attributes:
    path: the file.
    fd: an open descriptor of it.
    type: "F32", "BF16", ...
    offset: of its first byte in the file.
  """

  path: Path
  fd: int
  name: str
  type: str
  shape: tuple[int, ...]
  offset: int

  @property
  def where(self) -> str:
    return f"{self.path}: tensor {self.name!r}"


class SafetensorsFolder:
  """The tensors of a folder, by name, with their files held open. Use as a context manager.

  Raises:
    WeightsError: no such files, a bad index, a damaged header, offsets that overlap or pass the end.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    self.folder = Path(folder)
    self.tensors: dict[str, StoredTensor] = {}
    self._fds: list[int] = []
    try:
      self._open()
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> "SafetensorsFolder":
    return self

  def __exit__(self, *exc: Any) -> None:
    self.close()

  def close(self) -> None:
    while self._fds:
      os.close(self._fds.pop())

  def _open(self) -> None:
    if (self.folder / _SINGLE).is_file():
      self.tensors = self._read(self.folder / _SINGLE)
      return
    if not (self.folder / _INDEX).is_file():
      lone = sorted(self.folder.glob("*.safetensors"))
      if len(lone) != 1:
        raise WeightsError(
          f"{self.folder}: {len(lone)} .safetensors files, and no {_INDEX} to say what is where"
        )
      self.tensors = self._read(lone[0])
      return
    index = _weight_map(self.folder / _INDEX)
    for file in sorted(set(index.values())):
      path = self.folder / file
      if not path.is_file():
        raise WeightsError(f"{path} is missing, though {_INDEX} names it; fetch the folder again")
      tensors = self._read(path)
      for name in tensors:
        if index.get(name) != file:
          raise WeightsError(
            f"{path}: tensor {name!r} is not where {_INDEX} says; the folder mixes downloads"
          )
      self.tensors |= tensors
    for name, file in index.items():
      if name not in self.tensors:
        raise WeightsError(f"{self.folder / file}: tensor {name!r} is missing, though {_INDEX} names it")

  def _read(self, path: Path) -> dict[str, StoredTensor]:
    try:
      fd = os.open(path, os.O_RDONLY)
    except OSError as e:
      raise WeightsError(f"{path}: cannot be opened: {e.strerror}") from None
    self._fds.append(fd)
    return _read_header(path, fd)


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object from a file; a key that stands twice, at any depth, is an error like all others.

  Raises:
    WeightsError: missing, not JSON, not an object.
  """
  try:
    raw = path.read_bytes()
  except OSError as e:
    raise WeightsError(f"{path}: cannot be read: {e.strerror}") from None
  return _json_object(path, raw)


def _json_object(path: Path, raw: bytes) -> dict[str, Any]:
  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
      names = [name for name, _ in pairs]
      twice = next(n for n in names if names.count(n) > 1)
      raise WeightsError(f"{path}: {twice!r} stands twice; the file is damaged")
    return values

  try:
    values = json.loads(raw.decode(), object_pairs_hook=unique)
  except WeightsError:
    raise
  except (ValueError, RecursionError):
    raise WeightsError(f"{path}: its JSON cannot be parsed; the file is damaged") from None
  if not isinstance(values, dict):
    raise WeightsError(f"{path}: its JSON is not an object; the file is damaged")
  return values


def _weight_map(path: Path) -> dict[str, str]:
  index = read_json(path).get("weight_map")
  if not isinstance(index, dict) or not index:
    raise WeightsError(f"{path}: has no weight_map; fetch it again")
  for name, file in index.items():
    if not isinstance(file, str) or not file or Path(file).name != file or "\0" in file:
      raise WeightsError(f"{path}: puts tensor {name!r} into {file!r}, expected the name of a file beside it")
  return index


def _read_header(path: Path, fd: int) -> dict[str, StoredTensor]:
  size = os.fstat(fd).st_size
  length = int.from_bytes(os.pread(fd, 8, 0), "little")
  if size < 10 or length > min(size - 8, _MAX_HEADER) or os.pread(fd, 1, 8) != b"{":
    raise WeightsError(f"{path}: not a safetensors file, or truncated ({size} bytes); fetch it again")
  header = _json_object(path, os.pread(fd, length, 8))
  header.pop("__metadata__", None)
  begin = 8 + length
  spans: list[tuple[int, int, str]] = []
  tensors = {}
  for name, entry in header.items():
    type_, shape, (low, high) = _entry(path, name, entry)
    if begin + high > size:
      raise WeightsError(
        f"{path}: tensor {name!r} is truncated: {begin + high - size} bytes are missing; fetch it again"
      )
    spans.append((low, high, name))
    tensors[name] = StoredTensor(path, fd, name, type_, shape, begin + low)
  spans.sort()
  for before, after in itertools.pairwise(spans):
    if after[0] < before[1]:
      raise WeightsError(f"{path}: tensor {after[2]!r} overlaps {before[2]!r}; the file is damaged")
  return tensors


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
  where = f"{path}: tensor {name!r}"
  if not isinstance(entry, dict):
    raise WeightsError(f"{where} has no description; the file is damaged")
  kind: Any = entry.get("dtype")
  shape: Any = entry.get("shape")
  offsets: Any = entry.get("data_offsets")
  if not isinstance(kind, str) or kind not in _SIZES:
    raise WeightsError(f"{where} has the unsupported type {kind!r:.30}")
  if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
    raise WeightsError(f"{where} has shape {shape!r:.50} at {offsets!r:.50}; the file is damaged")
  need = math.prod(shape) * _SIZES[kind]
  if offsets[1] - offsets[0] != need:
    raise WeightsError(
      f"{where} of shape {tuple(shape)} in {kind} needs {need} bytes, its offsets are {offsets}"
    )
  return kind, tuple(shape), (offsets[0], offsets[1])


def _counts(values: Any) -> bool:
  return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)
