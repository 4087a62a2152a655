"""Topics: one to three words that say what a chunk is about, from the head of its text."""

import re
from collections.abc import Collection

from pasta_jax.lang.document import TOPIC_WORDS

# Beyond this a topic would often need more pieces than the grammar's eight.
MOST_CHARS = 28

_BOLD = re.compile(r"\s*(?:\*\*|__)(.+?)(?:\*\*|__)", re.DOTALL)
_LABEL = re.compile(r"\s*([^\n:.!?]{2,60}?)(?::(?=\s)|\s[–—-]\s)")
_WORD = re.compile(r"[^\W_]+(?:['’.+#/&-][^\W_]+)*[+#]*")
# A number before the words of a heading ("1. Fish", "Step 2: Fry") says nothing of what follows.
_COUNT = re.compile(r"\s*(?:#{1,6}\s+)?[*_]{0,3}(?:\(?\d{1,3}[.):]|\(?[a-z][.)]\s)\s*", re.IGNORECASE)

_STOP_WORDS = """
  a about after all also an and any are as at be because been being both but by can could did do does
  doing down each either for from had has have having he her here hers him his how i if in into is it
  its itself just let like made make makes may me might more most much must my no nor not of off on
  one only or other our out over own per same shall she should so some such than that the their them
  then there these they this those through to too under until up upon us use used uses using very was
  way we were what when where which while who whom whose why will with within without would you your
  yours it's don't isn't can't won't you're they're that's there's
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def lead_of(text: str) -> str | None:
  """The head of a text: its bold beginning, or its words before a colon or dash; None where it has none."""
  if bold := _BOLD.match(text):
    return bold[1]
  label = _LABEL.match(text)
  return label[1] if label and len(label[1].split()) <= 6 else None


def topic_of(text: str, head: str | None = None, spelt: Collection[str] = ()) -> str | None:
  """One to three words for a text.

  Args:
    text: the chunk's.
    head: its heading, if it has one outside; else its own head is looked for.
    spelt: words as the prompt and the answer spell them; capitals of a topic go where all its words also
      stand without them, so that "**Trains.**" becomes "trains", and "**Paris.**" stays.

  Returns:
    None where the text has no word at all.
  """
  for source in (head, lead_of(text), text[:200]):
    if source and (words := _words(source, spelt)):
      return words
  return None


def _words(source: str, spelt: Collection[str]) -> str:
  count = _COUNT.match(source)
  words = [w[:MOST_CHARS] for w in _WORD.findall(source, count.end() if count else 0) if w.isprintable()]
  chosen = [w for w in words if w.lower().replace("’", "'") not in STOP_WORDS] or words
  if all(w.lower() in spelt for w in chosen[:TOPIC_WORDS]):
    chosen = [w.lower() if w.istitle() else w for w in chosen]
  topic = ""
  for word in chosen[:TOPIC_WORDS]:
    longer = f"{topic} {word}".strip()
    if len(longer) > MOST_CHARS:
      break
    topic = longer
  return topic
