"""The demonstration's race: its figures add up, its frames fit any terminal, its flags fail early."""

import functools
import io
import json

import pytest

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import RequestError
from pasta_jax.eval.race import RUNS, Outcome, race, table
from pasta_jax.lang.parse import parse
from pasta_jax.model.bundled import FOLDER, bundled_models, find_adapter
from pasta_jax.model.errors import WeightsError
from tests.command_lines import outcomes
from tests.law import split_model
from tests.scripted import lanes_engine

rich_console = pytest.importorskip("rich.console", reason="pip install 'pasta_jax[demo]'")
from pasta_jax.eval import race_view  # noqa: E402

PROMPT = "Which way?"


@functools.cache
def events():
  """All that a race of toys yields; the engines know the same words and have the same weights."""
  sequential = Engine(split_model(), max_len=640, segment=8)
  return list(race(lanes_engine(), sequential, PROMPT, max_new_tokens=120))


def outcome() -> Outcome:
  last = events()[-1][1]
  assert isinstance(last, Outcome)
  return last


def test_runs_follow_each_other_and_the_same_text_is_the_same_text():
  names = [name for name, _ in events()]
  assert names == sorted(names, key=(*RUNS, "outcome").index)
  got = outcome()
  assert got.pasta.parallel is not None
  assert got.same_text is not None
  assert got.same_text.text == got.pasta.text
  assert got.twin.parallel is None
  for run in RUNS:
    assert "".join(e.text for name, e in events() if name == run) == getattr(got, run).text


def test_figures_are_quotients_of_what_was_measured():
  got, f = outcome(), outcome().figures()
  assert f["realised"] == pytest.approx(f["same_text"]["decode_seconds"] / f["pasta"]["decode_seconds"])
  assert f["over_twin"] == pytest.approx(f["twin"]["seconds"] / f["pasta"]["seconds"])
  assert f["theoretical"] == pytest.approx(f["plain_tokens"] / f["critical_path"])
  assert f["chunks"] == len(parse(got.pasta.parallel.annotated).chunks)
  assert f["pasta"]["steps"] <= f["pasta"]["tokens"]
  assert f["twin"]["steps"] == f["twin"]["tokens"] == got.twin.tokens
  assert f["same_text"]["tokens"] in (f["plain_tokens"], f["plain_tokens"] + 1)
  json.dumps(f)
  lines = table(got, "toy", 4).splitlines()
  assert any(line.startswith("realised speedup") and f"{f['realised']:.2f}x" in line for line in lines)
  assert any(line.startswith("theoretical") and f"{f['theoretical']:.2f}x" in line for line in lines)
  assert max(map(len, lines)) <= 100


def test_prompts_that_cannot_be_run_are_refused():
  sequential = Engine(split_model(), max_len=640, segment=8)
  with pytest.raises(RequestError, match="empty"):
    list(race(lanes_engine(), sequential, ""))


def frames(width, height):
  file = io.StringIO()
  console = rich_console.Console(
    file=file, width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False
  )
  view = race_view.RaceView(now=iter(range(10**6)).__next__)
  for name, event in events():
    if isinstance(event, Outcome):
      return
    view.add(name, event)
    file.seek(0)
    file.truncate()
    console.print(view, end="")
    yield name, file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(140, 40), (96, 24), (95, 24), (60, 30), (40, 20), (40, 10)])
def test_every_frame_fits_the_terminal(width, height):
  cell_len = pytest.importorskip("rich.cells").cell_len
  for _, lines in frames(width, height):
    assert len(lines) < height
    assert max(map(cell_len, lines)) <= width


def test_both_sides_are_seen_and_the_clock_of_the_one_stops_when_the_other_starts():
  seen = list(frames(140, 40))
  first, last = seen[0][1], [lines for name, lines in seen if name == "twin"][-1]
  assert "PASTA, in lanes" in first[0]
  assert "waits for its turn" in first[0]
  assert "waits" not in last[0]
  clocks = {lines[0].split("·")[1].split("s")[0].strip() for name, lines in seen if name == "twin"}
  assert len(clocks) == 1
  stacked = [lines for name, lines in frames(80, 30) if name == "twin"][-1]
  titles = [i for i, line in enumerate(stacked) if line.startswith((" PASTA, in lanes", " twin, one lane"))]
  assert titles[0] == 0
  assert titles[1] > 10


def test_bundled_adapters_are_found_by_name_and_paths_are_left_alone():
  assert find_adapter("runs/x.npz", "smollm2-135m") == "runs/x.npz"
  assert find_adapter("", "smollm2-135m") == ""
  with pytest.raises(WeightsError, match="no 'pasta' adapter comes with the package for gemma3-270m"):
    find_adapter("pasta", "gemma3-270m")
  assert bundled_models() == ["smollm2-135m"]
  for name in ("pasta", "twin"):
    assert find_adapter(name, "smollm2-135m") == str(FOLDER / f"smollm2-135m-{name}.npz")


MISTAKES = [
  (["--prompt=x", "--stream=lane"], "did you mean 'lanes'"),
  ([], "--prompt is empty"),
  (["--prompt=x", "--adapter=twin"], "was not trained on marks"),
  (["--prompt=x", "--twin=pasta"], "it is no twin"),
  (["--prompt=x", "--model=gemma3-270m"], "comes with the package"),
  (["--prompt=x", "--adapter=/nowhere/a.npz"], "no such file"),
]


@pytest.fixture(scope="module")
def told():
  """The outcome of every mistake."""
  return outcomes("pasta_jax.eval.demo", [flags for flags, _ in MISTAKES])


@pytest.mark.parametrize("case", range(len(MISTAKES)), ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_flags_that_cannot_be_are_one_line_before_a_model_is_loaded(told, case):
  out = told[case]
  assert out.status == 1
  assert MISTAKES[case][1] in out.stderr
  assert len(out.stderr.strip().splitlines()) == 1
