"""Speed over whole documents: theoretical beside realised speedup, and throughput of batches.

Documents are scripts: the model computes every step in full, and the document supplies the ids, so that any
model measures any document. The baseline decodes the same reading text one token at a time on an engine of
one lane, with everything else the same.
"""

import json
import pathlib
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Request, Result
from pasta_jax.decode.script import script_of
from pasta_jax.lang.parse import parse

Row = dict[str, str]


def read_splitting_rows(path: str, count: int, seed: int = 0) -> list[Row]:
  """A sample of the rows {"prompt", "document"} whose document has chunks, the same one for the same seed.

  Raises:
    ValueError: the file cannot be read, a row is not of this form, or none splits.
  """
  rows = []
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as e:
    raise ValueError(f"{path}: cannot be read: {e.strerror if isinstance(e, OSError) else e}") from None
  for n, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
    try:
      row = json.loads(line)
      if parse(row["document"]).splits:
        rows.append({"prompt": row["prompt"], "document": row["document"]})
    except (ValueError, KeyError, TypeError) as e:
      raise ValueError(f"{path} row {n}: {e}") from None
  if not rows:
    raise ValueError(f"{path} has no document with chunks")
  return random.Random(seed).sample(rows, min(count, len(rows)))


def requests_of(rows: Sequence[Row], tokenizer: Any, marks: bool) -> list[Request]:
  """Scripted requests: the documents, or their reading texts."""
  return [Request(r["prompt"], script=script_of(r["document"], tokenizer, marks), marks=marks) for r in rows]


def decode_seconds(result: Result) -> float:
  """Seconds after the first id: what the prompt takes is the same for all."""
  return result.seconds - result.first_token_seconds


def plain_tokens(result: Result) -> int:
  """Tokens of the reading text."""
  return result.parallel.stats.plain_tokens if result.parallel else result.tokens - 1


def measure_documents(
  pasta: Engine, sequential: Engine, rows: Sequence[Row], repeats: int = 1
) -> dict[str, Any]:
  """Theoretical and realised speedup of each document, one request at a time, geometric means.

  Args:
    pasta, sequential: engines with several lanes and with one, of the same model, for one request at a time.
    repeats: how often each is timed, in turns; the fastest counts.

  Returns:
    `n`, `theoretical`, `realised`, their `ratio`, and per-document figures under `rows`.
  """
  split = requests_of(rows, pasta.tokenizer, True)
  plain = requests_of(rows, sequential.tokenizer, False)
  pasta.generate(split[:1]), sequential.generate(plain[:1])  # warm up
  figures: list[dict[str, Any]] = []
  for p, s in zip(split, plain):
    runs = [(pasta.generate([p])[0], sequential.generate([s])[0]) for _ in range(repeats)]
    result = runs[0][0]
    assert result.parallel is not None
    stats = result.parallel.stats
    seconds = min(decode_seconds(a) for a, _ in runs)
    baseline = min(decode_seconds(b) for _, b in runs)
    figures.append(
      {
        "chunks": stats.chunks,
        "plain_tokens": stats.plain_tokens,
        "critical_path": stats.critical_path,
        "theoretical": stats.theoretical_speedup,
        "realised": baseline / seconds,
        "steps_by_width": {str(w): n for w, n in result.parallel.steps_by_width.items()},
      }
    )
  mean = {k: statistics.geometric_mean(f[k] for f in figures) for k in ("theoretical", "realised")}
  return {"n": len(figures), **mean, "ratio": mean["realised"] / mean["theoretical"], "rows": figures}


def tokens_per_second(engine: Engine, requests: Sequence[Request]) -> float:
  """Tokens of reading text per second over all requests, prompts included in the time."""
  start = time.perf_counter()
  results = engine.generate(requests)
  return sum(map(plain_tokens, results)) / (time.perf_counter() - start)


def measure_throughput(
  engines: dict[int, tuple[Engine, Engine]], rows: Sequence[Row]
) -> dict[str, dict[str, float]]:
  """Plain tokens per second of all `rows`, by requests at a time.

  Args:
    engines: from batch size to (several lanes, one lane).
  """
  table = {}
  for batch, (pasta, sequential) in engines.items():
    split = requests_of(rows, pasta.tokenizer, True)
    plain = requests_of(rows, sequential.tokenizer, False)
    pasta.generate(split[:1]), sequential.generate(plain[:1])
    table[str(batch)] = {
      "pasta": tokens_per_second(pasta, split),
      "sequential": tokens_per_second(sequential, plain),
    }
  return table
