"""What every launch sets up: where compiled programs are kept, by default and otherwise; huge pages."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from pasta_jax import runtime
from pasta_jax.model.weights import load_model

REPO = Path(__file__).resolve().parents[1]
DIR, ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"


@pytest.fixture
def told(monkeypatch, tmp_path):
  """What JAX is told, as where nobody has told it anything; put back at the end."""
  names = (DIR, ENABLED, "jax_persistent_cache_min_compile_time_secs")
  before = {name: getattr(jax.config, name) for name in names}
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  jax.config.update(DIR, None)
  yield lambda name: getattr(jax.config, name)
  for name, value in before.items():
    jax.config.update(name, value)


def load():
  """What the first loading of a model does, whatever comes of it."""
  with pytest.raises(ValueError, match="no such file"):
    load_model("/nowhere/model.gguf")


def test_loading_a_model_keeps_programs_in_the_users_cache(told, tmp_path):
  load()
  assert told(DIR) == str(tmp_path / "cache" / "pasta_jax" / "xla") == runtime.default_cache_folder()
  assert (tmp_path / "cache" / "pasta_jax" / "xla").is_dir()
  assert told(ENABLED)


def test_loading_a_model_leaves_what_jax_was_told_alone(told, tmp_path):
  jax.config.update(DIR, str(tmp_path / "mine"))
  load()
  assert told(DIR) == str(tmp_path / "mine")
  jax.config.update(DIR, None)
  jax.config.update(ENABLED, False)
  load()
  assert told(DIR) is None
  assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_the_one_that_jax_is_told_in_the_environment(told, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/some/where")
  assert runtime.default_cache_folder() == "/some/where"


def test_an_empty_folder_turns_the_cache_off_for_the_model_too(told, tmp_path):
  runtime.use_compilation_cache("")
  load()
  assert not told(ENABLED)
  assert told(DIR) is None
  assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_one_line(told, tmp_path, capsys):
  (tmp_path / "file").write_text("")
  runtime.use_compilation_cache(str(tmp_path / "file" / "xla"))
  assert not told(ENABLED)
  err = capsys.readouterr().err
  assert err.startswith("compilation cache is off: ")
  assert "--compilation_cache or JAX_COMPILATION_CACHE_DIR" in err
  assert len(err.splitlines()) == 1


def test_a_program_starts_anew_for_huge_pages_once_where_the_kernel_must_be_asked(tmp_path):
  enabled = tmp_path / "enabled"
  program = tmp_path / "program.py"
  program.write_text(
    "import os, sys\nfrom pasta_jax import runtime\n"
    f"runtime.on_huge_pages({str(enabled)!r}, sys.argv[1])\n"
    "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[2:])\n"
  )

  def start(kernel: str, libc: str = "glibc 2.0", **env) -> list[str]:
    enabled.write_text(kernel)
    command = [sys.executable, "-X", "dev", str(program), libc, "--a=b c"]
    inherited = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    env = inherited | {"PYTHONPATH": str(REPO)} | env
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    pid, said = out.strip().split(maxsplit=1)
    assert int(pid) == process.pid  # the same process: signals go where they should
    return said

  asked = "always [madvise] never"
  assert start("[always] madvise never") == "None ['--a=b c']"
  assert start(asked, libc="glibc 999.0") == "None ['--a=b c']"
  own = "glibc.malloc.hugetlb=0"
  assert start(asked, GLIBC_TUNABLES=own) == f"{own} ['--a=b c']"
  if platform.libc_ver()[0] == "glibc":
    assert start(asked) == "glibc.malloc.hugetlb=1 ['--a=b c']"
    other = "glibc.malloc.check=0"
    assert start(asked, GLIBC_TUNABLES=other) == f"{other}:glibc.malloc.hugetlb=1 ['--a=b c']"
