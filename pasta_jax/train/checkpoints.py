"""Checkpoints of a run: everything that an exact resume needs, kept by number and by best, written beside.

  workdir/
    run.json          the configuration and digests of the data: whose folder this is
    .run.lock         empty; locked by process 0 as long as a run is under way
    checkpoints/N/    after N steps: `state` (arrays, in any sharding) and `host` (JSON: loader, watch, ...)

Orbax writes a checkpoint in the background under a temporary name and renames it when it is whole; what a
killed run left half-written is removed by the next. Restoring takes the shardings of the mesh at hand.
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from pasta_jax.decode.rows import file_digest
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.orbax_io import translated
from pasta_jax.train.config import Config
from pasta_jax.train.metrics import METRICS
from pasta_jax.train.step import State

_FOLDER, _RUN, _LOCK = "checkpoints", "run.json", ".run.lock"
_BESIDE = f".{_RUN}.writing"

# What may differ between the parts of one run: how it is computed and watched, not what is computed.
_FREE = frozenset(
  ("mesh", "accumulate", "remat", "attention", "logits_tokens", "log_every", "save_every", "keep", "diverged")
)


class FolderError(ValueError):
  """A folder that a run cannot use."""


class _OtherRunError(FolderError):
  """A folder of a run with another configuration or other data."""


class Checkpoints:
  """The checkpoints of one folder. Saving is asynchronous; use as a context manager.

  Attributes:
    best: steps of the checkpoint that is kept beside the newest ones; to be set.

  Raises:
    WeightsError: checkpoints cannot be read or written.
  """

  def __init__(self, folder: str | os.PathLike[str], keep: int):
    import orbax.checkpoint as ocp

    self.folder = Path(folder).resolve() / _FOLDER
    self.best: int | None = None
    self._logger = logging.getLogger("absl")
    self._level = self._logger.level
    self._logger.setLevel(logging.WARNING)  # Orbax tells of every file, from threads of its own
    with self._errors("cannot be opened"):
      self._manager = ocp.CheckpointManager(
        self.folder,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=_Keep(self, keep), cleanup_tmp_directories=True, enable_async_checkpointing=True
        ),
      )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    # After an error the checkpoint under way is still finished, but its own failure must not hide the cause.
    with (
      contextlib.suppress(WeightsError) if kind else contextlib.nullcontext(),
      self._errors("cannot be written"),
    ):
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()
        self._logger.setLevel(self._level)

  @contextlib.contextmanager
  def _errors(self, what: str) -> Iterator[None]:
    with translated(self.folder, what):
      yield

  @property
  def latest(self) -> int | None:
    """Steps of the newest whole checkpoint."""
    return self._manager.latest_step()

  @property
  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: State, host: dict[str, Any]) -> None:
    """Begins to save; the arrays are copied before this returns.

    Args:
      host: plain JSON values.

    Raises:
      WeightsError: this one, or the one before it, cannot be written.
    """
    import orbax.checkpoint as ocp

    with self._errors("cannot be written"):
      if step in self._manager.all_steps():
        return
      args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), host=ocp.args.JsonSave(host))
      self._manager.save(step, args=args, force=True)

  def wait(self) -> None:
    """Until what was saved is on the disk.

    Raises:
      WeightsError: it cannot be written.
    """
    with self._errors("cannot be written"):
      self._manager.wait_until_finished()

  def restore(self, step: int, abstract: State) -> tuple[State, dict[str, Any]]:
    """The state and the JSON values after `step` steps.

    Args:
      abstract: shapes and shardings, see step.Program.abstract_state.
    """
    import orbax.checkpoint as ocp

    with self._errors(f"step {step} cannot be read"):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(
            abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
          ),
          host=ocp.args.JsonRestore(),
        ),
      )
    return restored["state"], dict(restored["host"])


@dataclasses.dataclass
class _Keep:
  """What Orbax keeps: the newest `count`, and the best."""

  checkpoints: Checkpoints
  count: int

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    del context
    steps = [c.step for c in checkpoints]
    newest = sorted(steps)[-self.count :]
    return [step in newest or step == self.checkpoints.best for step in steps]


@contextlib.contextmanager
def claim(folder: str | os.PathLike[str], config: Config, files: list[str]) -> Iterator[bool]:
  """Makes `folder` the run's, or finds that it is; within, no other run can have it.

  Args:
    files: of the data, and of the adapter that the run goes on from.

  A claim that never came to a checkpoint or a line of metrics is replaced by the next.

  Yields:
    Whether the run was begun before.

  Raises:
    FolderError: the folder belongs to another run, or holds something else, or a run is under way in it.
  """
  folder, first = Path(folder), jax.process_index() == 0
  if not first:
    _wait_for_first()  # it makes the folder, or fails and ends the run for all
  with contextlib.ExitStack() as held:
    try:
      run = {"config": config.as_dict(), "data": {name: _digest(name) for name in files}}
      _make(folder)
      if first:
        held.enter_context(_locked(folder))
      begun = _claim(folder, run)
    finally:
      if first:
        _wait_for_first()
    yield begun


def _wait_for_first() -> None:
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("pasta_jax run claimed")


def _make(folder: Path) -> None:
  """Makes the folder, unless it is there and free or a run's."""
  with _writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    names = set(os.listdir(folder))
  if _RUN not in names and names - {_LOCK, _BESIDE}:
    raise FolderError(f"--workdir {folder} holds files, but no run; choose another folder")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
  """Holds the folder's lock, which the system takes back however the process ends.

  The file stays: removed, it could be locked by one run while another locks its successor.
  """
  try:
    import fcntl
  except ImportError:  # Windows has none
    yield
    return
  with _writing(folder):
    file = (folder / _LOCK).open("a")
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise FolderError(
        f"a run is under way in {folder}; wait for it or stop it, or choose another --workdir"
      ) from None
    except OSError:
      pass  # a file system without locks
    yield


