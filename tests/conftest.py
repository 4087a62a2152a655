"""What every test runs under: ranks never broadcast silently, compiled programs are kept for the next run."""

import os
from pathlib import Path

import jax

# In the environment for processes that tests start; by `update` for this one, which has imported jax already.
_SETTINGS = {
  "jax_numpy_rank_promotion": "raise",
  "jax_compilation_cache_dir": str(Path(__file__).parent.parent / ".pytest_cache" / "xla"),
  "jax_persistent_cache_min_compile_time_secs": 0.1,
}
# Tests compile far more than they run: less optimised programs take two thirds of the time in all.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

for _name, _value in _SETTINGS.items():
  os.environ[_name.upper()] = str(_value)
  jax.config.update(_name, _value)
