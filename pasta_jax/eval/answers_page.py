"""The page of answers: all three models side by side, one HTML file that needs nothing else.

Everything that a user or a model wrote is escaped. The page may load and send nothing (its policy says so to
the browser), and is whole without its script, which adds the filters.
"""

import importlib.resources
import string
from collections.abc import Iterable, Sequence
from typing import Any

from pasta_jax.decode.trace_page import HUES, escape
from pasta_jax.eval.suite_models import WHO
from pasta_jax.eval.suite_sets import Item, PromptSet
from pasta_jax.eval.suite_store import Row
from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.lang.parse import ParseError, parse

_NAMES = {"pasta": "PASTA", "twin": "Twin", "base": "Base"}
_WHAT = {
  "pasta": "trained on documents with marks, decoded in lanes",
  "twin": "trained on the same answers without marks",
  "base": "the unmodified model",
}

Answers = dict[str, list[Row]]


def answers_page(figures: dict[str, Any], sets: Sequence[tuple[PromptSet, Answers]]) -> str:
  """The page as text.

  Args:
    figures: as `--json` holds them.
    sets: prompts, and the answers of each of `WHO` to them.
  """
  template = importlib.resources.files(__package__).joinpath("answers_page.html").read_text(encoding="utf-8")
  s = figures["settings"]
  how = (
    f"{s['model']}; PASTA {s['adapter']}, twin {s['twin']}; greedy, at most {s['max_new_tokens']} tokens,"
    f" {s['lanes']} lanes, positions {s['positions']}, fork {s['fork']}"
  )
  return string.Template(template).substitute(
    how=escape(how),
    models="".join(f"<li><b>{_NAMES[w]}</b> {escape(_WHAT[w])}</li>\n" for w in WHO),
    figures="".join(_figures(p.name, figures["sets"][p.name]) for p, _ in sets),
    options="".join(f'<option value="{escape(p.name)}">{escape(p.name)}</option>' for p, _ in sets),
    total=str(sum(len(p.items) for p, _ in sets)),
    items="".join(
      _item(p, item, {w: answers[w][n] for w in WHO}) for p, answers in sets for n, item in enumerate(p.items)
    ),
  )


# Figures of the table on top.


def _figures(name: str, f: dict[str, Any]) -> str:
  def number(e: dict[str, Any], form: str) -> str:
    return "–" if e["value"] is None else form.format(e["value"])

  rows = [
    ("documents valid", [number(f[w]["valid"], "{:.1%}") for w in WHO]),
    ("answers that split", [number(f["pasta"]["split"], "{:.1%}"), "", ""]),
  ]
  if "reference_splits" in f:
    for where, key in (("reference splits", "splits"), ("it does not", "does_not")):
      e = f["pasta"][f"split_where_reference_{key}"]
      rows.append(
        (f"… where the {where}" if key == "splits" else f"… where {where}", [number(e, "{:.1%}"), "", ""])
      )
  rows += [
    ("tokens", [number(f[w]["plain_tokens"], "{:.0f}") for w in WHO]),
    ("repeated 4-grams", [number(f[w]["repetition"], "{:.1%}") for w in WHO]),
    ("answers that loop", [number(f[w]["loops"], "{:.1%}") for w in WHO]),
    ("log-likelihood per token", [number(f[w]["log_likelihood"], "{:.2f}") for w in WHO]),
  ]
  for label, key in (("theoretical speedup", "theoretical"), ("realised speedup", "realised")):
    rows.append((f"{label}, split answers", [number(f["speed"][key]["where_split"], "{:.2f}×"), "", ""]))
  body = "".join(
    f"<tr><th scope=row>{escape(label)}</th>"
    f"{''.join(f'<td class=num>{escape(c)}</td>' for c in cells)}</tr>\n"
    for label, cells in rows
  )
  heads = "".join(f"<th scope=col class=num>{_NAMES[w]}</th>" for w in WHO)
  return (
    f"<table><caption>{escape(name)}: {f['prompts']} prompts</caption>"
    f"<thead><tr><td></td>{heads}</tr></thead><tbody>\n{body}</tbody></table>\n"
  )


# A prompt and its answers.


def _item(p: PromptSet, item: Item, rows: dict[str, Row]) -> str:
  split = rows["pasta"]["chunks"] > 0
  kinds = ["split" if split else "plain"]
  said = ["split" if split else "not split"]
  reference = ""
  if item.document is not None:
    if item.document.splits != split:
      kinds.append("differs")
    said.append(f"reference {'splits' if item.document.splits else 'does not'}")
    reference = (
      '<details><summary>Reference</summary><div class="document" dir="auto">'
      f"{''.join(_parts(item.document, None))}</div></details>"
    )
  if any(row["finish_reason"] != "stop" for row in rows.values()):
    kinds.append("cut")
  if any(row["loops"] for row in rows.values()):
    kinds.append("loops")
  if rows["pasta"]["problems"]:
    kinds.append("invalid")
  columns = "".join(_answer(who, rows[who]) for who in WHO)
  return (
    f'<article data-set="{escape(p.name)}" data-kinds="{" ".join(kinds)}">'
    f"<h3>{escape(item.id)} <span class=quiet>{escape(p.name)} · {escape(' · '.join(said))}</span></h3>"
    f'<p class="prompt" dir="auto">{escape(item.text)}</p>'
    f'<div class="columns">{columns}</div>{reference}</article>\n'
  )


def _answer(who: str, row: Row) -> str:
  facts = [_count(row["plain_tokens"], "token")]
  if row["chunks"]:
    facts = [
      f"{_count(row['chunks'], 'chunk')}, {_count(row['rounds'], 'round')}",
      f"{_count(row['plain_tokens'], 'token')} / {_count(row['critical_path'], 'step')}"
      f" = {row['theoretical_speedup']:.2f}×",
    ]
  warnings = [] if row["finish_reason"] == "stop" else [f"ended by {row['finish_reason']}"]
  warnings += ["loops"] if row["loops"] else []
  warnings += [f"invalid: {p}" for p in row["problems"][:1]]
  notes = escape(" · ".join(facts)) + "".join(f" · <b class=warn>{escape(w)}</b>" for w in warnings)
  try:
    body = "".join(_parts(parse(row["annotated"]), row["position_error"]))
  except ParseError:
    body = escape(row["annotated"])
  return (
    f'<section class="answer {who}"><h4>{_NAMES[who]} <span class=quiet>{notes}</span></h4>'
    f'<div class="document" dir="auto">{body or "<span class=quiet>(empty)</span>"}</div></section>'
  )


def _count(n: int, what: str) -> str:
  return f"{n} {what}{'s' * (n != 1)}"


def _parts(document: Document, errors: Sequence[int] | None) -> Iterable[str]:
  """A document with its chunks coloured and its marks shown.

  Args:
    errors: for each chunk, promised minus true length; None: only the promise is shown.
  """
  number = 0
  for part in document.parts:
    if isinstance(part, Text):
      yield f"<span>{escape(part.text)}</span>"
    elif isinstance(part, Sync):
      yield "<span class=syncmark><span>sync</span></span>"
    elif isinstance(part, Chunk):
      length = str(part.tokens)
      if errors is not None and number < len(errors):
        length = f"{part.tokens - errors[number]} of {part.tokens}"
      yield (
        f'<span class="chunk h{number % HUES}"><span class=tag>{number + 1} {escape(part.topic)} · {length}'
        f"</span>{escape(part.body)}</span>"
      )
      number += 1
