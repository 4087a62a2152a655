"""The suite of stage 1 from prompts to figures, with a toy model: whole, interrupted, and refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pasta_jax.eval import suite_answers, suite_stage1
from pasta_jax.eval.report import table
from pasta_jax.eval.report_figures import to_json
from pasta_jax.eval.suite_models import Models
from pasta_jax.eval.suite_options import Options
from pasta_jax.eval.suite_sets import Item
from pasta_jax.eval.suite_store import Store
from pasta_jax.lang.parse import parse
from pasta_jax.model.adapter import save_adapter
from pasta_jax.train.rows import is_held_out
from tests.eval_toy import base_model, run, toy_adapter, toy_options

FILES = {"run.json", "answers.html", "times.held_out.jsonl", "times.more.jsonl"}
FILES |= {f"{what}.{who}.{s}.jsonl" for what in ("answers", "likelihood") for who in ("pasta", "twin", "base")
          for s in ("held_out", "more")}  # fmt: skip
FILES |= {f"text_loss.{who}.held_out.jsonl" for who in ("pasta", "twin")}


def read(path):
  return [json.loads(line) for line in path.read_bytes().splitlines()]


@dataclasses.dataclass
class Finished:
  options: Options
  figures: dict
  folder: Path
  before: list  # rows that were there when it was interrupted
  answered: int
  said: list


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run that was interrupted in the twin's answers, and then went on."""
  folder = tmp_path_factory.mktemp("eval")
  options = toy_options(folder)
  made = suite_answers.answer_row
  answered = 0

  def counting(*args):
    nonlocal answered
    answered += 1
    if answered == 11:
      raise KeyboardInterrupt
    return made(*args)

  suite_answers.answer_row = counting
  said = []
  try:
    with pytest.raises(KeyboardInterrupt, match=r"2 of 6 rows are kept in .*answers\.twin\.held_out"):
      run(options, said.append)
    partial = folder / "out" / "answers.twin.held_out.jsonl.partial"
    before = [entry["output"] for entry in read(partial)[1:]]
    figures = run(dataclasses.replace(options, resume=True), said.append)
  finally:
    suite_answers.answer_row = made
  return Finished(options, figures, folder / "out", before, answered, said)


def test_an_interrupted_run_keeps_its_rows_and_asks_no_prompt_twice(finished):
  assert finished.answered == 3 * 8 + 1
  assert len(finished.before) == 2
  rows = read(finished.folder / "answers.twin.held_out.jsonl")
  assert [row for row in rows if row in finished.before] == finished.before
  assert {p.name for p in finished.folder.iterdir()} == FILES
  assert finished.said.count("answers, pasta, held_out: 6 prompts") == 1
  assert finished.said.count("answers, twin, held_out: 6 prompts") == 2


def test_rows_are_what_the_models_said_in_the_order_of_the_prompts(finished):
  rows = read(finished.folder / "answers.pasta.held_out.jsonl")
  assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), key=int)
  assert any(row["chunks"] for row in rows)
  for row in rows:
    document = parse(row["annotated"])
    assert document.plain == row["text"]
    assert len(document.chunks) == row["chunks"] == len(row["bodies"]) == len(row["position_error"])
    assert row["problems"] == []
    assert row["tokens"] <= finished.options.max_new_tokens
  for who in ("twin", "base"):
    assert all(row["chunks"] == 0 for row in read(finished.folder / f"answers.{who}.held_out.jsonl"))
  assert [row["id"] for row in read(finished.folder / "answers.base.more.jsonl")] == ["7", "2"]


def test_every_figure_is_there(finished):
  held, more = finished.figures["sets"]["held_out"], finished.figures["sets"]["more"]
  assert held["pasta"]["valid"].value == more["pasta"]["valid"].value == 1
  assert (held["prompts"], held["reference_splits"], more["prompts"]) == (6, 3, 2)
  assert held["text_loss"]["pasta_over_twin"].value > 0
  assert "text_loss" not in more
  assert held["speed"]["timed"] == 6
  assert held["speed"]["realised"]["all"].n == held["speed"]["twin_seconds"]["all"].n == 6
  assert 0 < held["speed"]["realised"]["where_split"].value < 100
  for who in ("pasta", "twin", "base"):
    assert held[who]["log_likelihood"].value < 0
  json.dumps(to_json(finished.figures), allow_nan=False)
  assert "documents valid" in table(finished.figures)
  page = (finished.folder / "answers.html").read_text()
  assert "&lt;b&gt;$Bold&lt;/b&gt; &amp; more" in page
  assert page.count("<article ") == 8


def test_a_finished_run_is_reported_again_without_a_model(finished, monkeypatch):
  def none(*_):
    raise AssertionError("no model is needed")

  monkeypatch.setattr(Models, "get", none)
  again = suite_stage1.run(dataclasses.replace(finished.options, resume=True))
  assert again["sets"] == finished.figures["sets"]


