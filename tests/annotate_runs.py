"""Runs of the annotator against the endpoint of annotate_server.py, and what came of them."""

import json

import pytest

pytest.importorskip("markdown_it")
pytest.importorskip("httpx2")

from pasta_jax.decode.journal import partial_path
from pasta_jax.lang.parse import parse
from pasta_jax.train.annotate.chat import ChatOptions
from pasta_jax.train.annotate.run import RunOptions
from tests.annotate_server import answer_for


def write(path, rows):
  lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
  path.write_bytes(b"\n".join(lines) + b"\n")
  return str(path)


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def options(server, tmp_path, rows, chat=None, **kwargs):
  """Options with short pauses."""
  chat = {"model": "m", "base_url": server.url, "timeout": 5.0, "attempts": 3, "backoff": 0.01} | (chat or {})
  return RunOptions(
    annotator="llm",
    input=write(tmp_path / "in.jsonl", rows),
    output=str(tmp_path / "out.jsonl"),
    rejected=str(tmp_path / "rejected.jsonl"),
    chat=ChatOptions(**chat),
    **kwargs,
  )


def check_done(tmp_path, tags):
  """Every row is there, in order, with its own document."""
  out = read(tmp_path / "out.jsonl")
  assert [r["id"] for r in out] == list(tags)
  for row in out:
    assert parse(row["document"]).plain == answer_for(row["id"])
    assert row["annotator"] == "llm:m"
    assert set(row) - {"repairs"} == {"prompt", "id", "document", "annotator"}
  assert not partial_path(tmp_path / "out.jsonl").exists()
  return out


def done_rows(tmp_path):
  """The ids in the journal of an interrupted run."""
  lines = partial_path(tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
  return {json.loads(line)["output"]["output"]["id"] for line in lines[1:] if line.endswith("\n")}


def limits_of(server):
  """The limit of each request's reply."""
  return [body["max_tokens"] for *_, body in server.asked]
