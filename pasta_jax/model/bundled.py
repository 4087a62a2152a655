"""The adapters that come with the package, by name: "pasta" and "twin" of the models that have them.

They lie in `adapters/MODEL-NAME.npz`; docs/model_card.md tells how they were made and what they cannot do.
"""

from pathlib import Path

from pasta_jax.model.errors import WeightsError

FOLDER = Path(__file__).with_name("adapters")
NAMES = ("pasta", "twin")


def bundled_models() -> list[str]:
  """Models that have adapters here, as `load_model` names them."""
  return sorted({path.stem.rpartition("-")[0] for path in FOLDER.glob("*.npz")})


def find_adapter(name: str, model: str) -> str:
  """The file that a flag means: the bundled one of `NAMES` for a model, or what is a path already.

  Args:
    name: "pasta", "twin", or a path.
    model: as `load_model` names it.

  Raises:
    WeightsError: no adapter of that name comes with the package for this model.
  """
  if name not in NAMES:
    return name
  path = FOLDER / f"{model}-{name}.npz"
  if not path.is_file():
    have = ", ".join(bundled_models()) or "none"
    raise WeightsError(
      f"no {name!r} adapter comes with the package for {model} (there is one for: {have}); "
      "give an adapter's .npz file, as train.main writes it"
    )
  return str(path)
