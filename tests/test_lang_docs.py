"""docs/language.md says what the code does: its tables and drawing are the code's own."""

import dataclasses
import pathlib
import re

from pasta_jax.lang.draw import draw
from pasta_jax.lang.grammar import LEAST_BODY, RULES, Kind, Limits
from pasta_jax.lang.parse import parse, problems
from pasta_jax.lang.repair import RULES as REPAIRS

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "language.md").read_text()
EXAMPLE = (DOCS / "pasta_lang_example.txt").read_text()

SPELT = {
  Kind.TEXT: "text",
  Kind.TOPIC: "a piece of a topic",
  Kind.WORD: "a piece that begins a word",
  Kind.PROMISE: "`<promise>`",
  Kind.CLOSE: "`</async>`",
  Kind.SYNC: "`<sync/>`",
  Kind.LEN: "`<len:n>`",
  Kind.END: "the end",
}
FACTS = {
  "more_main": "the budget leaves room for the end",
  "may_end": "always",
  "may_promise": "the round, the answer and the budget hold one more chunk",
  "may_sync": "a chunk was opened since the last sync",
  "more_pieces": "there are fewer than `topic_pieces`",
  "more_words": "there are fewer than `topic_pieces`, and than three words",
  "has_topic": "the topic has a piece",
  "more_body": "the chunk's grant is not used up",
  "has_body": "the body has an id",
}


def table(rows) -> str:
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_the_grammar_table_is_that_of_the_code():
  assert table((r.phase.name, SPELT[r.kind], FACTS[r.when]) for r in RULES) in PAGE
  assert set(FACTS) == {r.when for r in RULES}


def test_the_rules_of_repair_are_those_of_the_code():
  rows = ((name, re.sub(r"(<[a-z/]+>)", r"`\1`", text).replace("``", "`")) for name, text in REPAIRS.items())
  assert table(rows) in PAGE


def test_the_caps_are_those_of_the_code():
  caps = ", ".join(f"`{f.name}` {getattr(Limits(), f.name)}" for f in dataclasses.fields(Limits))
  flat = " ".join(PAGE.split())
  assert caps in flat
  assert f"the first {LEAST_BODY} ids of its chunk" in flat


def test_the_drawing_is_that_of_the_example():
  assert f"```\n{EXAMPLE}```" in PAGE
  assert f"```\n{draw(parse(EXAMPLE))}\n```" in PAGE


def test_what_is_said_about_escaping_holds():
  for text in ("&lt;sync/>", "&amp;lt;sync/>", "<b>", "&amp;", "<Sync/>", "<synchronized>"):
    assert not problems(text)
    assert parse(text).annotated == text
  assert parse("&lt;sync/>").plain == "<sync/>"
  assert parse("&amp;lt;sync/>").plain == "&lt;sync/>"
