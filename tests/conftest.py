"""What every test runs under: ranks never broadcast silently, compiled programs are kept for the next run.

The longest files come first: started last, one of them would keep one worker while the other one idles.
"""

import os
from pathlib import Path

import jax
import pytest

from tests.annotate_server import endpoint

# In the environment for processes that tests start; by `update` for this one, which has imported jax already.
_SETTINGS = {
  "jax_numpy_rank_promotion": "raise",
  "jax_compilation_cache_dir": str(Path(__file__).parent.parent / ".pytest_cache" / "xla"),
  "jax_persistent_cache_min_compile_time_secs": 0.1,
}
# Tests compile far more than they run: less optimised programs take two thirds of the time in all.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Longest first. A file whose programs are those of another one comes some places behind it.
_LONGEST = (
  "test_law", "test_models", "test_law_requests", "test_train_meshes", "test_train_step", "test_bundled",
  "test_interpreter", "test_train_run", "test_law_real", "test_main_pasta", "test_main", "test_law_devices",
  "test_engine", "test_weights_memory", "test_race", "test_eval_suite", "test_lora", "test_packed",
  "test_sharded_decode",
)  # fmt: skip

for _name, _value in _SETTINGS.items():
  os.environ[_name.upper()] = str(_value)
  jax.config.update(_name, _value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  place = {name: n for n, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture
def server():
  """A chat endpoint on loopback, see annotate_server.py."""
  with endpoint() as it:
    yield it
