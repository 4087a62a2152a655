"""What every launch sets up once: the compilation cache, signals, the way errors end a program."""

import contextlib
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any


def default_cache_folder() -> str:
  """Where compiled programs are kept: JAX_COMPILATION_CACHE_DIR, else `pasta_jax/xla` in the user's cache."""
  if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return folder
  base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  return os.path.join(base, "pasta_jax", "xla")


def quiet_backends() -> None:
  """Keeps JAX from telling which accelerators are not there."""
  logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)


def use_compilation_cache(folder: str) -> None:
  """Keeps compiled programs in `folder` for the next process; "" turns that off.

  A folder that cannot be written costs a warning, not the run.
  """
  import jax  # here, so that programs without a model do not wait for it

  if not folder:
    jax.config.update("jax_enable_compilation_cache", False)
    return
  path = pathlib.Path(folder).expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
      raise PermissionError(f"no permission to write in {path}")
  except OSError as e:
    choose = "choose another folder with --compilation_cache or JAX_COMPILATION_CACHE_DIR"
    print(f"compilation cache is off: {e}; {choose}", file=sys.stderr)
    jax.config.update("jax_enable_compilation_cache", False)
    return
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def use_default_cache() -> None:
  """`use_compilation_cache` of the default folder, unless JAX was told where to keep programs, or not to."""
  import jax

  config: Any = jax.config
  if config.jax_enable_compilation_cache and config.jax_compilation_cache_dir is None:
    use_compilation_cache(default_cache_folder())


def on_huge_pages(
  enabled: str = "/sys/kernel/mm/transparent_hugepage/enabled", libc: str = "glibc 2.35"
) -> None:
  """Starts this program anew with an allocator that asks for huge pages, where that changes something.

  A training step on CPU goes through gigabytes of fresh memory: on small pages it takes 1.1x to 1.2x the time
  (docs/performance.md). glibc reads the setting when a process starts, hence the second start, of the same
  process with the same arguments; to be called first, under `if __name__ == "__main__"`. GLIBC_TUNABLES with
  a glibc.malloc.hugetlb of the user's own stays as it is. Where it cannot start anew it goes on as it is.

  Args:
    enabled: the kernel's setting: only under "madvise" must a program ask.
    libc: the first one that can.
  """
  key, tunables = "glibc.malloc.hugetlb", os.environ.get("GLIBC_TUNABLES", "")
  try:
    if "[madvise]" not in pathlib.Path(enabled).read_text() or key in tunables:
      return
    version = os.confstr("CS_GNU_LIBC_VERSION") or ""
  except (OSError, ValueError):  # another system, another libc
    return
  if _numbers(version) < _numbers(libc):
    return
  os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{key}=1")))
  with contextlib.suppress(OSError):  # it is only slower without
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _numbers(version: str) -> tuple[int, ...]:
  return tuple(int(n) for n in version.rpartition(" ")[2].split(".") if n.isdigit())


class Terminated(KeyboardInterrupt):
  """SIGTERM, as an exception, so that a run ends the way it does at Ctrl-C: with its rows kept."""


@contextlib.contextmanager
def terminate_cleanly() -> Iterator[None]:
  """Within, SIGTERM raises `Terminated` in the main thread."""

  def on_term(*_: Any) -> None:
    raise Terminated

  old = signal.signal(signal.SIGTERM, on_term)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, old)


def run_main(main: Callable[[], None]) -> int:
  """Runs a program; an error that a user can mend ends it with one line on stderr.

  Returns:
    The exit status: 0, 1 for an error, 130 after Ctrl-C, 143 after SIGTERM.
  """
  quiet_backends()
  try:
    with terminate_cleanly():
      main()
      sys.stdout.flush()
    return 0
  except Terminated as e:
    print(f"terminated{_detail(e)}", file=sys.stderr)
    return 143
  except KeyboardInterrupt as e:
    print(f"interrupted{_detail(e)}", file=sys.stderr)
    return 130
  except BrokenPipeError:
    # The reader of our output is gone; keep Python from complaining about it again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except (ValueError, OSError, ImportError) as e:
    print(f"error: {e}", file=sys.stderr)
    return 1
  except RuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):  # a device without memory left; all else is a defect of ours
      raise
    print(f"error: not enough memory: {' '.join(str(e).split())[:300]}", file=sys.stderr)
    return 1


def _detail(e: BaseException) -> str:
  return f": {e}" if str(e) else ""
