"""The page of answers, in a real browser: what a model wrote is text, filters, both widths and schemes."""

import re

import pytest

from pasta_jax.eval.answers_page import answers_page
from pasta_jax.eval.quality import repetition
from pasta_jax.eval.report_figures import set_figures, to_json
from pasta_jax.eval.suite_models import WHO
from pasta_jax.eval.suite_sets import Item, PromptSet
from pasta_jax.lang.document import Document, Text
from pasta_jax.lang.parse import parse
from tests import webdriver

NASTY = (
  'A </script><script>document.title="broken"</script> & "q" $prompt ${x} <!-- \' \x00 '
  "<img src=x onerror=alert(1)>"
  '<promise topic="a &lt;b&gt; &quot;c" tokens="20"/><async></div></section> <b>bold</b> é日本</async>'
  '<promise topic="next" tokens="10"/><async>second</async><sync/>]]>\nend ' + "longword" * 40
)
SPLIT = (
  '- <promise topic="one" tokens="10"/><async>first</async>\n- '
  '<promise topic="two" tokens="10"/><async>x</async>'
)
PROMPT = 'Why "><script>document.title = "broken"</script>? ' + "unbroken" * 30


def answer(text, who, **changes):
  document = parse(text)
  if who != "pasta":
    document = Document.of([Text(document.plain)])
  ids = list(document.plain.encode())
  n = len(document.chunks)
  return {
    "text": document.plain, "annotated": document.annotated, "finish_reason": "stop", "tokens": len(ids) + 1,
    "plain_tokens": len(ids), "chunks": n, "rounds": len(document.rounds), "critical_path": len(ids) // 2 + 1,
    "theoretical_speedup": 1.5, "position_error": [7] * n, "problems": [],
    **repetition(ids, document.plain), **changes,
  }  # fmt: skip


def rows_of(texts):
  return {who: [answer(t, who) for t in texts] for who in WHO}


@pytest.fixture(scope="module")
def page():
  held = PromptSet(
    "held_out", "rows.jsonl",
    (Item("1", PROMPT, parse(SPLIT)), Item("2", "Q2", parse(SPLIT)), Item("3", "Q3", parse("plain"))),
  )  # fmt: skip
  more = PromptSet("more", "more.jsonl", (Item("7", "Q7"), Item("8", ({"role": "user", "content": "Q8"},))))
  answers = {"held_out": rows_of([NASTY, "not split", "plain"]), "more": rows_of([SPLIT, ""])}
  answers["held_out"]["twin"][1] |= {"finish_reason": "length", "loops": True}
  answers["more"]["pasta"][1]["problems"] = ["it is <broken>"]
  costs = {who: [{"nll": 9.0, "tokens": 5}] * 3 for who in WHO}
  sets = {p.name: set_figures(p, answers[p.name], costs, {}, {}) for p in (held, more)}
  settings = {"model": "<toy>", "adapter": "a.npz", "twin": "t.npz", "max_new_tokens": 64, "lanes": 2}
  settings |= {"positions": "pred10", "fork": "eager"}
  figures = to_json({"settings": settings, "sets": sets})
  return answers_page(figures, [(p, answers[p.name]) for p in (held, more)])


def test_nothing_that_was_written_becomes_markup(page):
  body = page.partition("<main>")[2]
  assert "<script>document" not in page
  assert "<img" not in body
  assert "\x00" not in page
  assert "&lt;broken&gt;" in body
  assert "$prompt ${x}" in body


@pytest.fixture(scope="module")
def chrome():
  if webdriver.MISSING:
    pytest.skip(webdriver.MISSING)
  with webdriver.browser() as browser:
    yield browser


@pytest.fixture
def opened(chrome, page, tmp_path):
  def opens(width=1280, height=900, phone=False, dark=False):
    (tmp_path / "answers.html").write_text(page, encoding="utf-8")
    chrome.size(width, height, phone)
    chrome.dark(dark)
    chrome.open(f"file://{tmp_path / 'answers.html'}")
    return chrome

  return opens


