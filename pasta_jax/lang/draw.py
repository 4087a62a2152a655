"""Drawings of a document in ASCII: when each thread runs, and who sees whom.

The tokens are words. A drawing fits a number of columns: `who sees whom` has a row and a column for every
word where that fits, else for every part of the document (a stretch of main text, a promise, a chunk, a
sync), else for several parts together.
"""

import dataclasses
import unicodedata
from collections.abc import Sequence as Row

import numpy as np

from pasta_jax.lang.document import Document
from pasta_jax.lang.marks import MARKS
from pasta_jax.lang.sequence import Sequence, training_sequence
from pasta_jax.lang.stats import Schedule, document_stats, schedule
from pasta_jax.lang.threads import Threads, encode_document
from pasta_jax.lang.visibility import visible
from pasta_jax.lang.words import CONTROLS, END_ID, Words

BY = ("auto", "word", "part")
MOST_PARTS = 2000  # parts are compared two by two

_NAME, _LABEL = 11, 36  # columns for what a row is, and for that with what it says
_PROMPT_ID = END_ID  # one id stands for the prompt


@dataclasses.dataclass(frozen=True)
class Block:
  """A stretch of the training sequence that is drawn as one row.

  Attributes:
    start, end: its times.
    name: "prompt", "main", "promise", "chunk 2", "sync".
    text: what it says.
  """

  start: int
  end: int
  name: str
  text: str


def draw(document: Document, *, fork: str = "eager", by: str = "auto", columns: int = 100) -> str:
  """Figures, timeline and visibility of a document; lines of at most `columns` characters.

  Args:
    by: "word", "part", or "auto": whichever fits.
    columns: at least 60.

  Raises:
    ValueError: an unknown fork or `by`, too few columns, or a document that is too large to draw.
  """
  if by not in BY:
    raise ValueError(f"by must be one of {', '.join(BY)}; got {by!r}")
  if columns < 60:
    raise ValueError(f"a drawing needs at least 60 columns, got {columns}")
  words = Words()
  threads = encode_document(document, words.encode, CONTROLS, recompute_lengths=False)
  sequence = training_sequence([_PROMPT_ID], threads, CONTROLS, END_ID, fork=fork)
  topics = [c.topic for c in document.chunks]
  lines = [_figures(document, threads, words, fork), ""]
  lines += _timeline(threads, topics, schedule(threads, CONTROLS, fork), columns)
  lines += ["", f"who sees whom (fork={fork}): a row sees a column", _LEGEND, ""]
  if by == "word" or (by == "auto" and 2 * len(sequence) + _LABEL <= columns):
    lines += _by_word(sequence, words, columns)
  else:
    lines += _by_part(sequence, words, columns)
  return "\n".join(line.rstrip() for line in lines)


def _figures(document: Document, threads: Threads, words: Words, fork: str) -> str:
  stats = document_stats(threads, CONTROLS, len(words.encode(document.plain)), fork)
  return (
    f"{_count(stats.chunks, 'chunk')} in {_count(stats.rounds, 'round')};"
    f" {_count(stats.plain_tokens, 'word')} in {_count(stats.critical_path, 'step')}, marks included:"
    f" {stats.theoretical_speedup:.2f}x"
  )


def _count(n: int, what: str) -> str:
  return f"{n} {what}{'s' * (n != 1)}"


# --- When.


