"""Words as tokens, for figures and drawings that need no model: ids are numbered as words come."""

import re
from collections.abc import Iterable

from pasta_jax.lang.marks import MARKS, ControlIds

CONTROLS = ControlIds.of(range(len(MARKS)))
END_ID = len(MARKS)

_WORD = re.compile(r"\s*\S+\s*|\s+")


class Words:
  """Encodes text as words, each with the whitespace after it; the first has what stands before it, too."""

  def __init__(self) -> None:
    self._ids: dict[str, int] = {}
    self._words: list[str] = []

  def encode(self, text: str) -> list[int]:
    return [self._id(w) for w in _WORD.findall(text)]

  def _id(self, word: str) -> int:
    if word not in self._ids:
      self._ids[word] = END_ID + 1 + len(self._words)
      self._words.append(word)
    return self._ids[word]

  def decode(self, ids: Iterable[int]) -> str:
    return "".join(self._words[i - END_ID - 1] for i in ids)
