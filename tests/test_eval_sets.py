"""Prompts of an evaluation, and the folder that keeps its rows through interruptions."""

import json

import pytest

from pasta_jax.decode.journal import OutputError
from pasta_jax.eval.suite_sets import held_out_set, prompt_set
from pasta_jax.eval.suite_store import Store
from pasta_jax.train.rows import is_held_out
from tests.train_toy import write_rows


def test_the_held_out_rows_are_those_that_training_leaves_out(tmp_path):
  path = write_rows(tmp_path / "rows.jsonl", 40)
  prompts = held_out_set(path, 0.25)
  assert prompts.name == "held_out"
  assert prompts.has_references
  asked = {item.prompt for item in prompts.items}
  assert asked == {f"Question {n}" for n in range(40) if is_held_out(f"Question {n}", 0.25)}
  assert all(f"Question {int(item.id) - 1}" == item.prompt for item in prompts.items)  # called by line


def test_a_sample_is_the_same_each_time_and_keeps_the_order(tmp_path):
  path = write_rows(tmp_path / "rows.jsonl", 40)
  some, again = held_out_set(path, 0.5, 5), held_out_set(path, 0.5, 5)
  assert some == again
  assert len(some.items) == 5
  lines = [int(item.id) for item in some.items]
  assert lines == sorted(lines)
  assert held_out_set(path, 0.5, 1000) == held_out_set(path, 0.5)


def test_without_held_out_rows_one_line_says_so(tmp_path):
  path = write_rows(tmp_path / "rows.jsonl", 3)
  with pytest.raises(ValueError, match="raise --holdout"):
    held_out_set(path, 0.0)


def test_prompts_come_in_three_forms(tmp_path):
  path = tmp_path / "mixed.jsonl"
  messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm?"}]
  rows = [
    {"question_id": 7, "category": "x", "turns": ["First?", "Second?"]},
    {"id": "b", "prompt": "P\u2028Q"},
    {"messages": messages},
  ]
  path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n")
  prompts = prompt_set(str(path))
  assert (prompts.name, prompts.has_references) == ("mixed", False)
  assert [i.id for i in prompts.items] == ["7", "b", "3"]
  assert [i.prompt for i in prompts.items] == ["First?", "P\u2028Q", tuple(messages)]
  assert prompts.items[2].text == "system: Be brief.\n\nuser: Hm?"


@pytest.mark.parametrize(
  ("line", "what"),
  [
    ("{", "line 1: "),
    ("[]", "one of"),
    ("{}", "one of"),
    ('{"prompt": "a", "turns": ["b"]}', "one of"),
    ('{"prompt": " "}', "holds no text"),
    ('{"turns": []}', "holds no text"),
    ('{"turns": [3]}', "holds no text"),
    ('{"messages": []}', "is not a list of"),
    ("", "holds no prompts"),
  ],
)
def test_bad_prompts_are_one_line_with_file_and_line(tmp_path, line, what):
  path = tmp_path / "bad.jsonl"
  path.write_text(line + "\n")
  with pytest.raises(ValueError, match=r"bad\.jsonl") as e:
    prompt_set(str(path))
  assert what in str(e.value)
  assert "\n" not in str(e.value)
  with pytest.raises(ValueError, match="cannot be read"):
    prompt_set(str(tmp_path / "missing.jsonl"))


RUN = {"model": "m", "seed": (1, 2)}


def numbered(numbers):
  return ((n, {"n": n}) for n in numbers)


def test_rows_are_computed_once_and_only_those_that_are_missing(tmp_path):
  store = Store(tmp_path / "out", RUN, resume=False)

  def interrupted(numbers):
    for n in (3, 1):
      yield n, {"n": n}
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt, match=r"2 of 4 rows are kept in .*; go on with --resume"):
    store.rows("a", 4, interrupted)
  asked = []

  def rest(numbers):
    asked.extend(numbers)
    return numbered(numbers)

  again = Store(tmp_path / "out", RUN, resume=True)
  assert not again.done("a")
  assert again.rows("a", 4, rest) == [{"n": n} for n in range(4)]
  assert asked == [0, 2]
  assert again.done("a")
  assert again.rows("a", 4, rest) == [{"n": n} for n in range(4)]
  assert asked == [0, 2]


def test_a_folder_of_another_run_is_refused(tmp_path):
  Store(tmp_path, RUN, resume=False).rows("a", 2, numbered)
  with pytest.raises(OutputError, match="add --resume"):
    Store(tmp_path, RUN, resume=False)
  with pytest.raises(OutputError, match="another seed"):
    Store(tmp_path, RUN | {"seed": (1, 3)}, resume=True)
  with pytest.raises(OutputError, match="is not 3 whole rows"):
    Store(tmp_path, RUN, resume=True).rows("a", 3, numbered)
  (tmp_path / "run.json").write_text("{")
  with pytest.raises(OutputError, match="is damaged"):
    Store(tmp_path, RUN, resume=True)


def test_a_run_that_fails_before_its_first_row_leaves_nothing(tmp_path):
  def fails(numbers):
    raise ValueError("no such model")

  store = Store(tmp_path / "out", RUN, resume=False)
  with pytest.raises(ValueError, match="no such model"):
    store.rows("a", 2, fails)
  assert list((tmp_path / "out").iterdir()) == []
  Store(tmp_path / "out", RUN, resume=False)
