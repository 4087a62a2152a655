"""Watching a run: losses that are not numbers or run away, and requests to stop."""

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax

from pasta_jax.runtime import Terminated


class DivergedError(ValueError):
  """Training that cannot go on."""


class Watch:
  """Stops a run whose loss is not finite, or has risen to `factor` times the lowest it was.

  The loss is averaged over about `_SPAN` steps first, so that one hard batch stops nothing.
  """

  _SPAN = 20

  def __init__(self, factor: float):
    self._factor = factor
    self._average: float | None = None
    self._lowest = math.inf
    self._seen = 0

  def see(self, step: int, loss: float, gradient_norm: float) -> None:
    """Takes one step's figures.

    Raises:
      DivergedError: the run must stop.
    """
    for name, value in (("loss", loss), ("gradient", gradient_norm)):
      if not math.isfinite(value):
        raise DivergedError(f"step {step}: the {name} is {value}")
    self._average = loss if self._average is None else self._average + (loss - self._average) / self._SPAN
    self._seen += 1
    self._lowest = min(self._lowest, self._average)
    if self._factor and self._seen > self._SPAN and self._average > self._factor * self._lowest:
      raise DivergedError(
        f"step {step}: the loss diverges: {self._average:.3f} on average, after {self._lowest:.3f} at best"
      )

  @property
  def state(self) -> dict[str, Any]:
    """For a checkpoint; JSON values."""
    return {"average": self._average, "lowest": self._lowest if self._seen else None, "seen": self._seen}

  @state.setter
  def state(self, values: dict[str, Any]) -> None:
    self._average, self._seen = values["average"], values["seen"]
    self._lowest = math.inf if values["lowest"] is None else values["lowest"]


class StopRequest:
  """Whether SIGTERM or SIGINT has come; of several processes, whether any of them got SIGTERM."""

  def __init__(self) -> None:
    self.signal: int | None = None

  def due(self, step: int) -> bool:
    """Whether to stop before the next step. All processes must ask at every step, and get the same answer."""
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      return multihost_utils.reached_preemption_sync_point(step)
    return self.signal is not None

  @property
  def exception(self) -> KeyboardInterrupt:
    return KeyboardInterrupt() if self.signal == signal.SIGINT else Terminated()


@contextlib.contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
  """Within, a first SIGTERM or SIGINT waits until the step under way is done; a second one interrupts it."""
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
    yield request  # signals belong to the main thread; of several processes, to JAX's preemption service
    return

  def on_signal(number: int, frame: Any) -> None:
    if request.signal is not None:
      raise request.exception
    request.signal = number

  before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
