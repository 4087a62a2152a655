"""Marks moved to where they cost fewer steps, with the same text for people to read.

What only begins a chunk, a list's marker or a heading of its own, belongs into the chunk, and so does the
space before it: in the main thread, every later chunk waits for it.

    Two ways:
    - <promise topic="trains" tokens="10"/><async>Trains are slow.</async>
    - <promise topic="planes" tokens="10"/><async>Planes are loud.</async>

becomes

    Two ways:<promise topic="- trains" .../><async>
    - Trains are slow.</async><promise topic="planes" .../><async>
    - Planes are loud.</async>

Space at the end of a text would be other tokens than the same space before a word: it begins what follows,
be it a chunk or the text after a sync, so that the ids are those of the plain text.

A chunk sees no sibling, but it sees earlier promises and its own: the first topic of a round says which
marker the round's chunks begin with, and every topic which number or letter.
"""

import dataclasses
import re

from pasta_jax.lang.document import Chunk, Document, Part, Sync, Text, topic_problem

_SHORT = 20  # characters of what begins a line: `- `, `2. `, `**Trains:** `, but no sentence
_LINE = re.compile(rf"(?:^|(?<=\n))[^\n]{{1,{_SHORT}}}\Z")
_HEADING = re.compile(r"(?:^|(?<=\n))(?:#{1,6} [^\n]{1,60}|\*\*[^\n]{1,60}\*\*:?)\n{1,2}\Z")
_MARKER = re.compile(r"\s*([-*+•]|\d+[.)]|[a-z]\)|#{1,6})\s")


def tighten(document: Document) -> Document:
  """The document in which chunks begin with their own list markers, headings and spaces; it reads the same.

  A heading above one chunk alone stays: it may well be that of the whole answer. The first topic of a round
  begins with its chunk's marker, any topic with its chunk's number or letter, if it has room for a word more.
  Promised lengths are left as they are, `threads.encode_document` computes them anew.
  """
  parts = document.parts
  before = [parts[n - 1] for n, part in enumerate(parts) if n and isinstance(part, Chunk)]
  headings = sum(isinstance(part, Text) and bool(_HEADING.search(part.text)) for part in before)
  out: list[Part] = []
  first = True  # no chunk yet in this round
  for part in parts:
    if isinstance(part, Chunk):
      if out and isinstance(main := out[-1], Text):
        stays = _what_stays(main.text, headings > 1)
        out[-1] = Text(main.text[:stays])
        part = dataclasses.replace(part, body=main.text[stays:] + part.body)
      part, first = _with_marker(part, first), False
    elif isinstance(part, Sync):
      first = True
      if out and isinstance(main := out[-1], Text):
        stays = len(main.text.rstrip())
        out[-1:] = [Text(main.text[:stays]), part]
        part = Text(main.text[stays:])
    elif out and isinstance(space := out[-1], Text):  # from before a sync
      part = Text(space.text + part.text)
      out.pop()
    out.append(part)
  return Document.of(out)


def _what_stays(text: str, headings: bool) -> int:
  """How many characters before a chunk are the main thread's own."""
  begins = _LINE.search(text) or (_HEADING.search(text) if headings else None)
  stays = begins.start() if begins else len(text)
  return len(text[:stays].rstrip())


def _with_marker(chunk: Chunk, first: bool) -> Chunk:
  """The chunk, its topic with its body's marker: the first of a round any, later ones a number or letter."""
  marker = _MARKER.match(chunk.body)
  if not marker or not (first or marker[1][0].isalnum()) or chunk.topic.startswith(f"{marker[1]} "):
    return chunk
  topic = f"{marker[1]} {chunk.topic}"
  return chunk if topic_problem(topic) else dataclasses.replace(chunk, topic=topic)
