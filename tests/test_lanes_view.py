"""The live view of the lanes: events add up, frames fit any terminal, and a pipe gets plain text."""

import io
import sys

import pytest

from pasta_jax.decode.requests import Event, LaneEvent, Request, Sampling
from pasta_jax.decode.show import show, show_none, show_text
from tests.scripted import lanes_engine, scripted

rich_console = pytest.importorskip("rich.console", reason="pip install 'pasta_jax[demo]'")
from pasta_jax.decode import lanes_view  # noqa: E402


@pytest.fixture(scope="module")
def engine():
  return lanes_engine()


@pytest.fixture(scope="module")
def events(engine):
  return list(engine.stream(scripted()))


def requests():
  return [
    Request(
      [n, 7], max_new_tokens=150, sampling=Sampling(temperature=1.5, seed=n), fork=("eager", "grouped")[n % 2]
    )
    for n in range(12)
  ]


def test_the_events_of_a_request_add_up_to_its_text_and_each_lanes_text_to_its_thread(engine):
  seen: dict[int, list[Event]] = {}
  for event in engine.serve(requests()):
    seen.setdefault(event.index, []).append(event)
  split = 0
  for own in seen.values():
    result = own[-1].result
    assert "".join(e.text for e in own) == result.text
    threads: dict[int, str] = {}
    for lane in (lane for e in own for lane in e.lanes):
      threads[lane.thread] = threads.get(lane.thread, "") + lane.text
    chunks = result.parallel.document.chunks
    assert [threads.get(n, "") for n in range(1, len(chunks) + 1)] == [c.body for c in chunks]
    main = "".join(p.text for p in result.parallel.document.parts if hasattr(p, "text"))
    assert threads.get(0, "") == main
    assert max((lane.drawn for e in own for lane in e.lanes), default=result.tokens) <= result.tokens
    split += bool(chunks)
  assert split > 3


def test_a_chunk_tells_its_topic_and_promise_when_it_opens_and_closes_once(events):
  lanes = [lane for e in events for lane in e.lanes]
  opened = [(e.thread, e.topic, e.promised) for e in lanes if e.kind == "open"]
  assert opened == [(1, "by train", 20), (2, "by plane", 30), (3, "last", 10)]
  assert sorted(e.thread for e in lanes if e.kind == "close") == [1, 2, 3]
  assert [e.kind for e in lanes].count("sync") == 1
  assert [e.kind for e in lanes].count("end") == 1
  assert {e.width for e in lanes} == {1, 2, 4}


def test_text_of_later_chunks_is_held_back_until_it_is_due(events):
  shown = ""
  for event in events:
    shown += event.text
    plane = [lane for lane in event.lanes if lane.thread == 2 and lane.kind == "text"]
    if plane and "work." not in shown:
      break
  else:
    raise AssertionError("the second chunk never ran beside the first")
  assert "Plane" not in shown


def frames(events, width, height):
  """The view after each event, as lines of text."""
  file = io.StringIO()
  console = rich_console.Console(
    file=file, width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False
  )
  view = lanes_view.LanesView(now=iter(range(10_000)).__next__)
  for event in events:
    view.add(event)
    file.seek(0)
    file.truncate()
    console.print(view, end="")
    yield view.board, file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24), (60, 30), (40, 20), (40, 8), (20, 4)])
def test_every_frame_fits_the_terminal(events, width, height):
  cell_len = pytest.importorskip("rich.cells").cell_len
  most = 0
  for _, lines in frames(events, width, height):
    assert len(lines) < height
    assert max(map(cell_len, lines)) <= width
    most = max(most, len(lines))
  assert most > (2 if height > 5 else 0)


def test_chunks_that_run_stand_side_by_side_with_topic_and_promise_below_main(events):
  lines = next(lines for board, lines in frames(events, 80, 24) if board.running == 2)
  titles = next(line for line in lines if "by train" in line and "╭" in line)
  assert "by plane" in titles
  assert "main" in lines[0]
  assert "/20" in "".join(lines)
  assert "/30" in "".join(lines)
  assert "step" in lines[-1]
  assert "width 4" in lines[-1]
  assert "tokens/s" in lines[-1]
  narrow = next(lines for board, lines in frames(events, 40, 24) if board.running == 2)
  assert not any("by train" in line and "by plane" in line and "╭" in line for line in narrow)


def test_a_joined_round_makes_room_for_the_next(events):
  boards = [([p.number for p in b.panels], b.waits) for b, _ in frames(events, 80, 24)]
  assert ([1, 2], True) in boards
  assert boards[-1][0] == [3]


def test_more_chunks_than_fit_are_counted_and_those_that_run_are_shown():
  view = lanes_view.LanesView()
  lanes = [LaneEvent(n, 0, n, "open", f"topic {n}", promised=10) for n in range(1, 10)]
  lanes += [
    LaneEvent(10, 1, 8, "text", "topic 8", "body", 1),
    LaneEvent(10, 1, 9, "text", "topic 9", "body", 1),
  ]
  view.add(Event(0, "", lanes=tuple(lanes)))
  console = rich_console.Console(width=60, height=12, record=True, file=io.StringIO(), force_terminal=True)
  console.print(view)
  text = console.export_text()
  assert "8 topic 8" in text
  assert "9 topic 9" in text
  assert "7 not shown" in text


def test_text_of_a_model_moves_no_cursor(events):
  for _, lines in frames(events, 80, 24):
    assert "\x1b" not in "".join(lines)
  assert any("�[31m" in line for line in lines)


def test_a_live_view_ends_with_the_answer_in_reading_order(events, capsys):
  file = io.StringIO()
  console = rich_console.Console(file=file, width=80, height=24, force_terminal=True, legacy_windows=False)
  result = lanes_view.show_lanes(events, console)
  assert capsys.readouterr().out == result.text + "\n"
  assert "by train" in file.getvalue()
  assert "\x1b[" in file.getvalue()


@pytest.mark.parametrize("stream", ["lanes", "text", "none"])
def test_a_pipe_gets_the_text_and_no_escapes(events, stream, capsys):
  assert not sys.stdout.isatty()
  result = show(stream)(events)
  plain = capsys.readouterr().out
  assert plain == result.text + "\n"
  assert "╭" not in plain


@pytest.mark.parametrize(
  "changes", [{"is_jupyter": True}, {"is_dumb_terminal": True}, {"is_terminal": False}]
)
def test_notebooks_and_dumb_terminals_get_text(changes, monkeypatch):
  class Fake(rich_console.Console):
    is_terminal, is_dumb_terminal = True, False

    def __init__(self, **kw):
      super().__init__(**kw)
      for name, value in changes.items():
        setattr(self, name, value)

  monkeypatch.setattr(lanes_view, "Console", Fake)
  assert lanes_view.live_console() is None
  assert show("lanes") is show_text
  changes.clear()
  assert lanes_view.live_console() is not None


def test_an_answer_shown_at_its_end_comes_whole(events, capsys):
  assert show("none") is show_none
  result = show_none(events)
  assert capsys.readouterr().out == result.text + "\n"


def test_lanes_without_rich_say_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "pasta_jax.decode.lanes_view", None)
  with pytest.raises(ImportError, match=r"pasta_jax\[demo\]"):
    show("lanes")
