"""Processes that see several devices, which the tests of meshes start."""

import os
import sys


def environment(devices: int) -> dict[str, str]:
  """Of a process with that many fake CPU devices, otherwise compiled as this one is."""
  flag = f"--xla_force_host_platform_device_count={devices}"
  return os.environ | {
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip(),
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(sys.path),
  }
