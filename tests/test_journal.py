"""A journal keeps whole rows through kill -9, full disks and text that has no bytes."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from pasta_jax.decode.journal import OutputError, open_journal, partial_path


def read(path):
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


WRITER = """
import sys, pathlib
from pasta_jax.decode.journal import open_journal
journal = open_journal(sys.argv[1], {"seed": 1}, resume=False)
for i in range(10**9):
  journal.add(i, {"text": "x" * (i % 997), "i": i})
"""


def start(script, *args):
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
    env=env,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_killed_process_leaves_whole_rows_to_go_on_with(tmp_path):
  out = tmp_path / "out.jsonl"
  process = start(WRITER, out)
  deadline = time.monotonic() + 60
  while not (partial_path(out).exists() and partial_path(out).stat().st_size > 200_000):
    assert time.monotonic() < deadline, process.stderr.read()
    time.sleep(0.01)
  process.kill()
  process.communicate()
  journal = open_journal(out, {"seed": 1}, resume=True)
  count = len(journal.rows)
  assert count > 100
  assert [row["i"] for row in journal.rows.values()] == list(range(count))
  journal.add(count, {"i": count})
  journal.finish()
  assert [row["i"] for row in read(out)] == list(range(count + 1))
  assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


# A limit on the size of files fails writes as a full disk does, without needing one.
FULL = """
import resource, sys
from pasta_jax.decode.journal import open_journal
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
journal = open_journal(sys.argv[1], {}, resume=False)
try:
  try:
    for i in range(100):
      journal.add(i, {"text": "y" * 300})
  finally:
    journal.close()
except OSError as e:
  print(len(journal.rows), type(e.__context__).__name__, file=sys.stderr)
"""


def test_a_disk_that_fills_up_keeps_the_rows_before_and_is_one_error(tmp_path):
  out = tmp_path / "out.jsonl"
  process = start(FULL, out)
  stderr = process.communicate(timeout=60)[1]
  rows, context = stderr.split()
  assert context == "NoneType"  # closing does not fail once more over the same bytes
  assert int(rows) > 10
  journal = open_journal(out, {}, resume=True)
  assert len(journal.rows) >= int(rows)
  assert all(row == {"text": "y" * 300} for row in journal.rows.values())
  journal.finish()
  assert not partial_path(out).exists()


def test_a_journal_without_a_row_leaves_nothing(tmp_path):
  open_journal(tmp_path / "out.jsonl", {"model": "typo"}, resume=False).close()
  assert list(tmp_path.iterdir()) == []
  journal = open_journal(tmp_path / "out.jsonl", {"model": "right"}, resume=False)
  journal.add(1, {})
  journal.close()
  assert len(open_journal(tmp_path / "out.jsonl", {"model": "right"}, resume=True).rows) == 1


def test_a_lone_surrogate_in_a_row_is_escaped_and_comes_back(tmp_path):
  out = tmp_path / "out.jsonl"
  row = json.loads(r'{"prompt": "\ud83d half an emoji, é", "text": "ü"}')
  journal = open_journal(out, {"system": "\ud800"}, resume=False)
  journal.add(1, row)
  journal.add(2, {"text": "é"})
  journal.close()
  journal = open_journal(out, {"system": "\ud800"}, resume=True)
  journal.finish()
  assert read(out) == [row, {"text": "é"}]
  assert "é" in out.read_text(encoding="utf-8").splitlines()[1]  # other rows stay legible


@pytest.mark.parametrize(
  "line", [b"{}", b"[]", b"null", b'{"row": 1}', b'{"row": [], "output": {}}', b"\xff"]
)
def test_a_journal_with_a_line_that_is_none_is_refused(line, tmp_path):
  out = tmp_path / "out.jsonl"
  partial_path(out).write_bytes(b'{"run": {}}\n' + line + b"\n")
  with pytest.raises(OutputError, match="line 2 is not a journal line"):
    open_journal(out, {}, resume=True)


def test_a_folder_that_is_not_there_is_named(tmp_path):
  with pytest.raises(OSError, match="nowhere"):
    open_journal(tmp_path / "nowhere" / "out.jsonl", {}, resume=False)
