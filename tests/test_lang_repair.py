"""Repair: every rule, and that any text becomes a document."""

import re

import pytest
from hypothesis import given, settings

from pasta_jax.lang import repair as module
from pasta_jax.lang.document import Document, Text, unescape
from pasta_jax.lang.document import problems as document_problems
from pasta_jax.lang.parse import parse, problems
from pasta_jax.lang.repair import RULES, estimated_tokens, repair
from pasta_jax.lang.tags import lenient_tags, strict_tags
from tests.documents import broken, documents


def promise(topic: str = "by train", tokens: object = 20) -> str:
  return f'<promise topic="{topic}" tokens="{tokens}"/>'


P, Q = promise(), promise("by plane", 30)
X, Y = "<async>x</async>", "<async>y</async>"
LONG = "<async>" + "word " * 12 + "</async>"
TODAY = "<async>Go by train today</async>"

# rule -> (broken, mended) pairs.
CASES = {
  "spelling": [
    (f"{P}<ASYNC>x</ async ><Sync />", f"{P}{X}<sync/>"),
    (f"{P}< async >x</async><sync>", f"{P}{X}<sync/>"),
    (f"<promise tokens=20 topic='by train'>{X}", P + X),
    (f"<promise\n  topic = “by train”,\n  tokens = “20” />{X}", P + X),
    (f'<promise topic="by train" tokens="20" id="7" />{X}', P + X),
    (f'<promise topic="by train tokens="20"/>{X}', P + X),
    (f'<promise topic="by train" tokens="20"{X}', P + X),
    (f"<promise topic='driver's licence' tokens='20'/>{X}", promise("driver's licence") + X),
    (f'<promise topic="R&amp;D &gt; &#39;x&#39;" tokens="20" />{X}', promise("R&amp;D > 'x'") + X),
  ],
  "no mark": [
    ("I <promise that", "I &lt;promise that"),
    (f"<sync up>{P}{X} use <async here\nand", f"{P}{X} use &lt;async here\nand"),
  ],
  "cut mark": [
    (f"{P}{X}\n<sync", f"{P}{X}\n"),
    (f"{P}<async>x</async", P + X),
    (f"{P}{X}\n- <promise ", f"{P}{X}\n- "),
  ],
  "stray mark": [
    (f"a</async>b{P}{X}</promise></sync>", f"ab{P}{X}"),
    (f"<promise topic='by train' tokens='20'></promise>{X}", P + X),
  ],
  "missing async": [(f"1. {P}x</async>\n2. {Q}{Y}", f"1. {P}{X}\n2. {Q}{Y}")],
  "missing promise": [
    (f"**Hi**{TODAY}", f"**Hi**{promise('Go by train', 10)}{TODAY}"),
    ('<async topic="by train" tokens="20">x</async>', P + X),
    ("<async>---</async>", f"{promise('part 1', 10)}<async>---</async>"),
  ],
  "gap": [(f"1. {P}\n   {X}", f"1. {P}{X}")],
  "promise apart": [
    (f"{P} and {Q}:\n{X}\n{Y}", f" and :\n{P}{X}\n{Q}{Y}"),
    (f"{P}text {Q}{Y} {X}", f"text {Q}{Y} {P}{X}"),
  ],
  "promise without chunk": [(f"a {P}b <sync/>", "a b ")],
  "unclosed chunk": [
    (f"1. {P}<async>x\n2. {Q}{Y}\n\n<sync/>end", f"1. {P}{X}\n2. {Q}{Y}\n\n<sync/>end"),
    (f"1. {P}<async>x\n\n<sync/>end", f"1. {P}{X}\n\n<sync/>end"),
    (f"{P}<async>x\n- two\n", f"{P}<async>x\n- two</async>\n"),
    (f"{P}<async>x\n- ", f"{P}<async>x\n-</async> "),
    (f"* {P}<async>x\n* **{Q}{Y}", f"* {P}{X}\n* **{Q}{Y}"),
    (f"{P}<async>x\nthat is {Q}{Y}", f"{P}<async>x\nthat is</async> {Q}{Y}"),
  ],
  "nested chunk": [
    (f"{P}<async>a {Q}<async>b</async> c</async>", f"{P}<async>a b c</async>"),
    (f"{P}<async>a <sync/>b</async>", f"{P}<async>a b</async>"),
  ],
  "empty chunk": [
    (f"a {P}<async></async>b<sync/>", "a b"),
    (f"a {P}<async/>b", "a b"),
    (f"a {P}</async>b", "a b"),
  ],
  "sync without chunk": [(f"<sync/>a{P}{X}<sync/><sync/>", f"a{P}{X}<sync/>")],
  "topic": [
    (promise(" one  two three four ") + X, promise("one two three") + X),
    (promise("a\x00b") + X, promise("a b") + X),
    (promise("") + TODAY, promise("Go by train") + TODAY),
    (f"<promise tokens=20/>{TODAY}", promise("Go by train") + TODAY),
  ],
  "tokens": [
    (promise(tokens=14) + X, P + X),
    (promise(tokens="~020 or so") + X, P + X),
    (promise(tokens=0) + X, promise(tokens=10) + X),
    (promise(tokens="1" + "0" * 5000) + X, promise(tokens=320) + X),
    (promise(tokens=-5) + LONG, promise(tokens=20) + LONG),
    (promise(tokens="٢٠") + X, promise(tokens=10) + X),
  ],
}


