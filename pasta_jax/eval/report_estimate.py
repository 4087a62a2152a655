"""Figures with confidence intervals: a percentile bootstrap over prompts."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95

# From columns of shape (...)xN to (...): reduces the last axis, over prompts.
Statistic = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A figure over N prompts.

  Attributes:
    value: None where there is nothing to tell (no chunk, say).
    low, high: bounds of the 95 % interval; None below two prompts.
    n: prompts.
  """

  value: float | None
  low: float | None = None
  high: float | None = None
  n: int = 0

  def to_json(self) -> dict[str, float | int | None]:
    return dataclasses.asdict(self)


def estimate(statistic: Statistic, *columns: Sequence[float]) -> Estimate:
  """A statistic of columns that have one value for each prompt.

  Prompts are drawn with replacement, always the same ones.
  """
  data = [np.asarray(c, np.float64) for c in columns]
  n = len(data[0])
  if not n:
    return Estimate(None)
  with np.errstate(divide="ignore", invalid="ignore"):
    value = float(statistic(*data))
    if not np.isfinite(value):
      return Estimate(None, n=n)
    if n < 2:
      return Estimate(value, n=n)
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    samples = statistic(*(c[drawn] for c in data))
  samples = samples[np.isfinite(samples)]
  low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  return Estimate(value, float(low), float(high), n)


def mean(x: np.ndarray) -> np.ndarray:
  return x.mean(-1)


def geometric_mean(x: np.ndarray) -> np.ndarray:
  return np.exp(np.log(x).mean(-1))


def ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
  """Sum over sum, e.g. nats per token over all answers."""
  return over.sum(-1) / under.sum(-1)


def ratio_of_ratios(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
  """(a / b) / (c / d), of sums."""
  return ratio(a, b) / ratio(c, d)
