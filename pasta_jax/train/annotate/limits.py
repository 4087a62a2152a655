"""What holds requests back: their number and tokens in any minute, and pauses that an endpoint asks for."""

import asyncio
import collections
import time


class RateLimit:
  """Counts what passed: at most `limit` may in any window of `period` seconds; 0 is no limit.

  A single cost above the limit passes when the window is empty: waiting longer would not help it.
  """

  def __init__(self, limit: int, period: float = 60.0):
    self.limit, self.period = limit, period
    self._passed: collections.deque[list[float]] = collections.deque()  # [time, cost], the oldest first

  def delay(self, cost: int, now: float) -> float:
    """Seconds after which `cost` may fit; 0 if it does."""
    while self._passed and self._passed[0][0] + self.period <= now:
      self._passed.popleft()
    if not self.limit or not self._passed or sum(c for _, c in self._passed) + cost <= self.limit:
      return 0.0
    return self._passed[0][0] + self.period - now

  def take(self, cost: int, now: float) -> list[float]:
    """Lets `cost` pass; returns the entry that `settle` takes."""
    entry = [now, float(cost)]
    self._passed.append(entry)
    return entry

  def settle(self, entry: list[float], cost: int) -> None:
    """Corrects what passed, once its true cost is known."""
    entry[1] = float(cost)


class Gate:
  """Lets requests pass, first come, first served, at a moment at which nothing holds them back.

  The limits are taken from together: a place in one, held while waiting for the other or for a pause to end,
  would be counted in an earlier window than the one in which the request is sent.
  """

  def __init__(self, requests: RateLimit, tokens: RateLimit):
    self.requests, self.tokens = requests, tokens
    self._not_before = 0.0
    self._line = asyncio.Lock()

  def pause(self, seconds: float) -> None:
    """Lets nothing pass for so long, those that wait already included."""
    self._not_before = max(self._not_before, time.monotonic() + seconds)

  async def wait(self, tokens: int) -> list[float]:
    """Waits until a request of so many tokens may be sent; returns the entry that `tokens.settle` takes."""
    async with self._line:
      while True:
        now = time.monotonic()
        held = max(self._not_before - now, self.requests.delay(1, now), self.tokens.delay(tokens, now))
        if held <= 0:
          self.requests.take(1, now)
          return self.tokens.take(tokens, now)
        await asyncio.sleep(held)
