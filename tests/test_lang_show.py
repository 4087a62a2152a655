"""Drawings, files of documents, and the commands of the language as a user runs them."""

import json
import pathlib
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_jax import lang
from pasta_jax.lang.bench import random_documents, rates
from pasta_jax.lang.document import Chunk, Document, Sync, Text, problems
from pasta_jax.lang.draw import MOST_PARTS, block_visibility, blocks, draw
from pasta_jax.lang.files import read_documents
from pasta_jax.lang.interpreter import FORKS
from pasta_jax.lang.repair import repair
from pasta_jax.lang.sequence import training_sequence
from pasta_jax.lang.threads import encode_document
from pasta_jax.lang.words import CONTROLS, END_ID, Words
from tests.documents import documents, texts

P = '<promise topic="by train" tokens="20"/>'
ANNOTATED = f"a {P}<async>x y</async>{P}<async>z</async><sync/>b"
DOCUMENT = Document.of(
  [Text("a "), Chunk("by train", 20, "x y"), Chunk("by train", 20, "z"), Sync(), Text("b")]
)


def show(*args, text=""):
  command = [sys.executable, "-m", "pasta_jax.lang.show", *map(str, args)]
  return subprocess.run(command, input=text, capture_output=True, text=True)


# --- Words and drawings.


@given(texts)
def test_words_are_the_text(text):
  words = Words()
  assert words.decode(words.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(documents(), st.sampled_from(FORKS))
def test_a_part_sees_another_as_its_tokens_do(document, fork):
  words = Words()
  threads = encode_document(document, words.encode, CONTROLS)
  sequence = training_sequence([END_ID], threads, CONTROLS, END_ID, fork=fork)
  parts = blocks(sequence, words)
  assert [b.start for b in parts] == [0, *(b.end for b in parts[:-1])]
  assert parts[-1].end == len(sequence)
  whole, some = block_visibility(sequence, parts)
  mask = sequence.mask()
  for i, q in enumerate(parts):
    for k, p in enumerate(parts[:i]):
      cell = mask[q.start : q.end, p.start : p.end]
      assert (cell.all(), cell.any()) == (whole[i, k], some[i, k])
      assert cell.all() == cell.any()


def test_a_drawing_of_words_is_the_mask():
  drawing = draw(DOCUMENT, by="word", columns=100).splitlines()
  rows = [line[36:].replace(" ", "") for line in drawing[drawing.index("") :] if "\\" in line[36:]]
  words = Words()
  threads = encode_document(DOCUMENT, words.encode, CONTROLS)
  mask = training_sequence([END_ID], threads, CONTROLS, END_ID).mask()
  drawn = [[c != "." for c in row.ljust(len(rows), ".")] for row in rows]
  assert np.array_equal(drawn, mask)


def test_a_drawing_shows_when_threads_run():
  lines = draw(DOCUMENT, by="part").splitlines()
  assert lines[0] == "2 chunks in 1 round; 3 words in 12 steps, marks included: 0.25x"
  assert lines[4:7] == [
    "main                                =pppppppp.S=",
    "chunk 1    by train                     [==]",
    "chunk 2    by train                         [=]",
  ]
  grouped = draw(DOCUMENT, by="part", fork="grouped").splitlines()
  assert grouped[4:7] == [
    "main                                =pppppppp...S=",
    "chunk 1    by train                          [==]",
    "chunk 2    by train                          [=]",
  ]


@settings(max_examples=60, deadline=None)
@given(documents(), st.sampled_from(FORKS), st.integers(60, 130))
def test_a_drawing_is_ascii_and_fits(document, fork, columns):
  drawing = draw(document, fork=fork, columns=columns)
  assert drawing.isascii()
  assert all(len(line) <= max(columns, 80) for line in drawing.splitlines())
  assert all(line.isprintable() for line in drawing.splitlines())


def test_a_wide_document_is_drawn_by_several_parts_at_a_time():
  many = Document.of([p for _ in range(60) for p in (Text("x"), Chunk("a", 10, "word " * 9), Sync())])
  lines = draw(many, columns=100).splitlines()
  assert max(map(len, lines)) <= 100
  assert any("to chunk" in line and "+" not in line[36:] for line in lines)
  with pytest.raises(ValueError, match=f"parts; the drawing takes at most {MOST_PARTS}"):
    draw(Document.of([Text("x"), Chunk("a", 10, "b")] * 1000), columns=100)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"by": "line"}, "by must be one of auto, word, part; got 'line'"),
    ({"columns": 10}, "at least 60 columns, got 10"),
    ({"fork": "late"}, "fork must be eager or grouped"),
  ],
)
def test_what_cannot_be_drawn_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    draw(DOCUMENT, **change)


