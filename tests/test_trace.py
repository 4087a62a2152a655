"""Traces: the data says what the lanes did, and the page shows it, in a real browser."""

import html.parser
import itertools
import json
import pathlib
import re

import pytest

from pasta_jax.decode.requests import Request, Sampling
from pasta_jax.decode.trace import trace_of
from pasta_jax.decode.trace_file import check_trace_path, write_trace
from pasta_jax.decode.trace_page import trace_page
from tests import webdriver
from tests.scripted import lanes_engine, scripted

# Text that would break out of elements, attributes, scripts and templates.
NASTY = (
  'A </script><script>document.title="broken"</script> & "quoted" $prompt ${x} <!-- \' \x00 '
  '<promise topic="a &lt;b&gt; &quot;c" tokens="20"/><async><img src=x onerror=alert(1)> </pre> é日本</async>'
  '<promise topic="next" tokens="10"/><async>]]> <b>bold</b></async><sync/>]]>\nend'
)
PROMPT = 'Why "><script>document.title = "broken"</script>?'


@pytest.fixture(scope="module")
def trace():
  engine = lanes_engine()
  return trace_of(engine.generate([scripted()])[0], engine, prompt="Which way?", model="toy")


@pytest.fixture(scope="module")
def nasty():
  engine = lanes_engine()
  return trace_of(engine.generate([scripted(NASTY)])[0], engine, prompt=PROMPT, model="<toy>")


def test_spans_of_each_thread_are_what_its_lane_did(trace):
  main, train, plane, last = trace["threads"]
  kinds = [s["kind"] for s in main["spans"]]
  assert kinds == ["text", "promise", "text", "promise", "text", "sync", "wait", "text", "promise", "text"]
  assert "".join(s["text"] for s in main["spans"] if s["kind"] == "text") == (
    "Two ways:\n\n- \n- \n\nSo take the train.\n!"
  )
  assert main["spans"][1]["text"] == "<promise>by train<len:20>"
  for spans in ([*t["spans"]] for t in trace["threads"]):
    for a, b in itertools.pairwise(spans):
      assert a["first"] <= a["last"] < b["first"]
  assert [t["topic"] for t in (train, plane, last)] == ["by train", "by plane", "last"]
  assert [t["promised"] for t in (train, plane, last)] == [20, 30, 10]
  assert [t["round"] for t in (train, plane, last)] == [0, 0, 1]
  wait = next(s for s in main["spans"] if s["kind"] == "wait")
  assert train["joined_at"] == plane["joined_at"] == wait["last"] + 1
  assert last["joined_at"] is None
  # The next span of the main thread begins where the sync is fed, beside the last chunk's end.
  assert max(t["spans"][-1]["last"] for t in (train, plane)) == train["joined_at"]
  for t, body in zip((train, plane, last), (p["text"] for p in trace["parts"] if p["kind"] == "chunk")):
    assert t["spans"][-1]["kind"] == "chunk"
    assert t["spans"][-1]["text"] == body
    assert t["ids"] == len(body.encode())
    assert t["spans"][0]["first"] == t["promised_at"] + 1


def test_figures_and_draws_agree_with_the_result():
  engine = lanes_engine()
  requests = [
    Request([n, 9], max_new_tokens=120, sampling=Sampling(temperature=1.5, seed=n), logprobs=n == 1)
    for n in range(6)
  ]
  for result in engine.generate(requests):
    t = json.loads(json.dumps(trace_of(result, engine)))
    f, row = t["figures"], result.parallel.row()
    assert {k: f[k] for k in row if k != "annotated"} == {k: v for k, v in row.items() if k != "annotated"}
    assert t["annotated"] == row["annotated"]
    assert [d["id"] for d in t["draws"] if d["id"] is not None] == list(result.ids)
    assert f["tokens"] == len(result.ids)
    assert f["steps"] == max(d["step"] for d in t["draws"])
    assert sum(f["steps_by_width"].values()) == f["steps"]
    assert ("logprob" in t["draws"][0]) == result.request.logprobs
    drawn = sum(s["ids"] for t in t["threads"] for s in t["spans"])
    closes = sum(d["text"] == "</async>" and d.get("mark", False) for d in t["draws"])
    assert drawn + closes == len(result.ids)
    bodies = [p["text"] for p in t["parts"] if p["kind"] == "chunk"]
    assert [c["spans"][-1]["text"] for c in t["threads"][1:]] == bodies


