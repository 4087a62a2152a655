"""Whether weights will fit: bytes needed per device against bytes free, before anything is allocated."""

import contextlib
import ctypes
import math
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from pasta_jax.model.errors import WeightsError, one_line
from pasta_jax.model.params import ParamSpec


def host_bytes_free() -> int | None:
  """Bytes of host memory that can be had without swapping, within the control group; None if unknown."""
  found = [_meminfo_available(), _cgroup_free()]
  return min((f for f in found if f is not None), default=None)


def _meminfo_available() -> int | None:
  try:
    for line in Path("/proc/meminfo").read_text().splitlines():
      if line.startswith("MemAvailable:"):
        return int(line.split()[1]) * 1024
  except (OSError, ValueError, IndexError):
    pass
  return None


def _cgroup_free() -> int | None:
  group = Path("/sys/fs/cgroup")
  try:
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
      return None
    used = int((group / "memory.current").read_text())
    # Pages of files that nobody uses are given back before the limit bites.
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(limit) - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
  except (OSError, ValueError):
    return None


def device_bytes_free(device: Any) -> int | None:
  """Bytes free on one device, as its runtime reports them; None where it does not."""
  if device.platform == "cpu":
    return host_bytes_free()
  stats = device.memory_stats() or {}
  if "bytes_limit" not in stats:
    return None
  return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))


def device_bytes(tree: Any) -> int:
  """Bytes of arrays, or of their shapes and shardings, on each device of this host; on CPU on all of them.

  On CPU every device draws on the same host memory and equal shards share one buffer, so that distinct
  shards are counted, once.
  """
  return sum(_shard_bytes(x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(tree))


def _shard_bytes(shape: tuple[int, ...], dtype: Any, sharding: Sharding) -> int:
  size = math.prod(sharding.shard_shape(shape)) * jnp.dtype(dtype).itemsize
  device: Any = next(iter(sharding.addressable_devices))
  if device.platform != "cpu":
    return size
  places = sharding.addressable_devices_indices_map(shape).values()
  return size * len({str(index) for index in places})


@contextlib.contextmanager
def told_when_memory_runs_out(advice: str) -> Iterator[None]:
  """Within, and in functions that it decorates, a device that has no memory left is one line for the user.

  Raises:
    ValueError: with the runtime's own words and `advice`, in place of its RESOURCE_EXHAUSTED error.
  """
  try:
    yield
  except RuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise ValueError(f"not enough memory: {one_line(e, 200)}; {advice}") from None


def check_fits(
  what: str, table: Mapping[str, ParamSpec], dtype: Any, shardings: Mapping[str, Sharding] | None
) -> None:
  """Raises WeightsError where the weights in `table` cannot fit on the devices that shall hold them."""
  device = jax.local_devices()[0]
  if shardings:
    device = next(iter(next(iter(shardings.values())).addressable_devices))
    need = sum(_shard_bytes(spec.shape, dtype, shardings[name]) for name, spec in table.items())
  else:
    need = sum(spec.size for spec in table.values()) * jnp.dtype(dtype).itemsize
  weights = f"the weights in {jnp.dtype(dtype).name} need"
  try:
    check_free(weights, need, device, "use a smaller dtype or model, or a mesh of more devices")
  except ValueError as e:
    raise WeightsError(f"{what}: {e}") from None


def check_free(what: str, need: int, device: Any, advice: str) -> None:
  """Raises ValueError where a device has fewer than `need` bytes free.

  Args:
    what: needs them, with its verb, as the message begins.
  """
  free = device_bytes_free(device)
  if free is not None and need > free:
    per = "of memory" if device.platform == "cpu" else "on each device"
    raise ValueError(
      f"not enough memory foreseen: {what} {_gb(need)} {per}, {_gb(free)} are free on {device.platform};"
      f" {advice}"
    )


def _gb(size: int) -> str:
  return f"{size / 1e9:.2f} GB"


def peak_rss_bytes() -> int:
  """The most memory that this process ever had resident, in bytes.

  On Linux from VmHWM, which starts anew with the program; ru_maxrss there starts at what the parent had
  resident when it forked, so that a small child of a large process looks large.
  """
  try:
    for line in Path("/proc/self/status").read_text().splitlines():
      if line.startswith("VmHWM:"):
        return int(line.split()[1]) * 1024
  except (OSError, ValueError, IndexError):
    pass
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


def release_freed() -> None:
  """Gives memory that was freed back to the system, where the C library keeps it (glibc); else nothing."""
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
  if trim is not None:
    trim(0)
