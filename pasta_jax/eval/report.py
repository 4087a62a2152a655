"""The figures of stage 1 as a table for people; JSON for programs is `report_figures.to_json` of the same."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from pasta_jax.eval.report_estimate import LEVEL, Estimate
from pasta_jax.eval.report_figures import Figures
from pasta_jax.eval.suite_models import WHO

_NAME, _CELL = 34, 27


def check_json_path(path: str, made: str = "") -> None:
  """Raises ValueError where the figures could not be written, before anything is measured.

  Args:
    made: a folder that will be there by then.
  """
  file = pathlib.Path(path)
  there = file.parent.is_dir() or (made and file.parent == pathlib.Path(made))
  if path and (file.is_dir() or not there):
    what = "is a folder" if file.is_dir() else f"{file.parent} is no folder; make it first"
    raise ValueError(f"--json {path}: {what}")


def check_valid(figures: Figures) -> None:
  """Raises ValueError where an answer's document is not valid, which decoding rules out."""
  bad = [
    f"{100 * (1 - one['pasta']['valid'].value):.1f} % of {name}"
    for name, one in figures["sets"].items()
    if one["pasta"]["valid"].value != 1
  ]
  if bad:
    raise ValueError(
      f"PASTA's documents are not all valid: {', '.join(bad)} are not; the page of answers marks them"
      " 'invalid' and says why"
    )


def table(figures: Figures) -> str:
  """All sets, one below the other.

  Args:
    figures: as suite_stage1.run returns them.
  """
  s = figures["settings"]
  lines = [
    f"stage 1: {s['model']}, PASTA {s['adapter']}, twin {s['twin']}",
    f"greedy, at most {s['max_new_tokens']} tokens, {s['lanes']} lanes, {s['positions']}, {s['fork']};"
    f" {figures['device']}, {figures['dtype']}; in brackets {LEVEL:.0%} intervals over prompts",
  ]
  for name, one in figures["sets"].items():
    lines += ["", *_set_lines(name, one)]
  return "\n".join(lines)


def _set_lines(name: str, f: Figures) -> list[str]:
  references = f", {f['reference_splits']} of their references split" if "reference_splits" in f else ""
  head = f"{name}: {f['prompts']} prompts{references}"
  lines = [head, _line("", [w.upper() if w == "pasta" else w for w in WHO])]

  def each(label: str, key: str, show: Callable[[Estimate], str]) -> None:
    lines.append(_line(label, [show(f[who][key]) for who in WHO]))

  p = f["pasta"]
  each("documents valid", "valid", _percent)
  lines.append(_line("answers that split", [_percent(p["split"])]))
  if "split_where_reference_splits" in p:
    lines.append(_line("  where the reference splits", [_percent(p["split_where_reference_splits"])]))
    lines.append(_line("  where it does not", [_percent(p["split_where_reference_does_not"])]))
  lines.append(
    _line("chunks per answer, per split one", [_number(p["chunks"]), _number(p["chunks_where_split"])])
  )
  lines.append(
    _line("rounds per answer, per split one", [_number(p["rounds"]), _number(p["rounds_where_split"])])
  )
  error = p["position_error"]
  lines.append(_line("promised minus true length, mean", [_number(error["mean"], 1)]))
  lines.append(_line("  absolute", [_number(error["absolute"], 1)]))
  lines.append(_line("  within 10", [_percent(error["within_10"])]))
  each("tokens of the plain answer", "plain_tokens", lambda e: _number(e, 1))
  each("repeated 4-grams", "repetition", _percent)
  each("answers that loop", "loops", _percent)
  each("log-likelihood per token, nats", "log_likelihood", lambda e: _number(e, 3))
  lines.append(_line("ended by", [_reasons(f[who]["finish_reasons"]) for who in WHO]))
  if loss := f.get("text_loss"):
    cells = [_number(loss["pasta"], 3), _number(loss["twin"], 3)]
    lines.append(_line("text loss on references, nats", cells))
    lines.append(_line("  PASTA over twin", [_number(loss["pasta_over_twin"], 4)]))
    lines.append(_line("  the same, of whole texts", [_number(loss["pasta_over_twin_same_text"], 4)]))
  return lines + _speed_lines(f["speed"])


_SOME = {
  "where_reference_splits": "reference splits", "where_split": "answer splits", "all": "all prompts"
}  # fmt: skip


def _speed_lines(speed: Figures) -> list[str]:
  columns = [some for some in _SOME if some in speed["theoretical"]]
  rows = [
    ("theoretical speedup", "theoretical"),
    ("realised speedup, same text", "realised"),
    ("  realised / theoretical", "realised_of_theoretical"),
    ("seconds of the twin / of PASTA", "twin_seconds"),
  ]
  lines = [_line(f"geometric means ({speed['timed']} timed)", [_SOME[c] for c in columns])]
  return lines + [_line(label, [_number(speed[key][c], 2, "x") for c in columns]) for label, key in rows]


def _line(label: str, cells: Sequence[str]) -> str:
  return ("  " + label.ljust(_NAME) + "".join(cell.ljust(_CELL) for cell in cells)).rstrip()


def _number(e: Estimate, digits: int = 2, unit: str = "") -> str:
  return _show(e, lambda x: f"{x:.{digits}f}", unit)


def _percent(e: Estimate) -> str:
  return _show(e, lambda x: f"{100 * x:.1f}", " %")


def _show(e: Estimate, text: Callable[[float], str], unit: str) -> str:
  if e.value is None:
    return "-"
  if e.low is None or e.high is None or e.low == e.high:
    return text(e.value) + unit
  return f"{text(e.value)}{unit} [{text(e.low)}, {text(e.high)}]"


def _reasons(reasons: dict[str, Any]) -> str:
  return ", ".join(f"{n} {reason}" for reason, n in reasons.items())
