"""Files of prompts: order, bad rows, interruption and resumption."""

import json

import pytest

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.journal import OutputError, open_journal, partial_path
from pasta_jax.decode.requests import Request
from pasta_jax.decode.rows import answer_rows, check_input, read_rows
from tests.toy import toy_model


@pytest.fixture(scope="module")
def engine():
  return Engine(toy_model(), batch_size=3, max_len=64)


def write_rows(path, lines):
  path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines) + b"\n")
  return read_rows(str(path))


def make(row):
  return Request(row.values["prompt"], max_new_tokens=3 + row.line % 7)


def read_output(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_keep_the_order_of_rows_and_their_other_keys(engine, tmp_path):
  rows = write_rows(tmp_path / "in.jsonl", [{"prompt": f"p{i}", "id": i, "extra": [i]} for i in range(9)])
  journal = open_journal(tmp_path / "out.jsonl", {}, resume=False)
  assert answer_rows(engine, rows, journal, make) == 0
  journal.finish()
  out = read_output(tmp_path / "out.jsonl")
  assert [r["id"] for r in out] == list(range(9))
  assert all(set(r) == {"prompt", "id", "extra", "text", "finish_reason", "tokens", "seconds"} for r in out)
  assert [r["text"] for r in out] == [engine.generate([make(row)])[0].text for row in rows]
  assert not partial_path(tmp_path / "out.jsonl").exists()


def test_a_bad_row_is_reported_with_its_line_and_the_rest_goes_on(engine, tmp_path, capsys):
  lines = [
    {"prompt": "good", "id": "a"},
    b"{not json",
    {"id": "no prompt"},
    {"prompt": 7},
    b"[1]",
    b"\xff\xfe",
    {"prompt": "x" * 500, "id": "long"},
    {"messages": [{"role": "user"}]},
    {"prompt": "both", "messages": []},
    b"",
    {"prompt": "good too", "id": "b"},
  ]
  rows = write_rows(tmp_path / "in.jsonl", lines)
  journal = open_journal(tmp_path / "out.jsonl", {}, resume=False)
  assert answer_rows(engine, rows, journal, make) == 8
  journal.finish()
  out = read_output(tmp_path / "out.jsonl")
  assert ["text" in r for r in out] == [True, *[False] * 8, True]
  messages = [r["error"] for r in out if "error" in r]
  assert [m.split(":")[0] for m in messages] == [f"line {n}" for n in range(2, 10)]
  assert "max_len" in messages[5]
  assert out[6]["id"] == "long"
  assert capsys.readouterr().err.splitlines() == messages


def test_an_interrupted_run_goes_on_where_it_stopped(engine, tmp_path):
  rows = write_rows(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(8)])
  out = tmp_path / "out.jsonl"
  journal = open_journal(out, {"seed": 1}, resume=False)
  done = []

  def interrupt(tokens):
    done.append(tokens)
    if len(done) == 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    answer_rows(engine, rows, journal, make, interrupt)
  journal.close()
  # A line that a killed process left half-written.
  with open(partial_path(out), "a") as f:
    f.write('{"row": 8, "outp')

  with pytest.raises(OutputError, match="--resume"):
    open_journal(out, {"seed": 1}, resume=False)
  with pytest.raises(OutputError, match="another seed"):
    open_journal(out, {"seed": 2}, resume=True)
  journal = open_journal(out, {"seed": 1}, resume=True)
  assert len(journal.rows) == 4
  answered = []
  answer_rows(engine, rows, journal, make, answered.append)
  journal.finish()
  assert len(answered) == 4
  assert [r["prompt"] for r in read_output(out)] == [f"p{i}" for i in range(8)]


def test_an_output_that_is_there_is_never_overwritten(tmp_path):
  out = tmp_path / "out.jsonl"
  out.write_text("precious\n")
  for resume in (False, True):
    with pytest.raises(OutputError, match="is there already"):
      open_journal(out, {}, resume=resume)
  assert out.read_text() == "precious\n"


def test_a_journal_that_is_none_is_refused(tmp_path):
  out = tmp_path / "out.jsonl"
  partial_path(out).write_text("something else\n")
  with pytest.raises(OutputError, match="line 1"):
    open_journal(out, {}, resume=True)


def test_a_disk_that_is_full_at_the_end_leaves_the_journal(tmp_path, monkeypatch):
  out = tmp_path / "out.jsonl"
  journal = open_journal(out, {}, resume=False)
  journal.add(1, {"text": "a"})

  def full(fd):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("os.fsync", full)
  with pytest.raises(OSError, match="No space"):
    journal.finish()
  monkeypatch.undo()
  journal.close()
  assert not out.exists()
  assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl.partial"]
  open_journal(out, {}, resume=True).finish()
  assert read_output(out) == [{"text": "a"}]


def test_a_missing_or_empty_input_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no such file"):
    check_input(str(tmp_path / "none.jsonl"))
  (tmp_path / "empty.jsonl").write_text("\n\n")
  with pytest.raises(ValueError, match="no rows"):
    check_input(str(tmp_path / "empty.jsonl"))
