"""Parser and repair look at each character a bounded number of times, whatever the text."""

import itertools
import os
import sys

import pytest

from pasta_jax import lang
from pasta_jax.lang.document import escape, unescape
from pasta_jax.lang.parse import parse, problems
from pasta_jax.lang.repair import repair

P = '<promise topic="a" tokens="10"/>'
FOLDER = os.path.dirname(lang.__file__)

# Each is repeated. What the lines do not count, regular expressions in quadratic time, shows as minutes.
PATTERNS = {
  "open marks": "<async>",
  "closing marks": "</async>",
  "syncs": "<sync/>",
  "promises": P,
  "chunks": f"{P}<async>x</async>",
  "chunks and syncs": f"{P}<async>x</async><sync/>",
  "unclosed chunks": f"{P}<async>x\n- ",
  "promises, then nothing": f"{P}x",
  "promise heads": '<promise topic="',
  "unclosed values": "<promise topic='x tokens=\"",
  "unclosed values, no marks": "topic=' tokens=\" ",
  "promises without end": "<promise topic",
  "angle brackets": "<",
  "empty marks": "< / ",
  "ampersands": "&amp;",
  "ampersands before a mark": "&amp;lt;promise ",
  "nested ampersands": "&" + "amp;" * 50,
  "spaces": " ",
  "lines": "\n",
  "attributes": " tokens = ",
  "quotes": '" ',
  "digits": "9",
  "letters": "a",
}
HEADS = (
  "",
  "<",
  "<sync",
  '<promise topic="',
  "<promise topic='x' tokens=",
  "<async>",
  "</",
  "&",
  f"{P}<async>",
)
TAILS = ("", "<sync/>", "lt;sync")


def steps(work, text: str) -> int:
  """Lines of `lang` that are run."""
  count = 0

  def trace(frame, event, _):
    nonlocal count
    if not frame.f_code.co_filename.startswith(FOLDER):
      return None
    count += event == "line"
    return trace

  old = sys.gettrace()
  sys.settrace(trace)
  try:
    work(text)
  finally:
    sys.settrace(old)
  return count


@pytest.mark.parametrize("pattern", PATTERNS)
def test_steps_grow_with_the_text(pattern):
  unit = PATTERNS[pattern]
  for work in (problems, repair):
    small, large = (steps(work, unit * n) for n in (100, 400))
    assert large <= 4 * small + 100


@pytest.mark.parametrize("pattern", PATTERNS)
def test_long_texts_are_read(pattern):
  run = PATTERNS[pattern] * (20_000 // len(PATTERNS[pattern]))
  text = "".join(head + run + tail for head, tail in zip(HEADS, itertools.cycle(TAILS)))
  document, _ = repair(text)
  assert parse(document.annotated) == document
  assert unescape(escape(text)) == text
