"""Documents: normal form, escaping, what is wrong with them, and their three forms."""

import json

import pytest
from hypothesis import given, settings

from pasta_jax.lang.document import (
  Chunk,
  Document,
  Sync,
  Text,
  escape,
  escape_attribute,
  problems,
  unescape,
  unescape_attribute,
)
from pasta_jax.lang.render import from_json, render, to_json
from pasta_jax.lang.tags import strict_tags
from tests.documents import documents, texts

A, B = Chunk("by train", 20, "**Train.**"), Chunk("by plane", 30, "**Plane.**")


@given(texts)
def test_escaping_is_undone_and_leaves_no_mark(text):
  assert not strict_tags(escape(text))
  assert unescape(escape(text)) == text


@given(texts)
def test_a_value_between_quotes_is_escaped_and_read_back(text):
  assert '"' not in escape_attribute(text)
  assert "<" not in escape_attribute(text)
  assert unescape_attribute(escape_attribute(text)) == text


@pytest.mark.parametrize(
  ("text", "written"),
  [
    ("<sync/>", "&lt;sync/>"),
    ("</async", "&lt;/async"),
    ("&lt;sync/>", "&amp;lt;sync/>"),
    ("&amp;lt;sync/>", "&amp;amp;lt;sync/>"),
    ("<synchronized> <b> &lt;b &amp; <Sync/>", "<synchronized> <b> &lt;b &amp; <Sync/>"),
    ("<async-io> <promise_1>", "<async-io> <promise_1>"),
  ],
)
def test_only_what_spells_a_mark_is_escaped(text, written):
  assert escape(text) == written


def test_documents_have_a_normal_form():
  assert Document.of([Text(""), Text("a"), Text("b"), A, Text(""), Sync(), Text("")]) == Document(
    (Text("ab"), A, Sync())
  )


def test_rounds_are_the_chunks_between_syncs():
  assert Document.of([A, B, Sync(), A, Text("x"), Sync(), Text("y")]).rounds == ((0, 1), (2,))
  assert Document.of([A, Sync(), B]).rounds == ((0,), (1,))
  assert Document.of([Text("x")]).rounds == ()
  assert not Document.of([Text("x")]).splits


@pytest.mark.parametrize(
  ("parts", "message"),
  [
    ((Text("a"), Text("b")), "part 1: texts are not in normal form"),
    ((Text(""),), "part 0: texts are not in normal form"),
    ((Sync(),), "part 0: a sync, but no chunk was opened"),
    ((A, Sync(), Text("x"), Sync()), "part 3: a sync, but no chunk was opened"),
    ((Chunk("", 20, "x"),), "a topic has 1 to 3 words, this one has 0"),
    ((Chunk("a b c d", 20, "x"),), "a topic has 1 to 3 words, this one has 4"),
    ((Chunk("a  b", 20, "x"),), "separated by single spaces"),
    ((Chunk("a\x00", 20, "x"),), "printable characters only"),
    ((Chunk("a", 25, "x"),), "tokens must be 10 to 320 in tens, not 25"),
    ((Chunk("a", 20, ""),), "part 0: the chunk is empty"),
  ],
)
def test_problems_name_the_part(parts, message):
  found = problems(Document(parts))
  assert len(found) == 1
  assert message in found[0]


@settings(max_examples=150, deadline=None)
@given(documents())
def test_json_is_read_back(document):
  assert not problems(document)
  assert from_json(to_json(document)) == document
  assert from_json(json.loads(render(document, "json"))) == document


def test_the_forms_of_a_document():
  document = Document.of([Text("a < b: "), A, Sync(), Text("end")])
  assert render(document, "plain") == "a < b: **Train.**end"
  assert render(document, "annotated") == (
    'a < b: <promise topic="by train" tokens="20"/><async>**Train.**</async><sync/>end'
  )
  assert to_json(document) == {
    "parts": [
      {"text": "a < b: "},
      {"topic": "by train", "tokens": 20, "body": "**Train.**"},
      {"sync": True},
      {"text": "end"},
    ]
  }
  with pytest.raises(ValueError, match="form must be one of plain, annotated, json, got 'html'"):
    render(document, "html")


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ([], 'a document is {"parts"'),
    ({"parts": [], "x": 1}, 'a document is {"parts"'),
    ({"parts": ["a"]}, "part 0: not an object"),
    ({"parts": [{"txt": "a"}]}, "part 0: unknown key 'txt'; did you mean 'text'?"),
    ({"parts": [{"text": "a"}, {"topic": "a", "tokens": 10}]}, r"part 1: has \['tokens', 'topic'\]; needs"),
    ({"parts": [{"text": 1}]}, "part 0: text is 1, not a string"),
    ({"parts": [{"topic": "a", "tokens": True, "body": "x"}]}, "tokens is True, not a whole number"),
    ({"parts": [{"sync": False}]}, "part 0: sync is false"),
    ({"parts": [{"sync": True}]}, "part 0: a sync, but no chunk"),
    ({"parts": [{"topic": "a", "tokens": 15, "body": "x"}]}, "part 0: tokens must be"),
  ],
)
def test_json_that_is_no_document_is_refused(value, message):
  with pytest.raises(ValueError, match=message):
    from_json(value)