def _claim(folder: Path, run: dict[str, Any]) -> bool:
  path, begun, write = folder / _RUN, False, True
  if path.exists():
    try:
      write = _check_same(folder, path, run)
      begun = True
    except _OtherRunError:
      # A start that failed has nothing to protect: what was wrong with it may be mended.
      if jax.process_index() or _begun(folder):
        raise
  if write:
    _write_run(folder, run)
  return begun


def config_of_run(folder: Path) -> dict[str, Any] | None:
  """The configuration of the run in a folder; None where there is none that can be read."""
  try:
    return dict(json.loads((folder / _RUN).read_text())["config"])
  except (OSError, ValueError, LookupError, TypeError):
    return None


def _write_run(folder: Path, run: dict[str, Any]) -> None:
  beside = folder / _BESIDE
  try:
    with _writing(folder):
      beside.write_text(json.dumps(run, indent=1))
      os.replace(beside, folder / _RUN)
  except FolderError:
    with contextlib.suppress(OSError):
      beside.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
  try:
    yield
  except OSError as e:
    raise FolderError(f"--workdir {folder} cannot be written: {e.strerror or e}") from None


def _begun(folder: Path) -> bool:
  """Whether a run came as far as a whole checkpoint or a line of metrics."""
  metrics, checkpoints = folder / METRICS, folder / _FOLDER
  if metrics.exists() and metrics.stat().st_size:
    return True
  return checkpoints.is_dir() and any(p.name.isdigit() for p in checkpoints.iterdir())


def _digest(name: str) -> str:
  try:
    return file_digest(name)
  except FileNotFoundError:
    raise FolderError(
      f"{name}: no such file; config.data or config.adapter names it: make it first (an adapter: train it),"
      " or name another"
    ) from None


def _check_same(folder: Path, path: Path, run: dict[str, Any]) -> bool:
  """Whether the run in the folder is a shorter one that this one goes on from.

  Raises:
    FolderError: it is another run.
  """
  try:
    before = json.loads(path.read_text())
    theirs, data = Config().as_dict() | dict(before["config"]), dict(before["data"])
  except (OSError, ValueError, LookupError, TypeError) as e:
    raise FolderError(f"{path}: cannot be read ({e}); choose another --workdir") from None
  mine = run["config"]
  longer = _has_more_cycles(mine, theirs)
  free = _FREE | {"steps", "cycles"} if longer else _FREE
  for name, value in mine.items():
    if name not in free and theirs.get(name) != value:
      raise _OtherRunError(
        f"--workdir {folder} belongs to another run: its config.{name} is {theirs.get(name)!r}, "
        f"this one's {value!r}; choose another folder"
      )
  if list(data.values()) != list(run["data"].values()):
    raise _OtherRunError(
      f"--workdir {folder} belongs to a run on other data, or from another adapter; choose another folder"
    )
  return longer


def _has_more_cycles(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
  """Whether a run begins as the other one, whole: the same cycles of the learning rate, and more of them."""
  try:
    alike = mine["steps"] * theirs["cycles"] == theirs["steps"] * mine["cycles"] > 0
    return alike and mine["cycles"] > theirs["cycles"]
  except TypeError:  # run.json was changed by hand
    return False
