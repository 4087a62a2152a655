"""What every launch sets up: where compiled programs are kept, by default and otherwise."""

import jax
import pytest

from pasta_jax import runtime
from pasta_jax.model.weights import load_model

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