def shown(chrome, **choices):
  for name, value in choices.items():
    chrome.run(
      "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
      "e.dispatchEvent(new Event('change'))",
      name,
      value,
    )
  ids = chrome.run(
    "return Array.from(document.querySelectorAll('article')).filter(e => !e.hidden)"
    ".map(e => e.querySelector('h3').firstChild.data.trim())"
  )
  assert chrome.run("return document.getElementById('count').textContent") == f"{len(ids)} of 5"
  return ids


def test_filters_show_what_they_name(opened):
  chrome = opened()
  assert shown(chrome) == ["1", "2", "3", "7", "8"]
  assert shown(chrome, kind="split") == ["1", "7"]
  assert shown(chrome, kind="plain") == ["2", "3", "8"]
  assert shown(chrome, kind="plain", set="held_out") == ["2", "3"]
  assert shown(chrome, kind="differs") == ["2"]
  assert shown(chrome, kind="cut", set="") == ["2"]
  assert shown(chrome, kind="loops") == ["1", "2"]  # the word that stands forty times
  assert shown(chrome, kind="invalid") == ["8"]
  assert chrome.complaints() == []


def test_answers_read_as_they_were_written_with_their_marks_beside(opened):
  chrome = opened()
  assert chrome.run("return document.title") == "Answers side by side"
  text = "return document.querySelector(arguments[0]).textContent"
  twin = parse(NASTY).plain.replace("\x00", "�")
  assert chrome.run(text, "article .twin .document") == twin
  assert chrome.run(text, "article .prompt") == PROMPT
  tags = chrome.run(
    "return Array.from(document.querySelectorAll('article:first-of-type .pasta .tag'), e => e.textContent)"
  )
  assert tags == ['1 a <b&gt; "c · 13 of 20', "2 next · 3 of 10"]
  assert chrome.run("return document.querySelectorAll('.pasta .syncmark').length") == 1
  assert chrome.run("return document.querySelectorAll('details .chunk').length") == 4  # of the references
  notes = chrome.run("return Array.from(document.querySelectorAll('.warn'), e => e.textContent)")
  assert {"ended by length", "loops", "invalid: it is <broken>"} <= set(notes)


@pytest.mark.parametrize(("width", "height", "phone"), [(390, 844, True), (1280, 900, False)])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_can_be_read_at_phone_and_desktop_width_in_both_schemes(
  opened, width, height, phone, dark
):
  chrome = opened(width, height, phone, dark)
  chrome.run("document.querySelectorAll('article').forEach(e => { e.style.contentVisibility = 'visible' })")
  chrome.run("document.querySelectorAll('details').forEach(e => { e.open = true })")
  assert chrome.run("return document.documentElement.scrollWidth") <= width
  outside = chrome.run(
    "return Array.from(document.querySelectorAll('main *')).filter(e =>"
    " e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
  )
  assert outside == []
  assert chrome.run(webdriver.CONTRAST) == []
  ground = chrome.run("return getComputedStyle(document.body).backgroundColor")
  assert (int(re.findall(r"\d+", ground)[0]) < 128) == dark
  lefts = chrome.run(
    "return ['pasta', 'twin', 'base'].map(w => document.querySelector('.' + w).getBoundingClientRect().left)"
  )
  assert len(set(lefts)) == (1 if phone else 3)


def test_all_answers_can_be_read_without_the_script(chrome, opened):
  chrome.devtools("Emulation.setScriptExecutionDisabled", value=True)
  try:
    nodes = opened().devtools("Accessibility.getFullAXTree")["nodes"]
  finally:
    chrome.devtools("Emulation.setScriptExecutionDisabled", value=False)
  names = " ".join(n.get("name", {}).get("value", "") for n in nodes)
  assert "not split" in names
  assert "Filter" not in names
