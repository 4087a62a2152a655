"""Answers of one model to a set of prompts, as rows."""

from collections.abc import Iterator, Sequence
from typing import Any

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Request, RequestError, Result
from pasta_jax.eval.quality import repetition, validity_problems
from pasta_jax.eval.suite_sets import Item, PromptSet
from pasta_jax.eval.suite_store import Row
from pasta_jax.lang.document import Document, Text
from pasta_jax.lang.threads import Threads


def check_prompts(engine: Engine, prompts: PromptSet) -> None:
  """Raises ValueError where a prompt cannot be answered, before any is."""
  for item in prompts.items:
    try:
      engine.encode(Request(item.prompt))
    except RequestError as e:
      raise ValueError(f"{prompts.path}, prompt {item.id}: {e}") from None


def answer(
  engine: Engine, items: Sequence[Item], numbers: Sequence[int], **settings: Any
) -> Iterator[tuple[int, Row]]:
  """Answers the items with these numbers, as they get done.

  Args:
    engine: with several lanes, or with one: then no answer has marks.
    settings: fields of `Request`.

  Yields:
    (number, row), see `answer_row`.
  """
  requests = (Request(items[n].prompt, tag=n, **settings) for n in numbers)
  for event in engine.serve(requests):
    if event.result is not None:
      yield (
        event.result.request.tag,
        {"id": items[event.result.request.tag].id} | answer_row(event.result, engine.tokenizer),
      )


def answer_row(result: Result, tokenizer: Any) -> Row:
  """An answer as JSON values.

  Returns:
    text, annotated (in PASTA-LANG), finish_reason; tokens (ids drawn, the end and all marks included);
    plain_tokens (of the text alone); chunks, rounds, critical_path, theoretical_speedup, position_error (for
    each chunk, promised minus true length); problems (what makes the document invalid); repeated_grams,
    grams, loops (see quality.py); main and bodies (the ids of each thread); seconds (of no meaning where
    several prompts are answered at a time).
  """
  ids = tokenizer.encode(result.text)
  row: Row = {
    "text": result.text,
    "annotated": Document.of([Text(result.text)]).annotated,
    "finish_reason": result.finish_reason,
    "tokens": result.tokens,
    "plain_tokens": len(ids),
    "seconds": round(result.seconds, 4),
    "chunks": 0,
    "rounds": 0,
    "critical_path": len(ids),
    "theoretical_speedup": 1.0,
    "position_error": [],
    "problems": [],
    "main": [i for i in result.ids if i not in tokenizer.stop_ids],
    "bodies": [],
    **repetition(ids, result.text),
  }
  if result.parallel is not None:
    parallel, stats = result.parallel, result.parallel.stats
    row |= {
      "annotated": parallel.annotated,
      "chunks": stats.chunks,
      "rounds": stats.rounds,
      "critical_path": stats.critical_path,
      "theoretical_speedup": stats.theoretical_speedup,
      "position_error": list(stats.position_error),
      "problems": validity_problems(parallel.document, parallel.threads, tokenizer.controls),
      "main": list(parallel.threads.main),
      "bodies": [list(body) for body in parallel.threads.chunks],
    }
    if parallel.document.plain != result.text:
      row["problems"].append("the document reads otherwise than the answer")
  return row


def threads_of(row: Row) -> Threads:
  """The ids of an answer, to decode it once more as a script."""
  return Threads(tuple(row["main"]), tuple(map(tuple, row["bodies"])))
