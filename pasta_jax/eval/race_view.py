"""A race in a terminal: PASTA's lanes on the left, its twin on the right; a narrow one has them stacked."""

import time
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pasta_jax.decode.lanes_view import LanesView, draw_panel, visible_text
from pasta_jax.decode.requests import Event
from pasta_jax.eval.race import Outcome

SIDE_BY_SIDE = 96  # columns that it takes
TITLES = {"pasta": "PASTA, in lanes", "twin": "twin, one lane"}


class Clock:
  """Seconds of one run, from its first event to its end."""

  def __init__(self, now=time.perf_counter) -> None:
    self.now, self.start, self.end = now, None, None

  def begin(self) -> None:
    self.start = self.now()

  def stop(self) -> None:
    self.end = self.now()

  @property
  def seconds(self) -> float:
    if self.start is None:
      return 0.0
    return (self.now() if self.end is None else self.end) - self.start


class RaceView:
  """Draws both runs as large as the terminal allows; a `rich` renderable.

  Attributes:
    lanes: PASTA's side.
    twin: the twin's text so far.
    clocks: of both.
    says: a line below.
  """

  def __init__(self, now=time.perf_counter) -> None:
    self.lanes = LanesView(now)
    self.twin = ""
    self.clocks = {name: Clock(now) for name in TITLES}
    self.says = ""

  def add(self, name: str, event: Event) -> None:
    if name in self.clocks and self.clocks[name].start is None:
      self.clocks[name].begin()
    if name == "pasta":
      self.lanes.add(event)
    elif name == "twin":
      self.twin += event.text
    if event.result is not None and name in self.clocks:
      self.clocks[name].stop()
      if name == "pasta":
        seconds = self.clocks[name].seconds
        started = self.lanes.started or 0.0
        self.lanes.now = lambda: started + seconds
      else:
        self.says = "PASTA's text once more, one token at a time ..."

  def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
    yield self.draw(console, options.max_width, options.height or console.size.height)

  def draw(self, console: Console, width: int, height: int) -> RenderableType:
    """The view in `width` columns and at most `height` lines."""
    room = height - 3  # a title, a line below, and one that stays free
    if width >= SIDE_BY_SIDE:
      left = width * 3 // 5
      right = width - left - 1
      grid = Table.grid(padding=(0, 1, 0, 0))
      grid.add_column(width=left - 1)
      grid.add_column(width=right)
      grid.add_row(self._title("pasta"), self._title("twin"))
      lanes = self.lanes.draw(console, left - 1, room + 1)
      grid.add_row(lanes, self._twin(console, right, room))
      return Group(grid, self._says())
    below = max(room // 3, 3)
    return Group(
      self._title("pasta"),
      self.lanes.draw(console, width, room - below + 1),
      self._title("twin"),
      self._twin(console, width, below - 1),
      self._says(),
    )

  def _says(self) -> Text:
    return Text(self.says, style="dim", no_wrap=True, overflow="ellipsis")

  def _title(self, name: str) -> Text:
    clock = self.clocks[name]
    state = "waits for its turn" if clock.start is None else f"{clock.seconds:.1f} s"
    return Text(f" {TITLES[name]} · {state}", style="bold", no_wrap=True, overflow="ellipsis")

  def _twin(self, console: Console, width: int, height: int) -> Panel:
    state = "" if self.clocks["twin"].end is None else "ended"
    return draw_panel(console, Text(visible_text(self.twin)), width, height, Text("answer"), state, "white")


def show_race(events: Iterable[tuple[str, Event | Outcome]], console: Console) -> Outcome:
  """Shows a race while it runs, then prints both answers in reading order."""
  view, outcome = RaceView(), None
  with Live(view, console=console, refresh_per_second=15, transient=True, vertical_overflow="crop"):
    for name, event in events:
      if isinstance(event, Outcome):
        outcome = event
      else:
        view.add(name, event)
  assert outcome is not None
  for name, result in (("pasta", outcome.pasta), ("twin", outcome.twin)):
    console.rule(TITLES[name], align="left", characters="-")
    print(result.text, flush=True)
  console.rule(characters="-")
  return outcome
