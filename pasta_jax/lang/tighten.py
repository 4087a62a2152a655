"""Marks moved to where they cost fewer steps, with the same text for people to read.

What only begins a chunk, a list's marker or a heading of its own, belongs into the chunk: in the main thread,
every later chunk waits for it.

    - <promise topic="trains" tokens="10"/><async>Trains are slow.</async>
    <promise topic="trains" tokens="10"/><async>- Trains are slow.</async>
"""

import dataclasses
import re

from pasta_jax.lang.document import Chunk, Document, Part, Text

_SHORT = 20  # characters of what begins a line: `- `, `2. `, `**Trains:** `, but no sentence
_LINE = re.compile(rf"(?:^|(?<=\n))[^\n]{{1,{_SHORT}}}\Z")
_HEADING = re.compile(r"(?:^|(?<=\n))(?:#{1,6} [^\n]{1,60}|\*\*[^\n]{1,60}\*\*:?)\n{1,2}\Z")


def tighten(document: Document) -> Document:
  """The document in which chunks begin with their own list markers and headings; it reads the same.

  A heading above one chunk alone stays: it may well be that of the whole answer. Promised lengths are left as
  they are, `threads.encode_document` computes them anew.
  """
  parts = document.parts
  before = [parts[n - 1] for n, part in enumerate(parts) if n and isinstance(part, Chunk)]
  headings = sum(isinstance(part, Text) and bool(_HEADING.search(part.text)) for part in before)
  out: list[Part] = []
  for part in parts:
    if isinstance(part, Chunk) and out and isinstance(main := out[-1], Text):
      begins = _LINE.search(main.text) or (_HEADING.search(main.text) if headings > 1 else None)
      if begins:
        out[-1] = Text(main.text[: begins.start()])
        part = dataclasses.replace(part, body=begins[0] + part.body)
    out.append(part)
  return Document.of(out)
