"""Text as it comes, without anything that may still become a stop string."""

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
  """What a tokenizer's `stream()` returns."""

  def push(self, token: int, /) -> str: ...

  def flush(self) -> str: ...


class StopText:
  """Text up to the first stop string; holds back what could be the beginning of one."""

  def __init__(self, stop: Sequence[str] = ()):
    self._stop = tuple(stop)
    self._held = ""
    self.text = ""
    self.stopped = False

  def push(self, text: str) -> str:
    """The text that this much more makes certain."""
    return self._take(text, last=False)

  def flush(self) -> str:
    """What was held back, at the end of the text."""
    return self._take("", last=True)

  def _take(self, new: str, last: bool) -> str:
    if self.stopped:
      return ""
    self._held += new
    hits = [(at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
    if hits:
      ready, self._held, self.stopped = self._held[: min(hits)[0]], "", True
    else:
      keep = 0 if last else self._partial()
      cut = len(self._held) - keep
      ready, self._held = self._held[:cut], self._held[cut:]
    self.text += ready
    return ready

  def _partial(self) -> int:
    """Length of the longest end of the held text that a stop string begins with."""
    longest = 0
    for stop in self._stop:
      for n in range(min(len(stop) - 1, len(self._held)), longest, -1):
        if self._held.endswith(stop[:n]):
          longest = n
          break
    return longest
