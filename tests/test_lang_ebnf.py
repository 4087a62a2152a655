"""docs/pasta_lang.ebnf and the parser take the same texts for documents."""

import itertools
import pathlib
import re
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_jax.lang.document import MARK_NAME
from pasta_jax.lang.marks import LENGTHS
from pasta_jax.lang.parse import parse, problems
from tests.documents import broken, documents
from tests.ebnf import Grammar

PATH = pathlib.Path(__file__).parents[1] / "docs" / "pasta_lang.ebnf"


def character_class(chars) -> str:
  """A set of characters as a regular expression."""
  runs = itertools.groupby(enumerate(chars), key=lambda p: ord(p[1]) - p[0])
  spans = [[c for _, c in run] for _, run in runs]
  return "[" + "".join(f"{re.escape(s[0])}-{re.escape(s[-1])}" for s in spans) + "]"


printable = [c for c in map(chr, range(sys.maxunicode + 1)) if c.isprintable() and c not in ' "<']
# Several characters at a time where that is likelier to meet a mark.
text = st.sampled_from(
  ["a", " ", "\n", "&", "&lt;", "&lt;sync/>", "<", "<p>", "</p>", "/", "é", '"', "promise"]
)
GRAMMAR = Grammar(
  PATH.read_text(),
  {
    'any character, but "<" only where it begins no mark': (rf"(?:[^<]|<(?!{MARK_NAME}))", text),
    'a printable character other than space, quotation mark and "<"': (
      character_class(printable),
      st.sampled_from("aé日&;>'=/-"),
    ),
  },
)
DOCUMENT = re.compile(GRAMMAR.pattern(GRAMMAR.rules["document"]))


def in_grammar(text: str) -> bool:
  return DOCUMENT.fullmatch(text) is not None


def test_what_the_grammar_makes_is_read():
  seen = set()

  @settings(max_examples=150, deadline=None)
  @given(GRAMMAR.strategy(GRAMMAR.rules["document"]))
  def check(text):
    # Pieces of text may meet and spell a mark; then both say no.
    assert in_grammar(text) == (not problems(text))
    if in_grammar(text):
      document = parse(text)
      assert parse(document.annotated) == document
      seen.update(type(p).__name__ for p in document.parts)

  check()
  assert seen == {"Text", "Chunk", "Sync"}


@settings(max_examples=300, deadline=None)
@given(documents())
def test_what_documents_write_is_in_the_grammar(document):
  assert in_grammar(document.annotated)


@settings(max_examples=500, deadline=None)
@given(broken)
def test_the_grammar_and_the_parser_refuse_the_same_texts(text):
  assert in_grammar(text) == (not problems(text))


def test_the_grammar_knows_all_lengths():
  tokens = re.compile(GRAMMAR.pattern(GRAMMAR.rules["tokens"]))
  assert [n for n in range(1000) if tokens.fullmatch(str(n))] == list(LENGTHS)
  assert not tokens.fullmatch("010")
