"""Seconds of answers, one request at a time, in turns: what one request waits for, not what a batch does.

Answers are decoded once more as scripts: the model computes every step in full, and the ids are those that it
drew. So three runs of one prompt stand side by side, a few seconds apart, on one model and one machine:

    pasta       PASTA's answer in lanes
    same_text   its reading text, one token at a time, on an engine of one lane
    twin        the twin's own answer on that engine
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Request, RequestError, Result
from pasta_jax.eval.speed_documents import decode_seconds
from pasta_jax.eval.suite_answers import threads_of
from pasta_jax.eval.suite_sets import Item
from pasta_jax.eval.suite_store import Row
from pasta_jax.lang.threads import Threads


def measure_times(
  pasta: Engine,
  sequential: Engine,
  items: Sequence[Item],
  answers: dict[str, list[Row]],
  numbers: Sequence[int],
  repeats: int,
  **settings: Any,
) -> Iterator[tuple[int, Row]]:
  """Times the answers with these numbers.

  Args:
    pasta, sequential: engines of one model, for one request at a time, with several lanes and with one.
    answers: rows of "pasta" and "twin".
    repeats: how often each is timed, in turns; the fastest counts.
    settings: fields of `Request`: fork and positions.

  Yields:
    (number, row): `tokens` (that were decoded in all), and for each of the three above `seconds` (from the
    prompt to the end) and `decode_seconds` (from the first token on); what has no tokens, or does not fit the
    engine as a script, is left out.
  """
  warm = False
  for n in numbers:
    text = sequential.tokenizer.encode(answers["pasta"][n]["text"])
    runs = {
      "pasta": (pasta, threads_of(answers["pasta"][n]), True),
      "same_text": (sequential, Threads(tuple(text)), False),
      "twin": (sequential, threads_of(answers["twin"][n]), False),
    }
    row: Row = {"id": items[n].id, "tokens": 0}
    for turn in range(repeats + (not warm)):
      for name, (engine, script, marks) in runs.items():
        own = settings if marks else {}
        # A script is run to its end, however long it is.
        request = Request(items[n].prompt, engine.max_len, script=script, marks=marks, **own)
        seconds = _seconds(engine, request)
        row["tokens"] += len(script.main) + sum(map(len, script.chunks)) if seconds else 0
        if seconds and (turn or warm):
          row[name] = {k: min(v, row.get(name, {}).get(k, v)) for k, v in seconds.items()}
    warm = True
    yield n, row


def _seconds(engine: Engine, request: Request) -> dict[str, float]:
  assert request.script is not None
  if not request.script.main and not request.script.chunks:
    return {}
  try:
    result: Result = engine.generate([request])[0]
  except RequestError:
    return {}
  return {"seconds": result.seconds, "decode_seconds": decode_seconds(result)}
