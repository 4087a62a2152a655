"""Orbax checkpoints as named arrays: what is inside, and restoring a few of them at a time.

Orbax is imported where it is used: that takes a fifth of a second and 20 MB, which a GGUF file need not pay.
"""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pasta_jax.model.errors import WeightsError, one_line


class OrbaxFolder:
  """The arrays of one Orbax checkpoint under their paths joined by "/".

  Attributes:
    folder: of the checkpoint.
    arrays: from joined path to the array's description, with `shape` and `dtype`.

  Raises:
    WeightsError: no checkpoint, or one that Orbax cannot read.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    import orbax.checkpoint as ocp
    from etils import epath

    self.folder = Path(folder).resolve()
    with translated(self.folder, "is not a whole Orbax checkpoint"):
      tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(self.folder)).tree
    self._paths = dict(_walk(tree, ()))
    self.arrays: dict[str, Any] = {"/".join(path): leaf for path, leaf in self._paths.items()}
    self._by_name = {"/".join(path): path for path in self._paths}
    for name, leaf in self.arrays.items():
      if getattr(leaf, "shape", None) is None or getattr(leaf, "dtype", None) is None:
        raise WeightsError(f"{self.folder}: {name!r} is not an array; expected weights and nothing else")

  def restore(self, wanted: Mapping[str, jax.ShapeDtypeStruct | None]) -> dict[str, Any]:
    """Some of the arrays: on devices where a sharding is given, else NumPy arrays as they are stored.

    Raises:
      WeightsError: files of the checkpoint are missing or damaged.
    """
    import orbax.checkpoint as ocp

    item: dict[str, Any] = {}
    args: dict[str, Any] = {}
    for name, target in wanted.items():
      stored = self.arrays[name]
      if target is None:
        target = jax.ShapeDtypeStruct(stored.shape, stored.dtype)
        how = ocp.RestoreArgs(restore_type=np.ndarray)
      else:
        how = ocp.ArrayRestoreArgs(
          sharding=target.sharding, global_shape=target.shape, dtype=target.dtype, strict=True
        )
      _put(item, self._by_name[name], target)
      _put(args, self._by_name[name], how)
    with translated(self.folder, f"cannot be read near {next(iter(wanted))!r}"):
      restored = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
        self.folder, args=ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
      )
    found = dict(_walk(restored, ()))
    return {name: found[self._by_name[name]] for name in wanted}


@contextlib.contextmanager
def translated(folder: Path, what: str) -> Iterator[None]:
  """Turns whatever Orbax and TensorStore raise into one line; silences Orbax's logging meanwhile."""
  _silence_echoes()
  logger = logging.getLogger("absl")
  before = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  except WeightsError:
    raise
  except Exception as e:  # Orbax and TensorStore raise nearly every kind
    raise WeightsError(f"{folder}: {what}: {one_line(e)}") from None
  finally:
    logger.setLevel(before)


@functools.cache
def _silence_echoes() -> None:
  """Keeps one line one line, for the rest of the process: these echoes of an error come late.

  Orbax gives up at the first array that fails and closes its event loop; TensorStore then reports each of
  the other arrays to the closed loop, and Python prints a traceback for each. And Orbax's threads and
  tasks log the traceback of an error that they hand on as well.
  """
  show = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      show(unraisable)

  sys.unraisablehook = hook
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(
      lambda r: not (r.exc_info and ("orbax" in r.pathname or "orbax" in str(r.msg)))
    )


def _walk(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
  if isinstance(tree, Mapping):
    for key, value in tree.items():
      yield from _walk(value, (*path, str(key)))
  else:
    yield path, tree


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value
