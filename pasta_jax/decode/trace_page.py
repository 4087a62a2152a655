"""The page of a trace: one HTML file that needs nothing else, from the template `trace_page.html`.

Everything that a user or a model wrote is escaped. The page may load and send nothing (its policy says
so to the browser), and is whole without its script, which adds the panel of details and the arrow keys.
"""

import html
import importlib.resources
import string
from collections.abc import Iterable
from typing import Any

HUES = 8  # colours of chunks in the template
TICKS = 10

Trace = dict[str, Any]


def trace_page(trace: Trace) -> str:
  """The page as text; `trace` is what trace.trace_of returns."""
  template = importlib.resources.files(__package__).joinpath("trace_page.html").read_text(encoding="utf-8")
  figures, settings = trace["figures"], trace["settings"]
  last = figures["steps"]
  how = [trace["mode"]]
  if trace["mode"] == "pasta":
    how += [f"{settings['lanes']} lanes", f"fork {settings['fork']}", f"positions {settings['positions']}"]
  if settings["scripted"]:
    how.append("scripted")
  return string.Template(template).substitute(
    title=escape(f"Trace: {_short(trace['prompt'], 60)}"),
    prompt=escape(trace["prompt"]),
    model=escape(trace["model"]),
    how=escape(", ".join(how)),
    ended=escape(trace["finish_reason"]),
    figures="".join(_figures(figures)),
    widths="".join(_widths(figures["steps_by_width"])),
    steps=str(last + 1),
    axis="".join(_axis(last)),
    joins="".join(_joins(trace, last)),
    rows="".join(_rows(trace, last)),
    document="".join(_document(trace)),
    format=escape(f"{trace['format']} {trace['version']}"),
  )


def escape(text: Any) -> str:
  """Text for HTML, in elements and in quoted attributes; control characters become U+FFFD."""
  shown = "".join(c if c in "\n\t" or ord(c) >= 32 else "�" for c in str(text))
  return html.escape(shown, quote=True)


def _short(text: str, most: int) -> str:
  line = " ".join(text.split())
  return line if len(line) <= most else line[: most - 1] + "…"


def _figures(f: dict[str, Any]) -> Iterable[str]:
  cells = [
    ("theoretical speedup", f"{f['theoretical_speedup']:.2f}×", "plain tokens / critical path"),
    ("critical path", f["critical_path"], "decode steps of the longest chain"),
    ("plain tokens", f["plain_tokens"], "of the answer without marks"),
    ("steps", f["steps"], "decode steps that were run"),
    ("tokens drawn", f["tokens"], "marks and topics included"),
    ("seconds", f"{f['seconds']:.2f}", f"first token after {f['first_token_seconds']:.2f} s"),
    ("threads", f["threads"], "the main thread included"),
    ("rounds", f["rounds"], "chunks between two syncs"),
    ("prompt tokens", f["prompt_tokens"], ""),
  ]
  for name, value, what in cells:
    note = f"<dd class=note>{escape(what)}</dd>" if what else ""
    yield f"<div><dt>{escape(name)}</dt><dd class=value>{escape(value)}</dd>{note}</div>\n"


def _widths(widths: dict[str, int]) -> Iterable[str]:
  most = max(widths.values(), default=1)
  for width, steps in widths.items():
    yield (
      f"<tr><th scope=row>{escape(width)}</th><td class=num>{escape(steps)}</td><td class=bar>"
      f'<span style="width:{100 * steps / most:.1f}%"></span></td></tr>\n'
    )


def _place(first: int, last: int, end: int) -> str:
  """Where the steps `first` to `last` lie on a track of the steps 0 to `end`."""
  return f"left:{100 * first / (end + 1):.3f}%;width:{100 * (last - first + 1) / (end + 1):.3f}%"


