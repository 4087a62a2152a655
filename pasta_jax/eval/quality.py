"""What can be said of an answer without a judge: whether its document is valid, whether it repeats itself."""

import collections
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pasta_jax.lang.document import Document
from pasta_jax.lang.document import problems as document_problems
from pasta_jax.lang.marks import ControlIds
from pasta_jax.lang.parse import ParseError, parse
from pasta_jax.lang.threads import Threads
from pasta_jax.lang.threads import problems as thread_problems

# An answer loops where a run of at most PERIOD tokens stands TIMES times in a row, SPAN tokens or more in
# all, or where LINES lines of at least WORDS words are the same.
PERIOD, TIMES, SPAN = 64, 4, 24
LINES, WORDS = 3, 4

_NUMBERING = re.compile(r"^[\s>*#-]*(?:\d+[.):]\s*)?[\s*#_]*")


def validity_problems(document: Document, threads: Threads, controls: ControlIds) -> list[str]:
  """Everything that makes a decoded document none: of its ids, its parts, its surface form; empty: valid."""
  found = thread_problems(threads, controls) + document_problems(document)
  if len(document.chunks) != len(threads.chunks):
    found.append(f"{len(threads.chunks)} chunks were decoded, the document has {len(document.chunks)}")
  try:
    if parse(document.annotated) != document:
      found.append("the annotated form reads back as another document")
  except ParseError as e:
    found.append(f"the annotated form is no document: {e}")
  return found


def repeated_grams(ids: Sequence[int], n: int = 4) -> tuple[int, int]:
  """How many of an answer's n-grams stood in it before, and how many it has."""
  grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
  return len(grams) - len(set(grams)), len(grams)


def loops(ids: Sequence[int], text: str) -> bool:
  """Whether an answer goes round in circles, see the top of this module.

  Args:
    ids: of the text.
    text: whose lines are compared without their numbering and emphasis.
  """
  return _cycles(np.asarray(ids, np.int64)) or _same_lines(text)


def _cycles(ids: np.ndarray) -> bool:
  for period in range(1, min(PERIOD, len(ids) // TIMES) + 1):
    same = ids[period:] == ids[:-period]
    ends = np.flatnonzero(~np.append(same, False))
    longest = int(np.diff(ends, prepend=-1).max()) - 1  # equal neighbours in a row
    if longest + period >= max(TIMES * period, SPAN):
      return True
  return False


def _same_lines(text: str) -> bool:
  lines = [_NUMBERING.sub("", line).strip().casefold() for line in text.split("\n")]
  counts = collections.Counter(line for line in lines if len(line.split()) >= WORDS)
  return max(counts.values(), default=0) >= LINES


def repetition(ids: Sequence[int], text: str) -> dict[str, Any]:
  """What an answer's row says of repetition."""
  repeated, grams = repeated_grams(ids)
  return {"repeated_grams": repeated, "grams": grams, "loops": loops(ids, text)}
