"""Teacher-forced evaluation on held-out documents: loss by class, placement of marks, promised lengths."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pasta_jax.lang.marks import ControlIds
from pasta_jax.lang.sequence import NO_TARGET, Target
from pasta_jax.train.packing import Batch, Example, fill, pack


def eval_batches(examples: Sequence[Example], batch: int, length: int) -> list[Batch]:
  """All examples, packed in order."""
  rows = [[examples[i] for i in row] for row in pack([e.room for e in examples], length)]
  return [fill(rows[at : at + batch], batch, length) for at in range(0, len(rows), batch)]


@dataclasses.dataclass
class Tally:
  """Sums over batches.

  Attributes:
    nll, tokens: by class of target, summed nats and targets.
    hits, guessed, there: by mark, targets where it is the likeliest id and the target / the likeliest id /
      the target.
    length_error: |likeliest length - true promise| where both are lengths, in ids.
  """

  nll: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(Target)))
  tokens: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(Target)))
  hits: dict[str, int] = dataclasses.field(default_factory=dict)
  guessed: dict[str, int] = dataclasses.field(default_factory=dict)
  there: dict[str, int] = dataclasses.field(default_factory=dict)
  length_error: list[int] = dataclasses.field(default_factory=list)

  def add(self, batch: Batch, per_token: dict[str, np.ndarray], controls: ControlIds | None) -> None:
    """One batch.

    Args:
      batch: see packing.fill.
      per_token: `nll` and `best`, of the batch's size.
    """
    target, kind = batch["target"].ravel(), batch["kind"].ravel()
    real = target != NO_TARGET
    target, kind = target[real], kind[real]
    nll, best = (np.asarray(per_token[n]).reshape(-1)[real] for n in ("nll", "best"))
    self.nll += np.bincount(kind, weights=nll, minlength=len(Target))
    self.tokens += np.bincount(kind, minlength=len(Target))
    if controls is None:
      return
    for name, mark in (("promise", controls.promise), ("close", controls.close), ("sync", controls.sync)):
      for count, mine in (
        (self.hits, (target == mark) & (best == mark)),
        (self.guessed, best == mark),
        (self.there, target == mark),
      ):
        count[name] = count.get(name, 0) + int(mine.sum())
    lens = np.asarray(controls.lens)
    both = np.isin(target, lens) & np.isin(best, lens)
    promised = {i: controls.length(i) for i in controls.lens}
    errors = [abs(promised[b] - promised[t]) for b, t in zip(best[both].tolist(), target[both].tolist())]
    self.length_error += errors

  @property
  def loss(self) -> float:
    """Mean over all targets, nats."""
    return float(self.nll.sum() / max(self.tokens.sum(), 1))

  def metrics(self) -> dict[str, float]:
    """Everything as one flat dict; what has no tokens is left out.

    Returns:
      loss; loss_text ... by class; for each mark precision_* and recall_*; length_error (ids, mean absolute).
    """
    out = {"loss": self.loss}
    for target in Target:
      if self.tokens[target]:
        out[f"loss_{target.name.lower()}"] = float(self.nll[target] / self.tokens[target])
    for name in self.there:
      if self.guessed[name]:
        out[f"precision_{name}"] = self.hits[name] / self.guessed[name]
      if self.there[name]:
        out[f"recall_{name}"] = self.hits[name] / self.there[name]
    if self.length_error:
      out["length_error"] = float(np.mean(self.length_error))
    return out


def evaluate(
  batches: Iterable[Batch],
  run: Callable[[Batch], dict[str, Any]],
  controls: ControlIds | None,
) -> dict[str, float]:
  """Metrics over `batches`.

  Args:
    run: from a host's batch to `nll` and `best` of each token, on the host.
    controls: ids of the marks; None where there are none.
  """
  tally = Tally()
  for batch in batches:
    tally.add(batch, run(batch), controls)
  return tally.metrics()