def _timeline(threads: Threads, topics: Row[str], steps: Schedule, columns: int) -> list[str]:
  """A row for each thread, a column for each step or for `scale` of them."""
  last = max([1, *steps.main, *(s + len(b) + 1 for s, b in zip(steps.chunks, threads.chunks))])
  scale = -(-last // (columns - _LABEL))
  width = -(-last // scale)

  def row(name: str, topic: str, marks: Row[tuple[int, str]]) -> str:
    cells = [" "] * width
    for step, mark in marks:  # of several in a column, the last one
      at = (step - 1) // scale
      cells[at] = mark if _RANK[mark] >= _RANK[cells[at]] else cells[at]
    return _row(name, topic, "".join(cells))

  main: list[tuple[int, str]] = []
  inside, before = False, 0
  for token, step in zip(threads.main, steps.main):
    main += [(waited, ".") for waited in range(before + 1, step)]
    inside = inside or token == CONTROLS.promise
    main.append((step, "S" if token == CONTROLS.sync else "p" if inside else "="))
    inside, before = inside and token not in CONTROLS.lens, step
  each = "a column is a step" if scale == 1 else f"a column is {scale} steps"
  rows = [f"when ({each}):  = text   p promise   . waiting   S sync   [ ] chunk", "", row("main", "", main)]
  for number, (topic, start, body) in enumerate(zip(topics, steps.chunks, threads.chunks), start=1):
    marks = [(start, "["), *((start + n, "=") for n in range(1, len(body) + 1)), (start + len(body) + 1, "]")]
    rows.append(row(f"chunk {number}", topic, marks))
  return rows


_RANK = {" ": 0, ".": 1, "=": 2, "p": 3, "[": 4, "]": 4, "S": 5}


# --- Who sees whom.

_LEGEND = "  # sees it   \\ sees itself up to here   + sees some of it   . does not see it"
_ALL, _SOME, _NONE, _SELF, _LATER = "#+.\\ "


def _by_word(sequence: Sequence, words: Words, columns: int) -> list[str]:
  size = len(sequence)
  if _LABEL + size > columns:
    raise ValueError(f"{size} words do not fit into {columns} columns; draw it by part")
  sees = sequence.mask()
  gap = " " if _LABEL + 2 * size <= columns else ""
  rows = []
  for q, (token, thread) in enumerate(zip(sequence.ids.tolist(), sequence.thread.tolist())):
    cells = (_SELF if k == q else _ALL if sees[q, k] else _NONE for k in range(q + 1))
    name = "prompt" if q < sequence.prompt else f"chunk {thread}" if thread else "main"
    rows.append(_row(name, _word(token, words), gap.join(cells)))
  return rows


def _word(token: int, words: Words) -> str:
  if token > END_ID:
    word = words.decode([token])
    return word.strip() or ascii(word)[1:-1]
  return "" if token == _PROMPT_ID else MARKS[token]


def _by_part(sequence: Sequence, words: Words, columns: int) -> list[str]:
  parts = blocks(sequence, words)
  if len(parts) > MOST_PARTS:
    raise ValueError(f"the document has {len(parts)} parts; the drawing takes at most {MOST_PARTS}")
  whole, some = block_visibility(sequence, parts)
  together = -(-len(parts) // (columns - _LABEL))
  groups = [slice(i, min(i + together, len(parts))) for i in range(0, len(parts), together)]
  gap = " " if _LABEL + 2 * len(groups) <= columns else ""
  rows = []
  for n, q in enumerate(groups):
    cells = [_ALL if whole[q, k].all() else _SOME if some[q, k].any() else _NONE for k in groups[:n]]
    first = parts[q.start]
    text = first.text if q.stop - q.start == 1 else f"to {parts[q.stop - 1].name}"
    rows.append(_row(first.name, text, gap.join([*cells, _SELF])))
  return rows


def blocks(sequence: Sequence, words: Words) -> list[Block]:
  """The parts of a sequence, in its order."""
  ids, thread = sequence.ids.tolist(), sequence.thread.tolist()
  lens = set(CONTROLS.lens)
  found: list[tuple[int, str]] = []  # start and name
  inside = False
  for time, token in enumerate(ids):
    inside = inside or token == CONTROLS.promise
    name = (
      "prompt" if time < sequence.prompt else f"chunk {thread[time]}" if thread[time]
      else "sync" if token == CONTROLS.sync else "promise" if inside else "main"
    )  # fmt: skip
    if not found or found[-1][1] != name or token in (CONTROLS.promise, CONTROLS.sync):
      found.append((time, name))
    inside = inside and token not in lens
  starts = [start for start, _ in found]
  return [
    Block(
      start, end, name, " ".join(" ".join(_word(i, words) for i in ids[start:end] if i >= END_ID).split())
    )
    for (start, name), end in zip(found, [*starts[1:], len(ids)])
  ]


def block_visibility(sequence: Sequence, parts: Row[Block]) -> tuple[np.ndarray, np.ndarray]:
  """Whether each part sees all of each other, and any of it; NxN bool, query by key.

  Within a part the thread is one, and time, visible_at and horizon do not fall: if its first token sees the
  last of another part, all see all; if its last one does not see the first, none sees any.
  """
  first = np.array([b.start for b in parts])
  last = np.array([b.end for b in parts]) - 1
  s = sequence

  def corner(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    query, key = q[:, None], k[None]
    return visible(s.thread[query], query, s.horizon[query], s.thread[key], key, s.visible_at[key])

  return corner(first, last), corner(last, first)


def _row(name: str, text: str, cells: str) -> str:
  return f"{_cut(name, _NAME - 1):<{_NAME}}{_cut(text, _LABEL - _NAME - 2):<{_LABEL - _NAME}}{cells}"


def _cut(text: str, width: int) -> str:
  """ASCII of at most `width` characters; letters lose their accents, others become question marks."""
  text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
  text = "".join(c if " " <= c <= "~" else "?" for c in " ".join(text.split()))
  return text if len(text) <= width else text[: width - 3].rstrip() + "..."
