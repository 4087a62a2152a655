"""Chunks that begin with their own list markers and headings: the same text, fewer steps."""

import pytest
from hypothesis import given

from pasta_jax.lang.document import Chunk, problems
from pasta_jax.lang.marks import MARKS, ControlIds
from pasta_jax.lang.parse import parse
from pasta_jax.lang.stats import critical_path
from pasta_jax.lang.threads import encode_document
from pasta_jax.lang.tighten import tighten
from tests.documents import documents

A = '<promise topic="a" tokens="10"/><async>{}One.</async>'
B = '<promise topic="b" tokens="10"/><async>{}Two.</async>'


@given(documents())
def test_reads_the_same_and_keeps_chunks_and_syncs(document):
  tight = tighten(document)
  assert tight.plain == document.plain
  assert tight.rounds == document.rounds
  assert not problems(tight)
  kept = [(part.topic, part.tokens) for part in document.parts if isinstance(part, Chunk)]
  assert [(part.topic, part.tokens) for part in tight.parts if isinstance(part, Chunk)] == kept


@pytest.mark.parametrize(
  ("before", "after"),
  [
    pytest.param(
      f"Two ways:\n\n- {A}\n- {B}\nBye.", f"Two ways:\n\n{A}\n{B}\nBye.".format("- ", "- "), id="list markers"
    ),
    pytest.param(f"1. {A}\n2. {B}", f"{A}\n{B}".format("1. ", "2. "), id="from the beginning on"),
    pytest.param(f"**X:** {A}\n**Y:** {B}", f"{A}\n{B}".format("**X:** ", "**Y:** "), id="labels"),
    pytest.param(
      f"Hi.\n\n## X\n{A}\n\n**Y**\n\n{B}", f"Hi.\n\n{A}\n\n{B}".format("## X\n", "**Y**\n\n"), id="headings"
    ),
    pytest.param(f"# All\n\n- {A}\n- {B}", f"# All\n\n{A}\n{B}".format("- ", "- "), id="the whole's heading"),
    pytest.param(f"# All\n\n{A}\n\n{B}", None, id="one heading"),
    pytest.param(f"Here is what I found: {A}\n\nAnd here is another: {B}", None, id="a sentence"),
    pytest.param(f"One.\n\n{A}\n<sync/>So: {B}", f"One.\n\n{A}\n<sync/>{B}".format("", "So: "), id="a sync"),
  ],
)  # fmt: skip
def test_moves_what_begins_a_chunk(before, after):
  before = before.replace("{}", "")
  document = parse(before)
  tight = tighten(document)
  assert tight == parse(before if after is None else after)
  assert tight.plain == document.plain


def test_takes_fewer_steps():
  controls = ControlIds.of(range(256, 256 + len(MARKS)))
  document = parse(f"- {A}\n- {B}".replace("{}", ""))

  def steps(document):
    return critical_path(encode_document(document, lambda text: list(text.encode()), controls), controls)

  assert steps(tighten(document)) < steps(document)