def _axis(end: int) -> Iterable[str]:
  gap = next(g for g in (m * 10**e for e in range(12) for m in (1, 2, 5)) if (end + 1) / g <= TICKS)
  for step in range(0, end + 1, gap):
    if step <= 0.95 * end or not step:
      yield f'<span style="left:{100 * step / (end + 1):.3f}%">{step}</span>'


def _joins(trace: Trace, end: int) -> Iterable[str]:
  """A line through all rows at each step that feeds a sync."""
  for step in sorted({t["joined_at"] for t in trace["threads"] if t.get("joined_at") is not None}):
    yield f'<i style="left:{100 * step / (end + 1):.3f}%"></i>'


def _steps(first: int, last: int) -> str:
  return f"step {first}" if first == last else f"steps {first} to {last}"


def _tokens(count: int) -> str:
  return f"{count} token{'s' * (count != 1)}"


def _rows(trace: Trace, end: int) -> Iterable[str]:
  for thread in trace["threads"]:
    number = thread["thread"]
    name = "main" if not number else f"{number} {thread['topic']}"
    if not number:
      label = "<b>main</b>"
    else:
      label = (
        f'<a href="#chunk-{number}"><b>{escape(name)}</b></a> '
        f"{_tokens(thread['ids'])} of {thread['promised']} promised"
      )
    spans = "".join(_span(s, number, name, end) for s in thread["spans"])
    yield (
      f'<div class="row h{(number - 1) % HUES if number else "m"}" id="thread-{number}" data-thread={number}>'
      f"<div class=label>{label}</div><div class=track>{spans}</div></div>\n"
    )
  yield from _width_row(trace, end)


_SAID = {"text": "text", "promise": "promise", "sync": "sync", "wait": "waits", "chunk": "chunk"}


def _span(span: dict[str, Any], number: int, name: str, end: int) -> str:
  head = f"{name}: {_SAID[span['kind']]}, {_steps(span['first'], span['last'])}"
  if span["lane"] is not None:
    head += f", lane {span['lane']}, {_tokens(span['ids'])}"
  text = span["text"] if span["text"].strip() else span["text"].replace("\n", "↵")
  said = f"{head}. {text}" if text else head
  return (
    f'<button type=button class="span {span["kind"]}" style="{_place(span["first"], span["last"], end)}"'
    f' data-head="{escape(head)}" data-text="{escape(text)}"'
    f' title="{escape(_short(said, 300))}" aria-label="{escape(said)}"></button>'
  )


def _width_row(trace: Trace, end: int) -> Iterable[str]:
  """How many lanes each step ran with."""
  widths = {d["step"]: d["width"] for d in trace["draws"]}
  if not widths:
    return
  most = max(widths.values())
  runs: list[list[int]] = []  # first step, last step, width
  for step in range(end + 1):
    width = widths.get(step, 0)
    if runs and runs[-1][2] == width:
      runs[-1][1] = step
    else:
      runs.append([step, step, width])
  bars = "".join(
    f'<span class=w style="{_place(first, last, end)};height:{100 * width / most:.0f}%"'
    f' title="width {width}, {_steps(first, last)}"></span>'
    for first, last, width in runs
    if width
  )
  label = f"width of the step, up to {most}"
  yield (
    f'<div class="row width"><div class=label>{label}</div>'
    f'<div class=track role=img aria-label="{label}">{bars}</div></div>\n'
  )


def _document(trace: Trace) -> Iterable[str]:
  for part in trace["parts"]:
    if part["kind"] == "text":
      yield f"<span>{escape(part['text'])}</span>"
    elif part["kind"] == "sync":
      yield "<span class=syncmark><span>sync</span></span>"
    else:
      number = part["thread"]
      yield (
        f'<span class="chunk h{(number - 1) % HUES}" id="chunk-{number}" data-thread={number}>'
        f'<a class=tag href="#thread-{number}">{number} {escape(part["topic"])} · {part["promised"]}</a>'
        f"{escape(part['text'])}</span>"
      )