@pytest.mark.parametrize(
  ("changes", "what"),
  [
    ({"resume": False}, "add --resume"),
    ({"max_new_tokens": 47}, "another max_new_tokens"),
    ({"timed": 3}, "another timed"),
  ],
)
def test_a_folder_of_another_run_is_not_mixed_up(finished, changes, what):
  with pytest.raises(ValueError, match=what):
    suite_stage1.run(dataclasses.replace(finished.options, **({"resume": True} | changes)))


def test_a_prompt_that_does_not_fit_is_told_before_any_is_answered(tmp_path):
  options = toy_options(tmp_path, prompts="")
  long = next(p for p in (c * 500 for c in "abcdefghijklmnopqrstuvwxyz") if is_held_out(p, 0.25))
  (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": long, "document": "y"}) + "\n")
  with pytest.raises(ValueError, match=r"rows\.jsonl, prompt 1: the prompt has 500 tokens") as e:
    run(options)
  assert "raise max_len" in str(e.value)
  assert not list((tmp_path / "out").iterdir())


def test_adapters_of_the_wrong_kind_are_refused(tmp_path):
  options = toy_options(tmp_path)
  with pytest.raises(ValueError, match="was not trained on marks"):
    run(dataclasses.replace(options, adapter=options.twin))
  with pytest.raises(ValueError, match="it is no twin"):
    run(dataclasses.replace(options, twin=options.adapter))
  with pytest.raises(ValueError, match="that it was trained on"):
    run(dataclasses.replace(options, holdout=0.6))
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("trained", "what"),
  [
    ({"holdout": 0.1}, "0.1 of the prompts were held out"),
    ({"holdout": 0.5, "twin": True}, "was not trained on marks"),
  ],
)
def test_models_trained_in_full_are_known_by_their_run(tmp_path, trained, what):
  options = toy_options(tmp_path)
  folder = tmp_path / "run" / "model"
  folder.mkdir(parents=True)
  options = dataclasses.replace(options, adapter=str(folder))
  assert Models(options).notes == [f"note: {folder} does not say which prompts it was trained on"]
  (tmp_path / "run" / "run.json").write_text(json.dumps({"config": trained}))
  with pytest.raises(ValueError, match=what):
    Models(options)


def test_settings_that_differ_from_the_training_are_noted(tmp_path):
  options = toy_options(tmp_path)
  save_adapter(options.adapter, toy_adapter(True, positions="max"))
  notes = Models(dataclasses.replace(options, model="other")).notes
  assert any("--positions=max" in note for note in notes)
  assert sum("was trained on toy, --model is other" in note for note in notes) == 2


def test_references_are_laid_out_as_the_adapter_learned_them(tmp_path):
  options = toy_options(tmp_path)
  document = parse('- <promise topic="b" tokens="10"/><async>Bees.</async>')
  bees, marker = ([*text.encode()] for text in ("Bees.", "- "))
  for tight, body in ((False, bees), (True, marker + bees)):
    save_adapter(options.adapter, toy_adapter(True, tighten=tight))
    suite = suite_stage1._Suite(options, [], Models(options), Store.__new__(Store), print)
    sequence = suite._reference(Item("1", "x", document), base_model(), "pasta")
    assert [*sequence.ids[sequence.thread == 1][1:-1]] == body


def test_the_batch_may_change_when_a_run_goes_on(tmp_path):
  options = toy_options(tmp_path)
  assert dataclasses.replace(options, batch_size=8, resume=True, output_dir="other").run == options.run
  assert dataclasses.replace(options, lanes=3).run != options.run


@pytest.mark.parametrize(
  ("changes", "what"),
  [
    ({"positions": "pred"}, "did you mean 'pred10'"),
    ({"positions": "oracle"}, "--positions must be one of"),
    ({"fork": "eagre"}, "did you mean 'eager'"),
    ({"dtype": "float"}, "--dtype must be one of"),
    ({"lanes": 1}, "at least 2"),
    ({"output_dir": ""}, "--output_dir is needed"),
    ({"adapter": ""}, "--adapter is needed"),
    ({"twin": "no/such.npz"}, "no such file or folder"),
  ],
)
def test_bad_options_are_one_line(tmp_path, changes, what):
  with pytest.raises(ValueError, match="--") as e:
    toy_options(tmp_path, **changes)
  assert what in str(e.value)
  assert "\n" not in str(e.value)


def test_the_program_ends_a_mistake_with_one_line():
  done = subprocess.run(
    [sys.executable, "-m", "pasta_jax.eval.main", "--suite=stage2"],
    capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  assert done.returncode == 1
  assert done.stderr == "error: --suite must be one of stage1, got 'stage2'; did you mean 'stage1'?\n"
