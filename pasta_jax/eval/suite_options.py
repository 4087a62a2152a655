"""What an evaluation is asked for: the flags of eval.main as one checked dataclass."""

import dataclasses
from pathlib import Path
from typing import Any

from pasta_jax.decode.options import DTYPES
from pasta_jax.decode.requests import nearest
from pasta_jax.decode.rows import file_digest
from pasta_jax.lang.interpreter import FORKS
from pasta_jax.train.setup import find_file

SCHEMES = ("pred10", "fixed", "none", "max")


@dataclasses.dataclass(frozen=True)
class Options:
  """What is evaluated, and how; see the flags of eval.main.

  Raises:
    ValueError: values that cannot be, with one line for the user.
  """

  model: str
  adapter: str
  twin: str
  heldout: str
  output_dir: str
  prompts: str = ""
  holdout: float = 0.1
  num_prompts: int = 0
  timed: int = 0
  repeats: int = 1
  max_new_tokens: int = 512
  max_len: int = 2048
  batch_size: int = 1
  lanes: int = 8
  fork: str = "eager"
  positions: str = "pred10"
  fixed: int = 64
  dtype: str = "auto"
  resume: bool = False

  def __post_init__(self):
    for name, known in (("dtype", DTYPES), ("fork", FORKS), ("positions", SCHEMES)):
      if getattr(self, name) not in known:
        raise ValueError(f"--{nearest(name, getattr(self, name), known)}")
    if not self.output_dir:
      raise ValueError("--output_dir is needed: the answers are kept there")
    for name in ("adapter", "twin"):
      path = getattr(self, name)
      if not path:
        raise ValueError(f"--{name} is needed: an adapter's .npz file, or the folder of a trained model")
      if not Path(path).exists():
        raise ValueError(f"--{name} {path}: no such file or folder")
    if self.lanes < 2:
      raise ValueError("--lanes must be at least 2; the twin is the one with one lane")

  @property
  def run(self) -> dict[str, Any]:
    """What the rows of a run depend on; files by what they hold."""
    values = dataclasses.asdict(self)
    for name in ("output_dir", "resume", "batch_size"):
      del values[name]
    for name in ("adapter", "twin", "heldout", "prompts"):
      if Path(path := find_file(values[name])).is_file():
        values[name] = file_digest(path)
    return values

  @property
  def scheme(self) -> dict[str, Any]:
    """Fields of every request that may have marks."""
    return {"fork": self.fork, "positions": self.positions, "fixed": self.fixed}
