"""The trace of an answer: which thread drew what in which step, as plain data.

`trace_of` returns what `--trace=out.json` writes; docs/trace.md lists the fields. Of a round with one chunk:

    step      0    1         2     3    4      5    6       7     8
    thread 0  Two  <promise> train <len> <sync/>                So  <end>
    spans     text promise------------- sync   wait--------    text
    thread 1                            Slower but  </async>
    spans                               chunk---------------
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from pasta_jax.decode.answer import Draw
from pasta_jax.decode.requests import Result
from pasta_jax.decode.state import NO_ID
from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.lang.marks import MARKS, ControlIds

FORMAT = "pasta_jax.trace"
VERSION = 1


@dataclasses.dataclass
class Span:
  """What a thread did in the steps `first` to `last`.

  Attributes:
    kind: "text" (main text), "promise", "sync" (drawn), "wait" (at a sync; of a chunk: for a lane or its
      round), "chunk".
    ids: drawn.
    text: of the ids; marks are spelt out.
    lane: at its first step; None while it waits.
  """

  kind: str
  first: int
  last: int
  lane: int | None
  ids: int = 0
  text: str = ""


def trace_of(result: Result, engine: Any, prompt: str = "", model: str = "") -> dict[str, Any]:
  """The trace of a result, ready for JSON.

  Args:
    result: of a request with or without marks.
    engine: that decoded it.
    prompt, model: as the user named them.
  """
  tokenizer, request, parallel = engine.tokenizer, result.request, result.parallel
  if parallel is not None:
    draws: Sequence[Draw] = parallel.draws
    document, figures = parallel.document, parallel.row()
    controls = tokenizer.controls
  else:
    probs = result.logprobs or [0.0] * len(result.ids)
    draws = [Draw(n, 1, 0, 0, i, p) for n, (i, p) in enumerate(zip(result.ids, probs, strict=True))]
    document, controls = Document.of([Text(result.text)]), None
    plain, steps = len(tokenizer.encode(result.text)), max(len(draws) - 1, 0)
    figures = {
      "annotated": document.annotated,
      "threads": 1,
      "rounds": 0,
      "critical_path": plain,
      "plain_tokens": plain,
      "theoretical_speedup": 1.0,
      "steps_by_width": {"1": steps} if steps else {},
      "position_error": [],
    }
  texts = _texts(draws, tokenizer, controls)
  promises = _promises(draws, texts, controls) if controls is not None else {}
  return {
    "format": FORMAT,
    "version": VERSION,
    "model": model,
    "mode": "sequential" if parallel is None else "pasta",
    "prompt": prompt,
    "text": result.text,
    "annotated": figures.pop("annotated"),
    "finish_reason": result.finish_reason,
    "settings": {
      "lanes": engine.lanes,
      "batch_size": engine.batch_size,
      "fork": request.fork,
      "positions": request.positions,
      "fixed": request.fixed,
      "scripted": request.script is not None,
      "sampling": dataclasses.asdict(request.sampling),
      "limits": dataclasses.asdict(request.limits),
    },
    "figures": {
      "prompt_tokens": result.prompt_tokens,
      "tokens": result.tokens,
      "steps": max((d.step for d in draws), default=0),
      "seconds": round(result.seconds, 4),
      "first_token_seconds": round(result.first_token_seconds, 4),
      **figures,
    },
    "parts": list(_parts(document)),
    "threads": list(_threads(draws, texts, controls, promises)),
    "draws": [_draw(d, t, controls, request.logprobs) for d, t in zip(draws, texts, strict=True)],
  }


@dataclasses.dataclass(frozen=True)
class _Promise:
  """When a chunk was promised, with which topic, for how many ids, and in which round."""

  step: int
  topic: str
  tokens: int
  round: int


def _promises(draws: Iterable[Draw], texts: Iterable[str], controls: ControlIds) -> dict[int, _Promise]:
  """Each chunk's promise, by its thread."""
  found: dict[int, _Promise] = {}
  syncs, topic = 0, ""
  for d, text in zip(draws, texts, strict=True):
    if d.thread or d.token is None:
      continue
    if d.token == controls.promise:
      topic = ""
    elif d.token == controls.sync:
      syncs += 1
    elif d.token in controls.lens:
      found[len(found) + 1] = _Promise(d.step, " ".join(topic.split()), controls.length(d.token), syncs)
    else:
      topic += text
  return found


