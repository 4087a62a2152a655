"""Chunks that begin with their own list markers and headings: the same text, fewer steps."""

import re

import pytest
from hypothesis import given

from pasta_jax.lang.document import Chunk, problems
from pasta_jax.lang.marks import MARKS, ControlIds
from pasta_jax.lang.parse import parse
from pasta_jax.lang.stats import critical_path
from pasta_jax.lang.threads import encode_document
from pasta_jax.lang.tighten import tighten
from tests.documents import documents

A = '<promise topic="a" tokens="10"/><async>One.</async>'
B = '<promise topic="b" tokens="10"/><async>Two.</async>'


@given(documents())
def test_reads_the_same_and_keeps_chunks_and_syncs(document):
  tight = tighten(document)
  assert tight.plain == document.plain
  assert tight.rounds == document.rounds
  assert not problems(tight)
  before = [part for part in document.parts if isinstance(part, Chunk)]
  after = [part for part in tight.parts if isinstance(part, Chunk)]
  for old, new in zip(before, after, strict=True):
    assert new.tokens == old.tokens
    assert new.body.endswith(old.body)
    assert new.topic == old.topic or new.topic == f"{new.body.split()[0]} {old.topic}"


@pytest.mark.parametrize(
  ("before", "after"),
  [
    pytest.param(
      f"Two ways:\n\n- {A}\n- {B}\nBye.", "Two ways:<- a|\n\n- One.><b|\n- Two.>\nBye.", id="list markers"
    ),
    pytest.param(f"1. {A}\n2. {B}", "<1. a|1. One.><2. b|\n2. Two.>", id="numbers, from the beginning on"),
    pytest.param(
      f"1. {A}\n- {B}\n2. {A}", "<1. a|1. One.><b|\n- Two.><2. a|\n2. One.>", id="numbers among others"
    ),
    pytest.param("<a|One.><b|\n2. Two.>", "<a|One.><2. b|\n2. Two.>", id="a later number alone"),
    pytest.param(f"a) {A}\nb) {B}", "<a) a|a) One.><b) b|\nb) Two.>", id="letters"),
    pytest.param("<a|One.><b|\nA dog.>", "<a|One.><b|\nA dog.>", id="a word of one letter"),
    pytest.param(f"**X:** {A}\n**Y:** {B}", "<a|**X:** One.><b|\n**Y:** Two.>", id="labels"),
    pytest.param(
      f"Hi.\n\n## X\n{A}\n\n**Y**\n\n{B}", "Hi.<## a|\n\n## X\nOne.><b|\n\n**Y**\n\nTwo.>", id="headings"
    ),
    pytest.param(f"# All\n\n- {A}\n- {B}", "# All<- a|\n\n- One.><b|\n- Two.>", id="the whole's heading"),
    pytest.param(f"# All\n\n{A}\n\n{B}", "# All<a|\n\nOne.><b|\n\nTwo.>", id="one heading"),
    pytest.param(
      f"Here is what I found: {A}\n\nAnd here is another: {B}",
      "Here is what I found:<a| One.>\n\nAnd here is another:<b| Two.>",
      id="a sentence",
    ),
    pytest.param(f"One.\n\n{A}\n<sync/>So: {B}", "One.<a|\n\nOne.><sync/><b|\nSo: Two.>", id="a sync"),
    pytest.param(f"{A}\n\n<sync/>\nSo it is.\n", "<a|One.><sync/>\n\n\nSo it is.\n", id="text behind a sync"),
    pytest.param(f"{A} And so on.\n<sync/>", "<a|One.> And so on.<sync/>\n", id="a sync at the end"),
    pytest.param(
      f"- {A}\n<sync/>\n* {B}\n* {A}",
      "<- a|- One.><sync/><* b|\n\n* Two.><a|\n* One.>",
      id="a marker for each round",
    ),
    pytest.param(
      f"- {A}\n- {B}".replace('"a"', '"one of three"'),
      "<one of three|- One.><b|\n- Two.>",
      id="a topic without room for the marker",
    ),
    pytest.param("<- a|- One.><b|\n- Two.>", None, id="tight already"),
    pytest.param(f"{A}\n- {B}", "<a|One.><b|\n- Two.>", id="only a later chunk has a marker"),
  ],
)  # fmt: skip
def test_moves_what_begins_a_chunk(before, after):
  document = parse(_spelled(before))
  tight = tighten(document)
  assert tight == (document if after is None else parse(_spelled(after)))
  assert tight.plain == document.plain


def _spelled(short: str) -> str:
  """`<topic|body>` stands for a chunk."""
  return re.sub(r"<([^<>|]+)\|([^<>]*)>", r'<promise topic="\1" tokens="10"/><async>\2</async>', short)


def test_takes_fewer_steps():
  controls = ControlIds.of(range(256, 256 + len(MARKS)))
  document = parse(f"- {A}\n- {B}\n- {A}\n- {B}")

  def steps(document):
    return critical_path(encode_document(document, lambda text: list(text.encode()), controls), controls)

  assert steps(tighten(document)) < steps(document)