# --- Files.


@pytest.fixture
def rows(tmp_path):
  path = tmp_path / "rows.jsonl"
  lines = [
    {"document": "plain"},
    None,
    {"prompt": "p", "annotated": ANNOTATED},
    {"x": 1},
    {"document": "<sync/>"},
  ]
  path.write_text("".join("\n" if row is None else json.dumps(row) + "\n" for row in lines))
  return path


def test_documents_are_read_from_text_json_and_rows(tmp_path, rows):
  (tmp_path / "d.txt").write_text(ANNOTATED)
  assert list(read_documents(str(tmp_path / "d.txt"))) == [(str(tmp_path / "d.txt"), DOCUMENT)]
  (tmp_path / "d.json").write_text(show(tmp_path / "d.txt", "--as=json").stdout)
  assert [d for _, d in read_documents(str(tmp_path / "d.json"))] == [DOCUMENT]
  assert list(read_documents(str(rows), row=3)) == [(f"{rows} row 3", DOCUMENT)]
  read = read_documents(str(rows), lambda text: repair(text)[0])
  assert [next(read)[0], next(read)[1]] == [f"{rows} row 1", DOCUMENT]


@pytest.mark.parametrize(
  ("name", "content", "row", "message"),
  [
    ("none.txt", None, None, "none.txt: No such file or directory"),
    ("none.jsonl", None, 1, "none.jsonl: No such file or directory"),
    ("a.txt", b"\xff", None, "a.txt: not UTF-8 at byte 0"),
    ("a.txt", b"\n <sync/>", None, "a.txt: line 2, column 2: expected"),
    ("a.json", b"{", None, "a.json: not JSON: "),
    ("a.json", b"[" * 100_000, None, "a.json: JSON that is nested too deeply"),
    ("a.json", b"{}", None, "a.json: a document is"),
    ("a.jsonl", b'{"document": "a"}\n', 2, "a.jsonl: no row 2; the file has 1"),
    ("a.jsonl", b"\n", 1, "a.jsonl: row 1 is blank"),
    ("a.jsonl", b"[]\n", 1, "a.jsonl row 1: not a JSON object"),
    ("a.jsonl", b"\n{}\n", 2, "a.jsonl row 2: no string under 'document' or 'annotated'"),
    ("a.jsonl", b'{"document": "</sync>"}\n', 1, "a.jsonl row 1: line 1, column 1: expected"),
  ],
)
def test_a_file_that_holds_no_document_is_told_in_one_line(tmp_path, name, content, row, message):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=name) as e:
    list(read_documents(str(tmp_path / name), row=row))
  assert message in str(e.value)
  assert "\n" not in str(e.value)


# --- Commands.


def test_a_file_is_shown(tmp_path, rows):
  done = show(rows, "--row=3", "--columns=100")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout == draw(DOCUMENT) + "\n"
  assert show("-", "--as=plain", text=ANNOTATED).stdout == "a x yzb"


def test_problems_and_repairs_are_shown():
  done = show("-", "--as=problems", text="<sync/>\n</async>")
  assert [line.split(": expected")[0] for line in done.stdout.splitlines()] == [
    "standard input: line 1, column 1",
    "standard input: line 2, column 1",
  ]
  done = show("-", "--repair", "--as=annotated", text=ANNOTATED + "</async>")
  assert (done.returncode, done.stdout) == (0, ANNOTATED)
  assert done.stderr == f"repaired: line 1, column {len(ANNOTATED) + 1}: stray mark: removed </async>\n"


def test_an_error_is_one_line(tmp_path):
  for done in (show(tmp_path / "none.txt"), show("-", text="<sync/>")):
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_random_documents_are_measured():
  found = list(random_documents(20))
  assert not any(problems(d) for d in found)
  assert {bool(d.chunks) for d in found} == {True, False}
  measured = rates(found, seconds=0)
  assert len(measured) == 12
  assert all(rate > 0 for rate in measured.values())


def test_the_language_does_not_import_jax():
  names = [f"pasta_jax.lang.{m.name}" for m in pkgutil.iter_modules(lang.__path__)]
  assert {"pasta_jax.lang.parse", "pasta_jax.lang.show", "pasta_jax.lang.bench"} <= set(names)
  code = f"import sys, {', '.join(names)}; sys.exit('jax' in sys.modules or 'jaxlib' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=pathlib.Path(__file__).parents[1]).returncode == 0
