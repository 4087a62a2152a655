"""Rate limits: so many requests, and so many tokens, in any minute."""

import asyncio
import collections
import time


class RateLimit:
  """Lets at most `limit` pass in any window of `period` seconds.

  A single cost above the limit passes when the window is empty: waiting longer would not help it.
  """

  def __init__(self, limit: int, period: float = 60.0):
    self.limit, self.period = limit, period
    self._passed: collections.deque[list[float]] = collections.deque()  # [time, cost], the oldest first
    self._line = asyncio.Lock()

  async def wait(self, cost: int) -> list[float]:
    """Waits until `cost` fits, first come, first served; returns the entry that `settle` takes."""
    async with self._line:
      while True:
        now = time.monotonic()
        while self._passed and self._passed[0][0] <= now - self.period:
          self._passed.popleft()
        if not self.limit or not self._passed or sum(c for _, c in self._passed) + cost <= self.limit:
          entry = [now, float(cost)]
          self._passed.append(entry)
          return entry
        await asyncio.sleep(self._passed[0][0] + self.period - now)

  def settle(self, entry: list[float], cost: int) -> None:
    """Corrects what passed, once its true cost is known."""
    entry[1] = float(cost)
