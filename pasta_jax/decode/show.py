"""How an answer is shown: as text in reading order, as lanes side by side, or not until it is whole."""

from collections.abc import Callable, Iterable
from typing import Any

from pasta_jax.decode.requests import Event, Result


def show(stream: str) -> Callable[[Iterable[Event]], Result]:
  """What prints the events of one request to standard output, and returns its result.

  Args:
    stream: "text", "lanes" or "none"; lanes become text where standard output is no terminal.

  Raises:
    ImportError: lanes without `rich`.
  """
  console = lanes_console() if stream == "lanes" else None
  if console is not None:
    from pasta_jax.decode.lanes_view import show_lanes

    return lambda events: show_lanes(events, console)
  return show_none if stream == "none" else show_text


def lanes_console() -> Any:
  """A console for lanes if standard output is a terminal that can show them; else None.

  Raises:
    ImportError: without `rich`.
  """
  try:
    from pasta_jax.decode.lanes_view import live_console
  except ImportError:
    raise ImportError("--stream=lanes needs rich: pip install 'pasta_jax[demo]'") from None
  return live_console()


def show_text(events: Iterable[Event]) -> Result:
  """Prints text as it comes, in reading order."""
  result: Result | None = None
  for event in events:
    print(event.text, end="", flush=True)
    result = event.result
  assert result is not None
  print(flush=True)
  return result


def show_none(events: Iterable[Event]) -> Result:
  """Prints the whole answer at its end."""
  result = None
  for event in events:
    result = event.result
  assert result is not None
  print(result.text, flush=True)
  return result