def test_a_promise_that_finds_no_lane_waits_in_the_trace():
  engine = lanes_engine()
  many = "".join(f'<promise topic="t" tokens="10"/><async>{"x" * 40}</async>' for _ in range(6))
  trace = trace_of(engine.generate([scripted(many)])[0], engine)
  waits = [t["spans"][0]["kind"] for t in trace["threads"][1:]]
  assert waits[:2] == ["chunk", "chunk"]
  assert waits[-1] == "wait"
  grouped = trace_of(engine.generate([scripted(many, fork="grouped")])[0], engine)
  assert grouped["threads"][1]["spans"][0]["kind"] == "wait"


def test_an_answer_cut_by_a_stop_string_has_the_trace_of_what_its_lanes_did():
  engine = lanes_engine()
  result = engine.generate([scripted(stop=("Slower",))])[0]
  trace = trace_of(result, engine)
  assert trace["text"] == "Two ways:\n\n- **Train.** "
  assert [p["kind"] for p in trace["parts"]] == ["text", "chunk"]
  assert len(trace["threads"]) > 2
  page = Page(trace_page(trace))
  assert "2 by plane" in page.text


def test_an_answer_without_marks_has_a_trace_of_one_thread():
  engine = lanes_engine()
  result = engine.generate([Request("hi", max_new_tokens=9, marks=False)])[0]
  trace = trace_of(result, engine, prompt="hi", model="toy")
  assert trace["mode"] == "sequential"
  assert [s["kind"] for t in trace["threads"] for s in t["spans"]] == ["text"]
  assert trace["figures"]["steps"] == result.tokens - 1
  assert trace["figures"]["steps_by_width"] == {"1": result.tokens - 1}
  assert "main" in trace_page(trace)


def test_every_field_is_documented(trace):
  text = (pathlib.Path(__file__).parent.parent / "docs" / "trace.md").read_text(encoding="utf-8")
  names = set(trace) | set(trace["figures"]) | set(trace["settings"])
  names |= {k for t in trace["threads"] for k in t} | {
    k for t in trace["threads"] for s in t["spans"] for k in s
  }
  names |= {k for d in trace["draws"] for k in d} | {k for p in trace["parts"] for k in p}
  assert [n for n in sorted(names) if f"`{n}`" not in text] == []
  assert f"version {trace['version']}" in text