def test_every_rule_has_a_case_and_is_told():
  assert CASES.keys() == RULES.keys()
  for rule, text in RULES.items():
    assert rule in module.__doc__
    assert text in module.__doc__


@pytest.mark.parametrize(
  ("rule", "text", "mended"), [(rule, *case) for rule, cases in CASES.items() for case in cases]
)
def test_a_rule_does_what_it_says_and_reports_it(rule, text, mended):
  document, repairs = repair(text)
  assert document.annotated == mended
  assert rule in {r.rule for r in repairs}
  assert problems(text)


def test_reports_have_places_and_words():
  _, repairs = repair(f"a\n<sync/>{P}\n<async>x</async>")
  assert [str(r) for r in repairs] == [
    "line 2, column 1: sync without chunk: removed <sync/>",
    "line 2, column 47: gap: removed the whitespace",
  ]


@settings(max_examples=200, deadline=None)
@given(documents())
def test_a_document_is_left_alone(document):
  assert repair(document.annotated) == (document, ())


@settings(max_examples=500, deadline=None)
@given(broken)
def test_any_text_becomes_a_document_and_says_so(text):
  document, repairs = repair(text)
  assert document_problems(document) == []
  assert parse(document.annotated) == document
  assert bool(repairs) == bool(problems(text))
  assert [r.offset for r in repairs] == sorted(r.offset for r in repairs)
  for r in repairs:
    assert r.rule in RULES
    assert "\n" not in str(r)
    before = text[: r.offset]
    assert (r.line, r.column) == (before.count("\n") + 1, len(before) - before.rfind("\n"))


@settings(max_examples=500, deadline=None)
@given(broken)
def test_only_marks_vanish_and_the_space_before_a_chunk(text):
  document, repairs = repair(text)
  if not repairs:
    return
  tags, _ = lenient_tags(text)
  ends = [0, *(t.end for t in tags)]
  pieces = [unescape(text[a:b]) for a, b in zip(ends, [*(t.start for t in tags), len(text)])]
  kept, plain = "".join(pieces), document.plain
  assert "".join(kept.split()) == "".join(plain.split())
  if not any(r.rule == "gap" for r in repairs):
    assert kept == plain


@settings(max_examples=100, deadline=None)
@given(documents())
def test_damage_to_one_chunk_leaves_the_others(document):
  text = document.annotated
  if lenient_tags(text) != (strict_tags(text), []):
    return  # it holds text that a lenient reader takes for marks
  for m in re.finditer(r"/><async>", text):
    mended, repairs = repair(text[: m.start()] + "/>\n<ASYNC>" + text[m.end() :])
    assert mended == document
    assert {r.rule for r in repairs} == {"spelling", "gap"}


def test_a_tokenizer_may_count():
  document, _ = repair("<async>one two three</async>", count=lambda text: 100 * len(text.split()))
  assert document.chunks[0].tokens == 300
  assert estimated_tokens("日本") == 2


def test_text_without_marks_needs_no_repair():
  assert repair("a < b & c") == (Document((Text("a < b & c"),)), ())
