"""The strict parser: what it reads, and where it says that a text goes wrong."""

import pytest
from hypothesis import given, settings

from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.lang.document import problems as document_problems
from pasta_jax.lang.grammar import Kind
from pasta_jax.lang.parse import ParseError, parse, problems
from pasta_jax.lang.tags import strict_tags
from tests.documents import broken, documents, texts

TRAVEL = """Two ways to travel:

- <promise topic="by train" tokens="20"/><async>**Train.** Slower, but you can work.</async>
- <promise topic="by plane" tokens="30"/><async>**Plane.** Faster over long distances.</async>

<sync/>So take the train."""

PROMISE = '<promise topic="by train" tokens="20"/>'


def test_a_document_is_read_in_parts():
  assert parse(TRAVEL) == Document(
    (
      Text("Two ways to travel:\n\n- "),
      Chunk("by train", 20, "**Train.** Slower, but you can work."),
      Text("\n- "),
      Chunk("by plane", 30, "**Plane.** Faster over long distances."),
      Text("\n\n"),
      Sync(),
      Text("So take the train."),
    )
  )


@settings(max_examples=300, deadline=None)
@given(documents())
def test_what_a_document_writes_is_read_back(document):
  assert parse(document.annotated) == document
  assert parse(document.annotated).annotated == document.annotated


@settings(max_examples=300, deadline=None)
@given(broken)
def test_any_text_is_a_document_or_has_problems_in_order(text):
  found = problems(text)
  assert [p.offset for p in found] == sorted(p.offset for p in found)
  for p in found:
    assert 0 <= p.offset <= len(text)
    before = text[: p.offset]
    assert (p.line, p.column) == (before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
    assert "\n" not in str(p)
  if found:
    with pytest.raises(ParseError) as e:
      parse(text)
    assert (e.value.problem, str(e.value)) == (found[0], str(found[0]))
  else:
    document = parse(text)
    assert not document_problems(document)
    # An & in a topic is the one character that may be written in two ways.
    assert document.annotated.replace("&amp;", "&") == text.replace("&amp;", "&")


@given(texts)
def test_text_without_marks_is_its_own_document(text):
  text = text.replace("<", "(").replace("&", "+")
  assert parse(text).plain == text


def test_no_text_is_a_document_without_parts():
  assert parse("") == Document(())


@pytest.mark.parametrize(
  ("text", "where", "message"),
  [
    (f"a\nb {PROMISE} <async>x</async>", (2, 42), "expected <async> directly after the promise, found ' <"),
    (f"{PROMISE}", (1, 40), "expected <async> directly after the promise, found the end of the text"),
    (f"{PROMISE}<async>x", (1, 48), "expected </async>: the chunk has none, found the end of the text"),
    (f"{PROMISE}<async></async>", (1, 47), "expected text, found '</async>'"),
    (f"{PROMISE}<async>x<sync/></async>", (1, 48), "expected text or </async> (nothing is nested"),
    ("<async>x</async>", (1, 1), "expected <promise .../> before this chunk"),
    ("a <sync/>", (1, 3), "expected text or <promise .../> (a sync needs a chunk since the last one)"),
    (f"{PROMISE}<async>x</async><sync/>\n<sync/>", (2, 1), "(a sync needs a chunk since the last one)"),
    ("a</async>", (1, 2), "expected text or <promise .../>, found '</async>'"),
    ("a</sync>", (1, 2), "expected text or a mark (this is none), found '</sync>'"),
    (f"{PROMISE}<async>x</async><sync>", (1, 61), "expected /> to end <sync/>, found '>'"),
    (f"{PROMISE}<async>x</async ><sync/>", (1, 55), "expected > to end </async>, found ' ><sync/>'"),
    ("<promise topic='a'", (1, 16), 'expected topic=" of <promise'),
    ('<promise topic="a<b" tokens="20"/><async>x</async>', (1, 18), "expected &lt; for < in a topic"),
    ('<promise tokens="20" topic="a"/>', (1, 10), 'expected topic=" of <promise'),
    ("I <promise", (1, 11), 'expected topic=" of <promise'),
    ('<promise topic="a b  c" tokens="20"/><async>x</async>', (1, 17), "expected a topic of 1 to 3 words"),
    ('<promise topic="a b c d" tokens="20"/><async>x</async>', (1, 17), "expected a topic of 1 to 3 words"),
    ('<promise topic="" tokens="20"/><async>x</async>', (1, 17), "expected a topic of 1 to 3 words"),
    ('<promise topic="a" tokens="25"/><async>x</async>', (1, 28), "expected tokens of 10 to 320 in tens"),
    ('<promise topic="a" tokens="010"/><async>x</async>', (1, 28), "expected tokens of 10 to 320 in tens"),
    ('<promise topic="a" tokens="330"/><async>x</async>', (1, 28), "expected tokens of 10 to 320 in tens"),
    ('<promise topic="a" tokens=""/><async>x</async>', (1, 28), "expected tokens of 10 to 320 in tens"),
    ('<promise topic="a" tokens="٢٠"/><async>x</async>', (1, 28), 'expected "/> of <promise'),
  ],
)  # fmt: skip
def test_errors_say_where_and_what_was_expected(text, where, message):
  with pytest.raises(ParseError) as e:
    parse(text)
  assert (e.value.problem.line, e.value.problem.column) == where
  assert message in str(e.value)
  assert str(e.value).startswith(f"line {where[0]}, column {where[1]}: expected ")


def test_all_problems_of_a_text_are_found():
  text = (
    '<sync/>1. <promise topic="one two three four" tokens="15"/><async>a</async>\n'
    '2. <promise topic="b" tokens="20"/>text<async>c <sync/> d</async></promise>\n'
    "<sync><async>e"
  )
  assert [(p.line, p.column, p.expected.split(":")[0].split(" (")[0][:24]) for p in problems(text)] == [
    (1, 1, "text or <promise .../>"),
    (1, 27, "a topic of 1 to 3 words "),
    (1, 55, "tokens of 10 to 320 in t"),
    (2, 36, "<async> directly after t"),
    (2, 49, "text or </async>"),
    (2, 66, "text or a mark"),
    (3, 6, "/> to end <sync/>"),
    (3, 7, "<promise .../> before th"),
    (3, 15, "</async>"),
  ]


def test_a_chunk_that_was_not_closed_does_not_spoil_the_next():
  text = f"{PROMISE}<async>one\n{PROMISE}<async>two</async>\n<sync/>{PROMISE}<async>three</async>"
  found = problems(text)
  assert [(p.line, p.column, p.expected) for p in found] == [(2, 1, "</async>: the chunk has none")]


@settings(max_examples=100, deadline=None)
@given(documents())
def test_a_mark_that_is_taken_out_is_missed(document):
  text = document.annotated
  tags = [t for t in strict_tags(text) if t.kind != Kind.SYNC]
  assert len(tags) == 3 * len(document.chunks)
  for tag in tags:
    assert problems(text[: tag.start] + text[tag.end :])
