"""How well the rules agree with documents that were marked otherwise.

`python -m pasta_jax.train.annotate.agreement --input=data/seed.jsonl` takes the marks off each document,
annotates the reading text by rules, and compares. Its marks are one way to mark an answer, not the only one.
"""

import dataclasses
import sys
from collections.abc import Iterable

from absl import app, flags

from pasta_jax import runtime
from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.train.annotate.rows import read_documents
from pasta_jax.train.annotate.rules import RulesAnnotator, style


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Counts over pairs of a reference and an annotated document.

  Attributes:
    rows: pairs.
    reference, annotated, both: rows that split.
    reference_chunks, annotated_chunks, same_chunks: of the rows where both split; the same are those with the
      same beginning and end.
    reference_syncs, annotated_syncs, both_syncs: rows with a sync, of the rows where both split.
  """

  rows: int = 0
  reference: int = 0
  annotated: int = 0
  both: int = 0
  reference_chunks: int = 0
  annotated_chunks: int = 0
  same_chunks: int = 0
  reference_syncs: int = 0
  annotated_syncs: int = 0
  both_syncs: int = 0

  def __add__(self, other: "Agreement") -> "Agreement":
    return Agreement(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

  def lines(self) -> list[str]:
    """For people."""

    def share(part: int, whole: int) -> str:
      return f"{100 * part / whole:.1f} %" if whole else "none"

    return [
      f"{self.rows} rows; {self.reference} split in the reference, {self.annotated} by rules",
      f"of those that the reference splits, the rules split {share(self.both, self.reference)}",
      f"of those that the rules split, the reference splits {share(self.both, self.annotated)}",
      f"where both split, {share(self.same_chunks, self.reference_chunks)} of the reference's"
      f" {self.reference_chunks} chunks are chunks by rules, and"
      f" {share(self.same_chunks, self.annotated_chunks)} of the rules' {self.annotated_chunks} are the"
      " reference's",
      f"where both split, the reference has a sync in {self.reference_syncs} rows, the rules have one in"
      f" {self.annotated_syncs}, both in {self.both_syncs}",
    ]


def agreement(reference: Document, annotated: Document) -> Agreement:
  """The counts of one pair."""
  both = reference.splits and annotated.splits
  ours, theirs = _chunks(annotated), _chunks(reference)
  joined, joins = (any(isinstance(p, Sync) for p in d.parts) for d in (reference, annotated))
  counts = [1, reference.splits, annotated.splits, both]
  if both:
    counts += [len(theirs), len(ours), len(theirs & ours), joined, joins, joined and joins]
  return Agreement(*map(int, counts))


def _chunks(document: Document) -> set[tuple[int, int]]:
  """Beginning and end of each chunk in the reading text."""
  spans = set()
  at = 0
  for part in document.parts:
    if isinstance(part, Text | Chunk):
      text = part.text if isinstance(part, Text) else part.body
      if isinstance(part, Chunk):
        spans.add((at, at + len(text)))
      at += len(text)
  return spans


def compare(rows: Iterable[tuple[str, Document]], annotator: RulesAnnotator) -> Agreement:
  """The counts over prompts and their documents."""
  pairs = (agreement(document, annotator.document(prompt, document.plain)) for prompt, document in rows)
  return sum(pairs, Agreement())


def _run() -> None:
  rules = RulesAnnotator(style(flags.FLAGS.style))
  print("\n".join(compare(read_documents(flags.FLAGS.input), rules).lines()))


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  flags.DEFINE_string("input", "", 'JSONL rows {"prompt": ..., "document": ...}.')
  flags.DEFINE_string("style", "pasta", "pasta or apar.")
  app.run(main)
