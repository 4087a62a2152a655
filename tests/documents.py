"""Hypothesis strategies for documents and for texts that are nearly documents."""

from hypothesis import strategies as st

from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.lang.marks import LENGTHS

# What escaping has to get right: marks, their entities, and what is close to both.
SNIPPETS = (
  "<", ">", "&", '"', "'", "/", "&lt;", "&amp;", "&quot;", "amp;", "lt;", "&lt;promise",
  "&amp;lt;sync/>", "<promise", "</promise>", "<promises>", "<promise-x>", "promise", "<async>",
  "</async>", "async>", "<sync/>", "<sync", "sync", "<Sync/>", "<div>", "\n", "\r\n", " ", "- ", "é",
  "<syncé", "日本", "\u2028", "\x00", "🙂", "\ud800",
)  # fmt: skip

texts = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=6), min_size=1, max_size=6).map("".join)
bodies = texts.filter(bool)
_letters = st.sampled_from('&"<>;aé日本/=Ω🙂ñ#_*') | st.integers(33, 126).map(chr)
words = st.text(_letters, min_size=1, max_size=5) | st.sampled_from(["&amp;", "&quot;", "<sync/>", "tokens="])
topics = st.lists(words, min_size=1, max_size=3).map(" ".join).filter(lambda t: t.isprintable() and t.split())
chunks = st.builds(Chunk, topics, st.sampled_from(LENGTHS), bodies)


@st.composite
def documents(draw, max_parts: int = 8) -> Document:
  """Valid documents: a sync only where a chunk was opened since the last one."""
  parts: list = []
  opened = False
  for part in draw(st.lists(texts.map(Text) | chunks | st.just(Sync()), max_size=max_parts)):
    if isinstance(part, Sync) and not opened:
      continue
    opened = isinstance(part, Chunk) or (opened and not isinstance(part, Sync))
    parts.append(part)
  return Document.of(parts)


# Spellings that a lenient reader takes for marks, and things that only look like them.
MARKS = (
  '<promise topic="by train" tokens="20"/>', "<async>", "</async>", "<sync/>",
  "<promise topic='a' tokens=7>", '<Promise tokens="x" topic="one two three four"/>', "<promise>",
  "<promise/>", "</promise>", "<sync>", "</sync>", "< sync / >", "<ASYNC>", "</ async >", "<async/>",
  '<async topic="t" tokens="30">', '<promise topic="', "<promise me",
  '<promise topic="by train tokens="20"/>', "<promise topic=“x” tokens=“-5”/>", '" tokens="20"/>',
  "<promise x=1 y>", '<promise topic="" tokens="99999"/>', '<promise topic="&amp; &lt;" tokens="010"/>',
  "<sync", "</async", "<ſync/>",
)  # fmt: skip
broken = st.lists(st.sampled_from(MARKS) | st.sampled_from(SNIPPETS) | st.text(max_size=4), max_size=14).map(
  "".join
)
