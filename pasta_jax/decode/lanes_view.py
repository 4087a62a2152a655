"""A live terminal view of an answer's lanes: the main thread above, its running chunks side by side.

╭─ main ────────────────────────────────╮
│ Two ways to travel:                   │   the end of what the main thread has written;
│ - ‹by train› - ‹by plane›             │   a chunk stands as its topic
╰───────────────────────────────────────╯
╭─ 1 by train ──────╮╭─ 2 by plane ─────╮
│ **Train.** Slower ││ **Plane.** Fas   │   the end of what each chunk has written
╰──────────── 8/20 ─╯╰─────────── 7/30 ─╯   ids of the promised length
 step 21 · width 4 · 2 of 2 chunks run · 61 tokens/s
"""

import dataclasses
import time
from collections.abc import Iterable

from rich import box
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from pasta_jax.decode.requests import Event, LaneEvent, Result

# A panel narrower or lower than this says too little.
LEAST_WIDTH, LEAST_HEIGHT = 28, 4
MOST_HEIGHT = 12
COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red")


@dataclasses.dataclass
class LanePanel:
  """A chunk as it is seen.

  Attributes:
    number: of its thread.
    topic, promised: what its promise says.
    state: "waits" (for a lane or its round), "runs" or "done".
    text: so far.
    ids: drawn so far.
  """

  number: int
  topic: str
  promised: int
  state: str = "waits"
  text: str = ""
  ids: int = 0

  @property
  def color(self) -> str:
    return COLORS[(self.number - 1) % len(COLORS)]


class Board:
  """What the view shows of one request; `add` takes its events.

  Attributes:
    main: the main thread's text, with (topic, color) where a chunk stands.
    panels: chunks of the round, in the order of their promises.
    waits: the main thread is at a sync.
    ended: the main thread has ended.
    chunks: chunks so far.
    step, width, tokens: of the last event.
  """

  def __init__(self) -> None:
    self.main: list[str | LanePanel] = []
    self.panels: list[LanePanel] = []
    self.waits = self.ended = False
    self.chunks = self.step = self.tokens = 0
    self.width = 1
    self._by_thread: dict[int, LanePanel] = {}

  def add(self, event: Event) -> None:
    for lane in event.lanes:
      self._add(lane)

  def _add(self, e: LaneEvent) -> None:
    self.step, self.width, self.tokens = e.step, e.width, e.drawn
    if e.kind == "open":
      self._goes_on()
      panel = LanePanel(e.thread, e.topic, e.promised)
      self._by_thread[e.thread] = panel
      self.panels.append(panel)
      self.main.append(panel)
      self.chunks += 1
    elif e.thread:
      panel = self._by_thread[e.thread]
      panel.state = "done" if e.kind == "close" else "runs"
      panel.text += e.text
      panel.ids = max(panel.ids, e.ids)
    elif e.kind == "text":
      self._goes_on()
      self.main.append(e.text)
    elif e.kind == "sync":
      self.waits = True
    elif e.kind == "end":
      self.ended, self.waits = True, False

  def _goes_on(self) -> None:
    """The main thread writes: what it waited for is joined, and makes room for the next round."""
    if self.waits:
      self.waits = False
      self.panels = [p for p in self.panels if p.state != "done"]

  @property
  def running(self) -> int:
    return sum(p.state == "runs" for p in self._by_thread.values())