def _texts(draws: Sequence[Draw], tokenizer: Any, controls: ControlIds | None) -> list[str]:
  """What each draw adds to its thread's text; marks are spelt out.

  A character of several ids comes with the last of them.
  """
  streams: dict[int, Any] = {}
  before: dict[int, int] = {}  # each thread's last draw
  texts: list[str] = []
  marks = dict(zip(controls.all, MARKS, strict=True)) if controls is not None else {}
  for n, d in enumerate(draws):
    stream = streams.setdefault(d.thread, tokenizer.stream())
    if d.token is None:
      texts.append("")
    elif d.token in marks:
      # What follows a mark is decoded by itself, as in a document; a broken character ends before it.
      if d.thread in before:
        texts[before[d.thread]] += stream.flush()
      texts.append(marks[d.token])
      streams[d.thread] = tokenizer.stream()
    else:
      texts.append(stream.push(d.token))
    before[d.thread] = n
  for thread, n in before.items():
    texts[n] += streams[thread].flush()
  return texts


def _draw(d: Draw, text: str, controls: ControlIds | None, logprobs: bool) -> dict[str, Any]:
  out: dict[str, Any] = {"step": d.step, "width": d.width, "lane": d.lane, "thread": d.thread, "id": d.token}
  out["text"] = text
  if controls is not None and d.token in controls.all:
    out["mark"] = True
  if logprobs and d.token is not None:
    out["logprob"] = round(d.logprob, 5)
  return out


def _parts(document: Document) -> Iterable[dict[str, Any]]:
  """The document in reading order."""
  number = 0
  for part in document.parts:
    if isinstance(part, Text):
      yield {"kind": "text", "thread": 0, "text": part.text}
    elif isinstance(part, Sync):
      yield {"kind": "sync", "thread": 0}
    elif isinstance(part, Chunk):
      number += 1
      yield {
        "kind": "chunk",
        "thread": number,
        "topic": part.topic,
        "promised": part.tokens,
        "text": part.body,
      }


def _threads(
  draws: Sequence[Draw], texts: Sequence[str], controls: ControlIds | None, promises: dict[int, _Promise]
) -> Iterable[dict[str, Any]]:
  """The main thread, then every chunk."""
  by_thread: dict[int, list[tuple[Draw, str]]] = {t: [] for t in (0, *promises)}
  for d, text in zip(draws, texts, strict=True):
    by_thread[d.thread].append((d, text))
  main = by_thread.pop(0)
  yield {"thread": 0, "spans": [dataclasses.asdict(s) for s in _main_spans(main, controls)]}
  if controls is None:
    return
  joins = _joins(main, controls)
  for thread, own in by_thread.items():
    promise = promises[thread]
    body = [(d, t) for d, t in own if d.token is not None and d.token != controls.close]
    yield {
      "thread": thread,
      "topic": promise.topic,
      "round": promise.round,
      "promised": promise.tokens,
      "promised_at": promise.step,
      "joined_at": joins.get(promise.round),
      "ids": len(body),
      "spans": [dataclasses.asdict(s) for s in _chunk_spans(own, body, promise)],
    }


def _joins(main: Sequence[tuple[Draw, str]], controls: ControlIds) -> dict[int, int]:
  """For each round that a sync joins, the step that feeds the sync."""
  at = [n for n, (d, _) in enumerate(main) if d.token == controls.sync]
  return {r: main[n + 1][0].step for r, n in enumerate(at) if n + 1 < len(main)}


def _main_spans(draws: Sequence[tuple[Draw, str]], controls: ControlIds | None) -> Iterable[Span]:
  """The main thread's spans, in order; it waits in the steps in which it drew nothing."""
  promise, sync = (controls.promise, controls.sync) if controls is not None else (NO_ID, NO_ID)
  lens = controls.lens if controls is not None else ()
  span: Span | None = None
  promising = False
  for d, text in draws:
    promising = promising or d.token == promise
    kind = "promise" if promising else "sync" if d.token == sync else "text"
    if span is None or span.kind != kind or d.token == promise or d.step > span.last + 1:
      if span is not None:
        yield span
        if d.step > span.last + 1:
          yield Span("wait", span.last + 1, d.step - 1, None)
      span = Span(kind, d.step, d.step, d.lane)
    span.last, span.ids, span.text = d.step, span.ids + 1, span.text + text
    promising = promising and d.token not in lens
  if span is not None:
    yield span


def _chunk_spans(
  draws: Sequence[tuple[Draw, str]], body: Sequence[tuple[Draw, str]], promise: _Promise
) -> Iterable[Span]:
  """A chunk's spans: it may wait, then runs without a break."""
  if not draws:
    return
  first, last = draws[0][0], draws[-1][0]
  if first.step > promise.step + 1:
    yield Span("wait", promise.step + 1, first.step - 1, None)
  yield Span("chunk", first.step, last.step, first.lane, len(body), "".join(text for _, text in body))
