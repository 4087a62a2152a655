"""The report at the end of a run: report.md with its figures, and plots where matplotlib is installed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from pasta_jax.train.config import Config
from pasta_jax.train.loss import CLASSES
from pasta_jax.train.metrics import METRICS, read_metrics
from pasta_jax.train.rows import Report
from pasta_jax.train.setup import Data, eval_sample

REPORT = "report.md"


def write_report(
  folder: Path, config: Config, data: Data, evaluation: dict[str, float], best: dict[str, Any] | None
) -> list[Path]:
  """Writes report.md, loss.png, marks.png and speed.png into a run's folder; what was there is replaced.

  Args:
    evaluation: the last one's metrics.
    best: step and loss of the evaluation with the lowest loss.

  Returns:
    The files; without matplotlib the text alone.
  """
  if jax.process_index():
    return []
  lines = read_metrics(folder / METRICS)
  plots = _plots(folder, lines)
  figures = [(name, f"{value:.4f}") for name, value in evaluation.items()]
  if best:
    figures.append(("lowest loss", f"{best['loss']:.4f}, after step {best['step']}"))
  documents = sum(len(examples) for examples, _ in data.train)
  text = [
    f"# {'Twin' if config.twin else 'PASTA'}: {config.model}, {lines[-1]['step'] if lines else 0} steps",
    "",
    *_table(("held out", "value"), figures),
    *_table(_COUNTS, [_counts(report) for report in data.reports]),
    f"{documents} documents to train on, {len(data.held_out)} held out, "
    f"{len(eval_sample(data, config))} of them evaluated.",
    "",
    *(f"![{plot.stem}]({plot.name})\n" for plot in plots),
    *_table(("setting", "value"), [(name, f"`{value}`") for name, value in config.as_dict().items()]),
  ]
  path = folder / REPORT
  beside = folder / f".{REPORT}.writing"
  beside.write_text("\n".join(text) + "\n")
  os.replace(beside, path)
  return [path, *plots]


_COUNTS = (
  "data",
  "good rows",
  "with chunks",
  "repeated",
  "bad",
  "longer than a packed row",
  "with topics cut",
)


def _counts(report: Report) -> tuple[str, ...]:
  counts = (report.rows, report.split, report.repeated)
  places = (report.problems, report.too_long, report.cut)
  return (f"`{report.path}`", *map(str, counts), *(str(len(p)) for p in places))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  if not rows:
    return []
  body = [head, ["---"] * len(head), *rows]
  return [*(f"| {' | '.join(row)} |" for row in body), ""]


def series(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
  """Steps and values of one metric."""
  points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
  return [s for s, _ in points], [v for _, v in points]


# File, unit of the axis, and its curves: metric and label.
_FIGURES = (
  (
    "loss.png",
    "loss (nats per target)",
    [("loss", "all, training"), ("eval_loss", "all, held out")]
    + [(f"eval_loss_{name}", f"{name}, held out") for name in CLASSES],
  ),
  (
    "marks.png",
    "share, held out",
    [
      (f"eval_{what}_{mark}", f"{what} of {mark}")
      for mark in ("promise", "close", "sync")
      for what in ("precision", "recall")
    ],
  ),
  ("speed.png", "tokens/s", [("tokens_per_second", "training")]),
)


def _plots(folder: Path, lines: Sequence[dict[str, Any]]) -> list[Path]:
  try:
    import matplotlib
  except ImportError:
    return []
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  del matplotlib
  paths = []
  for file, unit, curves in _FIGURES:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, label in curves:
      steps, values = series(lines, name)
      if steps:
        axes.plot(steps, values, label=label, marker="." if name.startswith("eval_") else None)
    if not axes.lines:
      continue
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    path, beside = folder / file, folder / f".{file}.writing"
    figure.savefig(beside, format="png", dpi=110)
    os.replace(beside, path)
    paths.append(path)
  return paths
