"""From rows of answers to the figures of a set of prompts; docs/evaluation.md says what each means."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from pasta_jax.eval.report_estimate import Estimate, estimate, geometric_mean, mean, ratio, ratio_of_ratios
from pasta_jax.eval.suite_models import WHO
from pasta_jax.eval.suite_sets import PromptSet
from pasta_jax.eval.suite_store import Row

CLOSE = 10  # a promise within so many ids of the truth is near enough

Figures = dict[str, Any]


def set_figures(
  prompts: PromptSet,
  answers: dict[str, list[Row]],
  likelihoods: dict[str, list[Row]],
  text_losses: dict[str, list[Row]],
  times: dict[int, Row],
) -> Figures:
  """All figures of one set; numbers are `Estimate`s.

  Args:
    answers: of "pasta", "twin" and "base", see suite_answers.answer_row.
    likelihoods: of the same, {"nll", "tokens"} of each answer under the unmodified model.
    text_losses: of "pasta" and "twin", {"nll", "tokens"} of each reference; empty where there are none.
    times: by number of the prompt, see suite_times.
  """
  figures: Figures = {"prompts": len(prompts.items), "path": prompts.path}
  if prompts.has_references:
    figures["reference_splits"] = sum(bool(i.document and i.document.splits) for i in prompts.items)
  for who in WHO:
    figures[who] = _answer_figures(answers[who], likelihoods[who])
  figures["pasta"] |= _split_figures(prompts, answers["pasta"])
  if text_losses:
    figures |= {"text_loss": _text_losses(text_losses)}
  figures["speed"] = _speed_figures(prompts, answers["pasta"], times)
  return figures


def _column(rows: Sequence[Row], name: str) -> list[float]:
  return [float(row[name]) for row in rows]


def _answer_figures(rows: Sequence[Row], likelihoods: Sequence[Row]) -> Figures:
  return {
    "valid": estimate(mean, [not row["problems"] for row in rows]),
    "plain_tokens": estimate(mean, _column(rows, "plain_tokens")),
    "drawn_tokens": estimate(mean, _column(rows, "tokens")),
    "repetition": estimate(ratio, _column(rows, "repeated_grams"), _column(rows, "grams")),
    "loops": estimate(mean, _column(rows, "loops")),
    "log_likelihood": estimate(
      ratio, [-x for x in _column(likelihoods, "nll")], _column(likelihoods, "tokens")
    ),
    "finish_reasons": dict(sorted(collections.Counter(row["finish_reason"] for row in rows).items())),
  }


def _split_figures(prompts: PromptSet, rows: Sequence[Row]) -> Figures:
  splits = [row["chunks"] > 0 for row in rows]
  split_rows = [row for row in rows if row["chunks"]]
  errors = [np.asarray(row["position_error"], np.float64) for row in rows]
  counts = _column(rows, "chunks")
  figures: Figures = {"split": estimate(mean, splits)}
  if prompts.has_references:
    due = [bool(i.document and i.document.splits) for i in prompts.items]
    figures["split_where_reference_splits"] = estimate(mean, [s for s, d in zip(splits, due) if d])
    figures["split_where_reference_does_not"] = estimate(mean, [s for s, d in zip(splits, due) if not d])
  return figures | {
    "chunks": estimate(mean, counts),
    "rounds": estimate(mean, _column(rows, "rounds")),
    "chunks_where_split": estimate(mean, _column(split_rows, "chunks")),
    "rounds_where_split": estimate(mean, _column(split_rows, "rounds")),
    "position_error": {
      "mean": estimate(ratio, [float(e.sum()) for e in errors], counts),
      "absolute": estimate(ratio, [float(np.abs(e).sum()) for e in errors], counts),
      "within_10": estimate(ratio, [float((np.abs(e) <= CLOSE).sum()) for e in errors], counts),
    },
  }


def _text_losses(rows: dict[str, list[Row]]) -> Figures:
  pasta, twin = (
    (_column(rows[who], "nll"), _column(rows[who], "tokens")) for who in ("pasta", "twin")
  )  # fmt: skip
  return {
    "pasta": estimate(ratio, *pasta),
    "twin": estimate(ratio, *twin),
    "pasta_over_twin": estimate(ratio_of_ratios, *pasta, *twin),
    "pasta_over_twin_same_text": estimate(ratio, pasta[0], twin[0]),
  }


def _speed_figures(prompts: PromptSet, rows: Sequence[Row], times: dict[int, Row]) -> Figures:
  """Speedups, geometric means over some prompts: those that the rest of the name tells."""
  whom: dict[str, set[int]] = {
    "all": set(range(len(rows))),
    "where_split": {n for n, row in enumerate(rows) if row["chunks"]},
  }
  if prompts.has_references:
    whom["where_reference_splits"] = {
      n for n, i in enumerate(prompts.items) if i.document and i.document.splits
    }
  theoretical = {n: row["theoretical_speedup"] for n, row in enumerate(rows) if row["plain_tokens"]}
  realised = _ratios(times, "same_text", "decode_seconds")
  by_name = {
    "theoretical": theoretical,
    "realised": realised,
    "realised_of_theoretical": {n: r / theoretical[n] for n, r in realised.items() if n in theoretical},
    "twin_seconds": _ratios(times, "twin", "seconds"),
  }
  figures: Figures = {"timed": len(times)}
  for name, values in by_name.items():
    figures[name] = {
      some: estimate(geometric_mean, [v for n, v in values.items() if n in mine])
      for some, mine in whom.items()
    }
  return figures


def _ratios(times: dict[int, Row], name: str, key: str) -> dict[int, float]:
  """Seconds of `name` over those of PASTA's answer, where both were measured."""
  return {
    n: row[name][key] / row["pasta"][key]
    for n, row in times.items()
    if name in row and "pasta" in row and row["pasta"][key] > 0 and row[name][key] > 0
  }


def to_json(value: Any) -> Any:
  """Figures as JSON values: an estimate is {"value", "low", "high", "n"}."""
  if isinstance(value, Estimate):
    return value.to_json()
  if isinstance(value, dict):
    return {k: to_json(v) for k, v in value.items()}
  return value