class Page(html.parser.HTMLParser):
  """Elements, and text by element."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.links, self.text = [], [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [v for k, v in attrs if k in ("src", "href")]

  def handle_data(self, data):
    self.text.append(data)


def test_the_page_needs_nothing_else_and_nothing_breaks_out_of_it(trace, nasty):
  for t in (trace, nasty):
    page = Page(trace_page(t))
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert "img" not in page.tags
    assert "link" not in page.tags
    assert all(link.startswith("#") for link in page.links)
  assert "url(" not in trace_page(trace)
  assert "://" not in trace_page(trace)
  # The page's own script ends once: what a model wrote is in no script.
  assert trace_page(nasty).count("</script>") == 1


def test_traces_are_written_whole_or_not_at_all(trace, tmp_path, monkeypatch):
  out = tmp_path / "out.json"
  write_trace(str(out), trace)
  assert json.loads(out.read_text()) == trace
  write_trace(str(tmp_path / "out.html"), trace)
  assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")

  def full(fd):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("os.fsync", full)
  with pytest.raises(OSError, match="No space"):
    write_trace(str(out), {})
  assert json.loads(out.read_text()) == trace
  assert sorted(p.name for p in tmp_path.iterdir()) == ["out.html", "out.json"]


@pytest.mark.parametrize(
  ("name", "message"),
  [("out.txt", "name a .html page"), ("none/out.html", "is no folder"), ("dir.html", "is a folder")],
)
def test_a_trace_that_cannot_be_written_is_refused_at_once(tmp_path, name, message):
  (tmp_path / "dir.html").mkdir()
  with pytest.raises(ValueError, match=re.escape(message)):
    check_trace_path(str(tmp_path / name))


@pytest.fixture(scope="module")
def chrome():
  if webdriver.MISSING:
    pytest.skip(webdriver.MISSING)
  with webdriver.browser() as browser:
    yield browser


@pytest.fixture
def opened(chrome, trace, tmp_path):
  """Opens the page of a trace."""

  def opens(t=trace, width=1280, height=900, phone=False, dark=False):
    write_trace(str(tmp_path / "t.html"), t)
    chrome.size(width, height, phone)
    chrome.dark(dark)
    chrome.open(f"file://{tmp_path / 't.html'}")
    return chrome

  return opens


def test_what_a_model_wrote_is_text_in_the_browser(opened, nasty):
  page = opened(nasty)
  assert page.run("return document.title").startswith("Trace: Why")
  assert page.run("return document.querySelector('.prompt').textContent") == PROMPT
  shown = page.run(
    "return Array.from(document.querySelectorAll('.document > span')).map(e => {"
    " e = e.cloneNode(true); e.querySelectorAll('.tag').forEach(t => t.remove()); return e.textContent })"
  )
  parts = ["sync" if p["kind"] == "sync" else p["text"].replace("\x00", "�") for p in nasty["parts"]]
  assert shown == parts
  assert page.run("return document.images.length") == 0
  page.point("#thread-1 .chunk")
  assert "<img src=x onerror=alert(1)>" in page.run(
    "return document.querySelector('#detail pre').textContent"
  )
  assert page.complaints() == []


def test_pointing_and_arrow_keys_show_the_text_of_a_span(opened):
  page = opened()
  page.point("#thread-2 .chunk")
  assert page.run("return document.querySelector('#detail pre').textContent") == "**Plane.** Fast."
  assert page.run("return Array.from(document.querySelectorAll('.on[data-thread]')).map(e => e.id)") == [
    "thread-2", "chunk-2",
  ]  # fmt: skip
  focus = "return document.activeElement.getAttribute('aria-label')"
  page.run("document.querySelector('#thread-0 .span').focus()")
  assert page.run(focus).startswith("main: text, steps 0 to ")
  page.keys("Right")
  assert page.run(focus).startswith("main: promise")
  assert "by train" in page.run("return document.getElementById('detail').textContent")
  page.keys("Down")
  assert page.run(focus).startswith("1 by train: chunk")
  page.keys("Up", "Left")
  assert page.run(focus).startswith("main: ")
  # One stop for the whole timeline: Tab leaves it for the next row's link.
  assert page.run("return document.querySelectorAll('button.span[tabindex=\"0\"]').length") == 1
  page.keys("Tab")
  assert page.run("return document.activeElement.closest('.track')") is None


@pytest.mark.parametrize(
  ("width", "height", "phone"), [(390, 844, True), (320, 640, True), (1280, 900, False)]
)
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_can_be_read_at_phone_and_desktop_width_in_both_schemes(
  opened, width, height, phone, dark
):
  page = opened(width=width, height=height, phone=phone, dark=dark)
  assert page.run("return document.documentElement.scrollWidth") <= width
  outside = page.run(
    "return Array.from(document.querySelectorAll('main *')).filter(e => !e.closest('.time')"
    " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
  )
  assert outside == []
  poor = page.run(webdriver.CONTRAST)
  assert poor == []
  ground = page.run("return getComputedStyle(document.body).backgroundColor")
  assert (int(re.findall(r"\d+", ground)[0]) < 128) == dark


def test_kinds_of_spans_differ_without_colour(opened):
  page = opened()
  looks = page.run(
    "return ['text', 'promise', 'chunk', 'wait', 'sync'].map(k => {"
    " const s = getComputedStyle(document.querySelector('.time .span.' + k));"
    " return [s.backgroundImage !== 'none', s.borderTopStyle, s.borderTopWidth,"
    " s.backgroundColor !== 'rgba(0, 0, 0, 0)'].join() })"
  )
  assert len(set(looks)) == 5
  assert page.run("return document.querySelectorAll('.legend li').length") == 5


def test_the_page_is_whole_without_its_script(chrome, opened):
  chrome.devtools("Emulation.setScriptExecutionDisabled", value=True)
  try:
    page = opened()
    tree = page.devtools("Accessibility.getFullAXTree")["nodes"]
  finally:
    chrome.devtools("Emulation.setScriptExecutionDisabled", value=False)
  names = [n.get("name", {}).get("value", "") for n in tree]
  assert any(n.startswith("2 by plane: chunk") and "**Plane.** Fast." in n for n in names)
  assert "theoretical speedup" in names
