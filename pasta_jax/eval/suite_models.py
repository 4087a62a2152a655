"""The three models of an evaluation: PASTA, its twin and the unmodified one; one is in memory at a time."""

import gc
from pathlib import Path
from typing import Any

from pasta_jax.decode.engine import Engine
from pasta_jax.eval.suite_options import Options
from pasta_jax.model.adapter import adapter_notes, load_adapter, with_adapter
from pasta_jax.model.dtypes import resolve_dtype
from pasta_jax.model.marks import with_marks
from pasta_jax.model.weights import LoadedModel, load_model
from pasta_jax.train.checkpoints import config_of_run

WHO = ("pasta", "twin", "base")


class Models:
  """Loads a model when it is asked for, and lets the one before go.

  Args:
    options: `adapter` and `twin` are adapters' files, or folders of models trained in full.

  Attributes:
    notes: what the user should know of the adapters, line by line.
    tighten: PASTA learned documents whose chunks begin with their list markers, see lang/tighten.py.

  Raises:
    ValueError: an adapter is damaged, of the wrong kind, or was trained on what would be asked.
  """

  def __init__(self, options: Options):
    self._options = options
    self._paths = {"pasta": options.adapter, "twin": options.twin}
    self._adapters = {who: load_adapter(p) for who, p in self._paths.items() if p.endswith(".npz")}
    self._who: str | None = None
    self._held: LoadedModel | None = None
    self._engines: dict[tuple[int, int], Engine] = {}
    self.notes: list[str] = []
    self.tighten = False
    for who, path in self._paths.items():
      adapter = self._adapters.get(who)
      if adapter is not None:
        self._check(who, adapter.marks, adapter.metadata.get("config"))
        self.notes += adapter_notes(path, adapter, options.model, options.scheme if who == "pasta" else {})
      elif (trained := config_of_run(Path(path).parent)) is not None:
        self._check(who, not trained.get("twin", who != "pasta"), trained)
      else:
        self.notes.append(f"note: {path} does not say which prompts it was trained on")

  def _check(self, who: str, marks: bool, trained: Any) -> None:
    path, o = self._paths[who], self._options
    if marks != (who == "pasta"):
      what = "was trained on marks: it is no twin" if marks else "was not trained on marks"
      raise ValueError(f"{path}: {what}; --adapter is PASTA's file, --twin the twin's")
    if not isinstance(trained, dict):
      return
    if who == "pasta":
      self.tighten = bool(trained.get("tighten", False))
    if o.holdout > trained.get("holdout", 1.0):
      raise ValueError(
        f"{path}: {trained['holdout']:g} of the prompts were held out from its training, so that"
        f" --holdout={o.holdout:g} would ask some that it was trained on"
      )

  def get(self, who: str) -> LoadedModel:
    """One of `WHO`; PASTA's has ids for the marks.

    Raises:
      WeightsError: it cannot be loaded, or the adapter does not fit.
      ValueError: it has no tokenizer.
    """
    if self._held is None or self._who != who:
      self._held, self._engines = None, {}
      gc.collect()
      self._held, self._who = self._load(who), who
    return self._held

  def engine(self, who: str, batch_size: int, lanes: int) -> Engine:
    """An engine of `get(who)`."""
    model = self.get(who)
    if (batch_size, lanes) not in self._engines:
      self._engines[batch_size, lanes] = Engine(
        model, batch_size=batch_size, max_len=self._options.max_len, lanes=lanes
      )
    return self._engines[batch_size, lanes]

  def _load(self, who: str) -> LoadedModel:
    adapter, path = self._adapters.get(who), self._paths.get(who)
    source = path if path and adapter is None else self._options.model
    model = load_model(source, dtype=resolve_dtype(self._options.dtype))
    if model.tokenizer is None:
      raise ValueError(f"{source} has no tokenizer, so it cannot answer a prompt")
    if adapter is not None:
      model = with_adapter(model, adapter)
    return with_marks(model) if who == "pasta" else model
