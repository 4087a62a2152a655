"""The header of a GGUF file, read with every length checked against the file's size before it is believed.

The `gguf` package has a reader too, but it trusts its input (a wrong count sends it into an endless loop) and
makes one array per vocabulary entry, which costs seconds and more memory than the weights of a small model.
The types' sizes and their arithmetic are that package's.

  magic, version, counts | key/value pairs | tensor infos | padding | data of tensor 0 | padding | ...
"""

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pasta_jax.model.errors import WeightsError

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMS = 4


@dataclass(frozen=True)
class TensorInfo:
  """One tensor of the file.

  Attributes:
    shape: slowest axis first, as NumPy has it (GGUF writes it the other way round).
    type: the name of its ggml type, "Q4_K" say.
    offset: of its first byte in the file.
    nbytes: of its data.
    block: (elements, bytes) of a block of its type; rows consist of whole blocks.
  """

  name: str
  shape: tuple[int, ...]
  type: str
  offset: int
  nbytes: int
  block: tuple[int, int]


@dataclass(frozen=True)
class MetadataField:
  """A metadata value under the call by which the `gguf` package hands it out."""

  value: Any

  def contents(self) -> Any:
    return self.value


class GgufFile:
  """An open GGUF file: metadata, tensor infos, and reads of raw bytes. Use as a context manager.

  Attributes:
    path: of the file.
    metadata: from key to int, float, bool, str, or list of one of these.
    tensors: from name to TensorInfo.

  Raises:
    WeightsError: not a GGUF, truncated, duplicate keys or tensors, overlapping or misplaced tensors, a type
      that is not known.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = Path(path)
    self.metadata: dict[str, Any] = {}
    self.tensors: dict[str, TensorInfo] = {}
    try:
      self._fd = os.open(self.path, os.O_RDONLY)
    except OSError as e:
      raise WeightsError(f"{self.path}: cannot be opened: {e.strerror}") from None
    try:
      self._size = os.fstat(self._fd).st_size
      if self._size < 24 or os.pread(self._fd, 4, 0) != b"GGUF":
        raise WeightsError(f"{self.path}: not a GGUF file; expected one that begins with the letters GGUF")
      with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as data:
        self._parse(_Cursor(self.path, data, self._size))
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> "GgufFile":
    return self

  def __exit__(self, *exc: Any) -> None:
    self.close()

  def close(self) -> None:
    if self._fd >= 0:
      os.close(self._fd)
      self._fd = -1

  def get_field(self, key: str) -> MetadataField | None:
    return MetadataField(self.metadata[key]) if key in self.metadata else None

  @property
  def fields(self) -> Mapping[str, MetadataField]:
    return {key: MetadataField(value) for key, value in self.metadata.items()}

  def read(self, tensor: TensorInfo, start: int, nbytes: int) -> np.ndarray:
    """`nbytes` raw bytes of a tensor from its byte `start`, as uint8."""
    raw = np.empty(nbytes, np.uint8)
    read_into(self._fd, tensor.offset + start, raw, f"{self.path}: tensor {tensor.name!r}")
    return raw

  def _parse(self, cur: "_Cursor") -> None:
    version = cur.scalar("I", 4)
    if version not in (2, 3):
      swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
      hint = "big-endian files are not supported" if swapped in (2, 3) else "versions 2 and 3 are supported"
      raise WeightsError(f"{self.path}: GGUF version {version}; {hint}")
    num_tensors, num_keys = cur.scalar("Q"), cur.scalar("Q")
    # A key/value pair takes at least 13 bytes, a tensor info 32.
    cur.claim(num_keys * 13 + num_tensors * 32, f"{num_keys} metadata keys and {num_tensors} tensors")
    for _ in range(num_keys):
      key = cur.string("a metadata key")
      if key in self.metadata:
        raise WeightsError(f"{self.path}: metadata key {key!r} stands twice; the file is damaged")
      self.metadata[key] = cur.value(key, cur.scalar("I"))
    if (parts := self.metadata.get("split.count", 0)) not in (0, 1):
      raise WeightsError(f"{self.path}: one of {parts} parts; join them with llama-gguf-split --merge")
    infos = [self._tensor_info(cur) for _ in range(num_tensors)]
    alignment = self.metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
      raise WeightsError(f"{self.path}: general.alignment is {alignment!r}, expected a power of two")
    begin = -(-cur.offset // alignment) * alignment
    end = begin
    for info in sorted(infos, key=lambda i: i[3]):
      self._add_tensor(*info, begin=begin, alignment=alignment, free_from=end)
      tensor = self.tensors[info[0]]
      end = tensor.offset + tensor.nbytes

  def _tensor_info(self, cur: "_Cursor") -> tuple[str, tuple[int, ...], int, int]:
    name = cur.string("a tensor's name")
    dims = cur.scalar("I")
    if not 1 <= dims <= _MAX_DIMS:
      raise WeightsError(f"{self.path}: tensor {name!r} has {dims} dimensions, expected 1 to {_MAX_DIMS}")
    shape = tuple(cur.scalar("Q") for _ in range(dims))[::-1]
    return name, shape, cur.scalar("I"), cur.scalar("Q")

  def _add_tensor(
    self,
    name: str,
    shape: tuple[int, ...],
    type_id: int,
    offset: int,
    *,
    begin: int,
    alignment: int,
    free_from: int,
  ) -> None:
    where = f"{self.path}: tensor {name!r}"
    if name in self.tensors:
      raise WeightsError(f"{where} stands twice; the file is damaged")
    type_name, block = _type(where, type_id)
    elements = math.prod(shape)
    if not elements or shape[-1] % block[0]:
      raise WeightsError(
        f"{where} has shape {shape}, expected rows of whole blocks of {block[0]} ({type_name})"
      )
    nbytes = elements // block[0] * block[1]
    if begin + offset + nbytes > self._size:
      raise WeightsError(
        f"{where} is truncated: it needs {begin + offset + nbytes} bytes of file, {self._size} are there; "
        "fetch the file again"
      )
    if offset % alignment:
      raise WeightsError(f"{where} begins at offset {offset}, expected a multiple of {alignment}")
    if begin + offset < free_from:
      raise WeightsError(f"{where} overlaps the tensor before it; the file is damaged")
    self.tensors[name] = TensorInfo(name, shape, type_name, begin + offset, nbytes, block)


def read_into(fd: int, offset: int, out: np.ndarray, where: str) -> None:
  """Fills `out`, contiguous, with the bytes of a file from `offset` on; WeightsError where they end early."""
  view = memoryview(out.reshape(-1).view(np.uint8))
  done = 0
  while done < len(view):
    try:
      count = os.preadv(fd, [view[done:]], offset + done)
    except OSError as e:
      raise WeightsError(f"{where} cannot be read: {e.strerror}") from None
    if not count:
      raise WeightsError(f"{where} is truncated: {len(view) - done} bytes are missing; fetch the file again")
    done += count


def import_gguf() -> Any:
  """The `gguf` package, or one line on how to get it."""
  try:
    import gguf
  except ImportError:
    raise WeightsError("GGUF files need the gguf package: pip install gguf") from None
  return gguf


def _type(where: str, type_id: int) -> tuple[str, tuple[int, int]]:
  constants = import_gguf().constants
  try:
    kind = constants.GGMLQuantizationType(type_id)
    return kind.name, constants.GGML_QUANT_SIZES[kind]
  except (ValueError, KeyError):
    raise WeightsError(f"{where} has the unsupported type {type_id}") from None


class _Cursor:
  """A position in the header that never passes the end of the file."""

  def __init__(self, path: Path, data: mmap.mmap, size: int):
    self._path, self._data, self._size = path, data, size
    self.offset = 0

  def claim(self, nbytes: int, what: str) -> None:
    if self.offset + nbytes > self._size:
      raise WeightsError(f"{self._path}: truncated or damaged: no room for {what} at byte {self.offset}")

  def scalar(self, fmt: str, offset: int | None = None) -> Any:
    if offset is not None:
      self.offset = offset
    size = struct.calcsize("<" + fmt)
    self.claim(size, "a number")
    (value,) = struct.unpack_from("<" + fmt, self._data, self.offset)
    self.offset += size
    return value

  def string(self, what: str) -> str:
    length = self.scalar("Q")
    self.claim(length, f"{what} of {length} bytes")
    raw = self._data[self.offset : self.offset + length]
    self.offset += length
    try:
      return raw.decode()
    except UnicodeDecodeError:
      raise WeightsError(
        f"{self._path}: {what} before byte {self.offset} is not UTF-8; the file is damaged"
      ) from None

  def value(self, key: str, kind: int) -> Any:
    if kind == _STRING:
      return self.string(f"the value of {key!r}")
    if kind in _SCALARS:
      return self.scalar(_SCALARS[kind])
    if kind != _ARRAY:
      raise WeightsError(f"{self._path}: metadata key {key!r} has the unknown type {kind}")
    item, count = self.scalar("I"), self.scalar("Q")
    if item == _STRING:
      self.claim(8 * count, f"the {count} strings of {key!r}")
      return self._strings(key, count)
    if item not in _SCALARS:
      raise WeightsError(f"{self._path}: metadata key {key!r} is an array of the unsupported type {item}")
    fmt = _SCALARS[item]
    size = struct.calcsize("<" + fmt)
    self.claim(size * count, f"the {count} values of {key!r}")
    values = (
      np.frombuffer(self._data, np.dtype(fmt).newbyteorder("<"), count, self.offset).tolist() if count else []
    )
    self.offset += size * count
    return values

  def _strings(self, key: str, count: int) -> list[str]:
    # Vocabularies have a quarter of a million entries: locals and one unpacker, rather than `string`.
    unpack, data, size, offset = struct.Struct("<Q").unpack_from, self._data, self._size, self.offset
    values = []
    try:
      for _ in range(count):
        (length,) = unpack(data, offset)
        offset += 8
        if offset + length > size:
          raise WeightsError(f"{self._path}: truncated or damaged in the strings of {key!r} at byte {offset}")
        values.append(data[offset : offset + length].decode())
        offset += length
    except UnicodeDecodeError:
      raise WeightsError(f"{self._path}: metadata key {key!r} holds text that is not UTF-8") from None
    except struct.error:
      raise WeightsError(f"{self._path}: truncated in the strings of {key!r} at byte {offset}") from None
    self.offset = offset
    return values
