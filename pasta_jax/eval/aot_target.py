"""Slices of TPUs that need not be there: published figures of their chips, devices for the compiler."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from pasta_jax.model.config import _nearest


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation of TPU.

  Attributes:
    name: as in a topology's name.
    hbm_bytes, hbm_bytes_per_s: memory of a chip and its bandwidth, from Cloud TPU's documentation.
    hertz: cycles per second, to read the compiler's cycles. Peak bfloat16 operations per second are this
      times 2 * side^2 per matrix unit: 197e12 = 1.5e9 * 2 * 4 * 128^2 (v5e), 459e12 = 1.75e9 * 2 * 8 * 128^2
      (v5p), 918e12 = 1.75e9 * 2 * 4 * 256^2 (v6e).
    dims: axes of a topology's name.
  """

  name: str
  hbm_bytes: float
  hbm_bytes_per_s: float
  hertz: float
  dims: int


CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", 16e9, 819e9, 1.5e9, 2),
    Chip("v5p", 95e9, 2765e9, 1.75e9, 3),
    Chip("v6e", 32e9, 1640e9, 1.75e9, 2),
  )
}


@dataclasses.dataclass(frozen=True)
class Target:
  """A slice.

  Attributes:
    topology: e.g. "v5e:2x4".
    chip: its generation.
    devices: descriptions of its chips, for a mesh.
  """

  topology: str
  chip: Chip
  devices: Sequence[Any]


def parse_topology(text: str) -> tuple[Chip, tuple[int, ...]]:
  """`"v5e:2x4"` -> the v5e chip and (2, 4); v5p takes three sizes, and fills missing ones with 1.

  Raises:
    ValueError: an unknown generation, or sizes that no slice has.
  """
  name, _, sizes = text.partition(":")
  if name not in CHIPS:
    raise ValueError(f"--topology {text!r}: TPU generation {name!r} is unknown{_nearest(name, CHIPS)}")
  chip = CHIPS[name]
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sizes):
    raise ValueError(f"--topology {text!r} is not a generation and its shape, e.g. v5e:2x4 or v5p:2x2x1")
  shape = tuple(int(n) for n in sizes.split("x"))
  if len(shape) > chip.dims:
    raise ValueError(f"--topology {text!r}: {name} slices have {chip.dims} sizes, e.g. {name}:2x4")
  shape += (1,) * (chip.dims - len(shape))
  if math.prod(shape) > 1 and (shape[0] % 2 or shape[1] % 2):
    raise ValueError(f"--topology {text!r}: a slice is one chip (1x1), or its first two sizes are even")
  return chip, shape


def prepare_compiler() -> None:
  """Lets the TPU's compiler load where there is no TPU, or where another process holds it.

  Raises:
    ImportError: it is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ImportError("the TPU compiler is not installed: pip install 'pasta_jax[tpu]' (Linux on x86-64)")
  # A description of chips is all that is asked for: no metadata server, no other hosts, and no lock file,
  # which is there to keep two processes from driving the same chips.
  for name, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
  ):
    os.environ.setdefault(name, value)


def describe(topology: str) -> Target:
  """The slice of that name; asks the TPU's compiler, not a TPU.

  Raises:
    ValueError: no such slice.
    ImportError: libtpu is not installed.
  """
  chip, shape = parse_topology(topology)
  prepare_compiler()
  import jax
  from jax.experimental import topologies

  # Slices are made of hosts with 2x2 chips, but for a single chip.
  bounds = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(shape) == 1 else {}
  name = f"{chip.name}:{'x'.join(map(str, shape))}"
  try:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds).devices
  except jax.errors.JaxRuntimeError as e:
    raise ValueError(f"--topology {topology!r}: the TPU compiler says: {str(e).splitlines()[0]}") from None
  return Target(topology, chip, devices)
