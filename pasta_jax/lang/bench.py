"""How fast documents become training sequences, on one core: `python -m pasta_jax.lang.bench`.

Without --documents the documents are random, of the shape of ordinary answers. Words stand for tokens: what a
tokenizer takes is left out. Seconds are the processor's.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Iterator

from absl import app, flags

from pasta_jax import runtime
from pasta_jax.lang.document import Chunk, Document, Part, Sync, Text
from pasta_jax.lang.files import read_documents
from pasta_jax.lang.interpreter import FORKS, POSITIONS
from pasta_jax.lang.parse import parse
from pasta_jax.lang.sequence import threads_of, training_sequence
from pasta_jax.lang.threads import encode_document
from pasta_jax.lang.words import CONTROLS, END_ID, Words

_DOCUMENTS = flags.DEFINE_string("documents", "", 'JSONL rows with a "document", or one document.')
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Seconds to measure each line for, at least.", lower_bound=0.0)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def random_documents(count: int, seed: int = 0) -> Iterator[Document]:
  """Documents of up to eight chunks, and a fifth without any."""
  rng = random.Random(seed)

  def words(least: int, most: int) -> str:
    return " ".join(
      "".join(rng.choices("etaoinshr", k=rng.randint(1, 8))) for _ in range(rng.randint(least, most))
    )

  for _ in range(count):
    parts: list[Part] = [Text(words(5, 40))]
    for _ in range(rng.choice((0, 2, 3, 4, 8))):
      parts += [Text("\n- "), Chunk(words(1, 3), rng.randrange(10, 330, 10), words(10, 60))]
    if len(parts) > 1:
      parts += [Sync(), Text(words(10, 60))]
    yield Document.of(parts)


def rates(documents: list[Document], seconds: float) -> dict[str, float]:
  """Tokens per second and core, by what is done."""
  encode = Words().encode
  threads = [encode_document(d, encode, CONTROLS) for d in documents]
  texts = [d.annotated for d in documents]
  prompt = list(range(20))
  sequences = [training_sequence(prompt, t, CONTROLS, END_ID) for t in threads]
  tokens = sum(map(len, sequences))
  work: dict[str, Callable[[], object]] = {"parse": lambda: [parse(t) for t in texts]}
  for fork in FORKS:
    for positions in POSITIONS:
      work[f"sequence {fork} {positions}"] = lambda f=fork, p=positions: [  # type: ignore[misc]
        training_sequence(prompt, t, CONTROLS, END_ID, fork=f, positions=p) for t in threads
      ]
  work["back"] = lambda: [threads_of(s) for s in sequences]
  return {name: tokens / _best(do, seconds) for name, do in work.items()}


def _best(do: Callable[[], object], seconds: float) -> float:
  """Least processor seconds of several runs."""
  best, spent = float("inf"), 0.0
  while spent < seconds or best == float("inf"):
    start = time.process_time()
    do()
    took = time.process_time() - start
    best, spent = min(best, took), spent + took
  return best


def _run() -> None:
  if _DOCUMENTS.value:
    documents = [document for _, document in read_documents(_DOCUMENTS.value)]
  else:
    documents = list(random_documents(500))
  found = rates(documents, _SECONDS.value)
  if _JSON.value:
    print(json.dumps({"documents": len(documents), "tokens_per_s": {k: round(v) for k, v in found.items()}}))
    return
  print(f"{len(documents)} documents, tokens per second and core")
  for name, rate in found.items():
    print(f"{rate:>12,.0f}  {name}")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  app.run(main)
