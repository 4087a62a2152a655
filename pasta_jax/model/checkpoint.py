"""Our own checkpoints: a folder with everything that a model needs, written whole or not at all.

  folder/
    config.json   ModelConfig
    tokenizer/    as the tokenizer saves itself; absent where there was none
    params/       Orbax, one array per parameter, in any sharding

It is written beside its place, as .<name>.writing, and renamed when it is complete. Where an older one is
replaced, that one steps aside as .<name>.replaced until the rename is done, and still loads in between.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.errors import WeightsError, one_line
from pasta_jax.model.memory import check_fits
from pasta_jax.model.orbax_io import OrbaxFolder, translated
from pasta_jax.model.params import Params, check_params, param_table
from pasta_jax.model.placing import check_names, target_shardings

_CONFIG, _TOKENIZER, _PARAMS = "config.json", "tokenizer", "params"


def save_checkpoint(
  folder: str | os.PathLike[str],
  config: ModelConfig,
  params: Params,
  tokenizer: Any = None,
  *,
  overwrite: bool = False,
) -> Path:
  """Writes a checkpoint folder, whole or not at all. In a run of several processes, all must call it.

  Args:
    folder: must not exist, unless `overwrite`.
    tokenizer: has `save(folder)`, or is None.

  Returns:
    The folder's absolute path.

  Raises:
    WeightsError: the folder exists, `params` do not fit `config`, or it cannot be written (disk full, ...).
  """
  import orbax.checkpoint as ocp

  folder = Path(folder).resolve()
  try:
    check_params(config, params)
  except ValueError as e:
    raise WeightsError(f"{folder}: not saved: {e}") from None
  if _current(folder).exists() and not overwrite:
    raise WeightsError(f"{folder}: exists already; choose another folder, or overwrite=True")
  writing, first = _beside(folder, "writing"), jax.process_index() == 0
  try:
    if first:
      shutil.rmtree(writing, ignore_errors=True)  # what a killed run has left
      writing.mkdir(parents=True)
    _wait_for_all("made")
    with translated(folder, "cannot be written"):
      ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(
        writing / _PARAMS, args=ocp.args.PyTreeSave(dict(params))
      )
    if first:
      (writing / _CONFIG).write_text(config.to_json())
      if tokenizer is not None:
        (writing / _TOKENIZER).mkdir()
        tokenizer.save(writing / _TOKENIZER)
      _rename(writing, folder)
    _wait_for_all("renamed")
  except BaseException as e:
    if first:
      _remove(writing)
    if isinstance(e, OSError):
      raise WeightsError(f"{folder}: cannot be written: {one_line(e)}") from None
    raise
  return folder


def load_checkpoint(
  folder: str | os.PathLike[str], *, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
  """Configuration and parameters of a folder that `save_checkpoint` wrote, straight into another sharding.

  Raises:
    WeightsError: the folder is not one, or is damaged.
  """
  folder = _current(Path(folder).resolve())
  try:
    cfg = ModelConfig.from_json((folder / _CONFIG).read_text())
  except OSError as e:
    raise WeightsError(f"{folder / _CONFIG}: cannot be read: {e.strerror}") from None
  except (ValueError, TypeError) as e:
    raise WeightsError(f"{folder / _CONFIG}: {one_line(e)}") from None
  dtype = jnp.dtype(dtype)
  stored = OrbaxFolder(folder / _PARAMS)
  table = param_table(cfg)
  check_names(str(stored.folder), {name: name for name in table}, stored.arrays, [])
  for name, spec in table.items():
    if (shape := tuple(stored.arrays[name].shape)) != spec.shape:
      raise WeightsError(f"{stored.folder}: tensor {name!r} has shape {shape}, expected {spec.shape}")
  shardings = target_shardings(cfg, mesh)
  check_fits(str(folder), table, dtype, shardings)
  # A layer at a time: all at once, Orbax holds many arrays on the host beside those on the devices.
  groups: dict[str, dict[str, jax.ShapeDtypeStruct | None]] = {}
  for name, spec in table.items():
    target = jax.ShapeDtypeStruct(spec.shape, dtype, sharding=shardings[name])
    groups.setdefault(name.rpartition(".")[0] or name, {})[name] = target
  params: Params = {}
  for group in groups.values():
    params |= jax.block_until_ready(stored.restore(group))
  return cfg, params


def is_checkpoint(folder: str | os.PathLike[str]) -> bool:
  """Whether `folder` is one that `save_checkpoint` wrote."""
  folder = _current(Path(folder).resolve())
  return (folder / _CONFIG).is_file() and (folder / _PARAMS).is_dir()


def tokenizer_folder(folder: str | os.PathLike[str]) -> Path | None:
  """Where a checkpoint's tokenizer lies; None if it was saved without."""
  path = _current(Path(folder).resolve()) / _TOKENIZER
  return path if path.is_dir() else None


def _beside(folder: Path, state: str) -> Path:
  return folder.with_name(f".{folder.name}.{state}")


def _current(folder: Path) -> Path:
  """`folder`, or the older one that stepped aside for a replacement which was never completed."""
  aside = _beside(folder, "replaced")
  return aside if not folder.exists() and aside.exists() else folder


def _rename(writing: Path, folder: Path) -> None:
  aside = _beside(folder, "replaced")
  if folder.exists():
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
  try:
    os.rename(writing, folder)
  except OSError:
    if aside.exists():
      os.rename(aside, folder)
    raise
  shutil.rmtree(aside, ignore_errors=True)


def _remove(writing: Path) -> None:
  """Removes a failed save. Writes that were under way when it failed may still land, and make it anew."""
  for pause in (0.05, 0.1, 0.2, 0.4):
    shutil.rmtree(writing, ignore_errors=True)
    time.sleep(pause)
    if not writing.exists():
      return
  shutil.rmtree(writing, ignore_errors=True)  # the next save would remove the rest


def _wait_for_all(stage: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"pasta_jax checkpoint {stage}")