class LanesView:
  """Draws a board as large as the terminal allows; a `rich` renderable.

  Attributes:
    board: what it draws.
    started: when, in seconds of time.perf_counter; None until the first event.
    now: the clock; another one for pictures.
  """

  def __init__(self, now=time.perf_counter) -> None:
    self.board = Board()
    self.started: float | None = None
    self.now = now

  def add(self, event: Event) -> None:
    if self.started is None:
      self.started = self.now()
    self.board.add(event)

  def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
    height = options.height or console.size.height
    yield self.draw(console, options.max_width, height)

  def draw(self, console: Console, width: int, height: int) -> RenderableType:
    """The view in `width` columns and at most `height` lines."""
    panels = self.board.panels
    # The last line stays free: a terminal scrolls when it is written.
    room = height - 2
    if room < LEAST_HEIGHT:
      return self._footer(0)
    columns = max(min(width // LEAST_WIDTH, len(panels)), 1)
    # The main thread has a third, or less where the chunks would not fit otherwise.
    wanted = -(-len(panels) // columns) * LEAST_HEIGHT
    least_main = max(min(room // 3, room - wanted), LEAST_HEIGHT)
    rows = min(-(-len(panels) // columns), (room - least_main) // LEAST_HEIGHT)
    shown = _fit(panels, rows * columns)
    panel_height = min((room - least_main) // rows, MOST_HEIGHT) if rows else 0
    main_height = min(room - rows * panel_height, MOST_HEIGHT)
    parts: list[RenderableType] = [self._main(console, width, main_height)]
    for at in range(0, len(shown), columns):
      parts.append(self._row(console, shown[at : at + columns], width, columns, panel_height))
    parts.append(self._footer(len(panels) - len(shown)))
    return Group(*parts)

  def _row(
    self, console: Console, panels: list[LanePanel], width: int, columns: int, height: int
  ) -> RenderableType:
    each = width // columns
    return Columns(
      [self._chunk(console, p, each, height) for p in panels], padding=(0, 0), width=each, expand=False
    )

  def _main(self, console: Console, width: int, height: int) -> Panel:
    text = Text()
    for part in self.board.main:
      if isinstance(part, LanePanel):
        text.append(f"‹{visible_text(part.topic)}›", style=f"bold {part.color}")
      else:
        text.append(visible_text(part))
    state = "waits for its chunks" if self.board.waits else "ended" if self.board.ended else ""
    return draw_panel(console, text, width, height, Text("main", style="bold"), state, "white")

  def _chunk(self, console: Console, panel: LanePanel, width: int, height: int) -> Panel:
    title = Text(f"{panel.number} {visible_text(panel.topic)}", style=f"bold {panel.color}")
    below = f"{panel.state} {panel.ids}/{panel.promised}"
    text = Text(visible_text(panel.text), style="dim" if panel.state == "done" else "")
    return draw_panel(console, text, width, height, title, below, panel.color)

  def _footer(self, hidden: int) -> Text:
    b = self.board
    seconds = self.now() - self.started if self.started is not None else 0.0
    facts = [f"step {b.step}", f"width {b.width}"]
    if seconds > 0:
      facts.append(f"{b.tokens / seconds:.0f} tokens/s")
    if hidden:
      facts.append(f"{hidden} not shown")
    if b.chunks:
      facts.append(f"{b.running} of {b.chunks} chunks run")
    return Text(" " + " · ".join(facts), style="reverse", no_wrap=True, overflow="ellipsis")


def _fit(panels: list[LanePanel], count: int) -> list[LanePanel]:
  """At most `count` panels in their order; those that run first, then those that wait."""
  order = sorted(panels, key=lambda p: ("runs", "waits", "done").index(p.state))
  chosen = {p.number for p in order[:count]}
  return [p for p in panels if p.number in chosen]


def draw_panel(
  console: Console, text: Text, width: int, height: int, title: Text, below: str, color: str
) -> Panel:
  """A panel with the last lines of a text that it has room for."""
  text.rstrip()
  # Empty lines say nothing here, and cost room.
  lines = [line for line in text.wrap(console, max(width - 4, 1)) if line.plain.strip()]
  room = max(height - 2, 1)
  return Panel(
    Text("\n").join(lines[-room:]),
    title=title,
    title_align="left",
    subtitle=below or None,
    subtitle_align="right",
    width=width,
    height=height,
    box=box.ROUNDED,
    border_style=color,
    padding=(0, 1),
  )


def visible_text(text: str) -> str:
  """Text that moves no cursor: tabs become spaces, other control characters U+FFFD."""
  return "".join(
    c if c == "\n" or c.isprintable() else "    " if c == "\t" else "�" if ord(c) < 160 else c for c in text
  )


def live_console() -> Console | None:
  """A console on standard output if that is a terminal that can move its cursor; else None."""
  console = Console(highlight=False)
  fit = console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter
  return console if fit else None


def show_lanes(events: Iterable[Event], console: Console) -> Result:
  """Shows the lanes while they fill, then prints the answer in reading order.

  Args:
    events: of one request.
    console: on a terminal.
  """
  view, result = LanesView(), None
  with Live(view, console=console, refresh_per_second=15, transient=True, vertical_overflow="crop"):
    for event in events:
      view.add(event)
      result = event.result
  assert result is not None
  print(result.text, flush=True)
  return result
