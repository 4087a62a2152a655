r"""The structure of an answer: its Markdown blocks as spans of characters.

    span of             example                      kind
    a heading           ### Fish                     HEADING, level 1 to 6
    a line in bold      **Fish**                     HEADING, level 7 (`BOLD`); short ones in italics too
    a list              - one                        LIST, one item per `-`; nested lists lie inside
                        - two                        their item
    running text        Fish swim.                   TEXT
    a rule              ---                          RULE
    the rest            ```code```, | tables |, ...  SOLID, never cut

CommonMark (markdown-it-py) says where blocks are. Two habits of language models are added to it: lines that
begin with `•`, `1)`, `(1)`, `a)` within a paragraph are a list, and so are paragraphs that each follow a
list of one numbered item ("1. Title", blank line, text at the margin, "2. Title", ...).
"""

import dataclasses
import enum
import itertools
import re
from collections.abc import Sequence

try:
  from markdown_it import MarkdownIt
  from markdown_it.token import Token
except ImportError:
  raise ImportError("annotation needs markdown-it-py: pip install 'pasta_jax[annotate]'") from None

BOLD = 7

_PARSER = MarkdownIt("commonmark").enable("table")
# A list item's marker up to its content, and a task's box with it.
_MARKER = re.compile(r"[ \t]*(?:[-*+•●▪◦‣]|\(?\d{1,9}[.)]|\(?[a-zA-Z][.)])[ \t]*(?:\[[ xX]\][ \t]+)?")
_NUMBER = re.compile(r"[ \t]*\(?(\d{1,9})[.)]")
_LINE_ITEM = re.compile(r"[ \t]*(?:[•●▪◦‣]|\(?\d{1,2}\)|\(?[a-z]\))[ \t]+(?=\S)")
_MARGIN = re.compile(r"\n(?=[^\s\-*+•>`|])")
_BOLD_LINE = re.compile(
  r"[ \t]*(?:\*\*(?!\*)[^*\n]+\*\*|__[^_\n]+__|\*[^*\s.!?](?:[^*\n.!?]{0,40})\*)[:.]?[ \t]*(?=\n|$)"
)


class Kind(enum.Enum):
  HEADING = "heading"
  LIST = "list"
  TEXT = "text"
  RULE = "rule"
  SOLID = "solid"


@dataclasses.dataclass(frozen=True)
class Item:
  """A list item.

  Attributes:
    start, end: the whole item, its marker included, white space at its end not.
    body: where its content begins.
    number: of an ordered list's item, else None.
  """

  start: int
  end: int
  body: int
  number: int | None


@dataclasses.dataclass(frozen=True)
class Block:
  """A span of the answer.

  Attributes:
    kind: what it is.
    start, end: characters; white space at its end is left out.
    level: of a heading, 1 (`#`) to 7 (a bold line); else 0.
    items: of a list.
  """

  kind: Kind
  start: int
  end: int
  level: int = 0
  items: tuple[Item, ...] = ()

  @property
  def ordered(self) -> bool:
    return bool(self.items) and self.items[0].number is not None


def blocks_of(text: str) -> tuple[Block, ...]:
  """The top-level blocks of a text, in order; between them is white space only."""
  starts = [0]
  for line in text.split("\n"):
    starts.append(starts[-1] + len(line) + 1)
  found: list[Block] = []
  tokens = _PARSER.parse(text)
  for n, token in enumerate(tokens):
    if token.level == 0 and token.nesting >= 0 and token.map:
      found += _blocks(text, starts, tokens, n)
  return tuple(_join_numbered(found))


def _span(text: str, starts: Sequence[int], lines: Sequence[int]) -> tuple[int, int]:
  start, end = starts[lines[0]], min(starts[lines[1]], len(text))
  return start, start + len(text[start:end].rstrip())


def _blocks(text: str, starts: Sequence[int], tokens: Sequence[Token], n: int) -> list[Block]:
  token = tokens[n]
  assert token.map is not None
  start, end = _span(text, starts, token.map)
  if token.type == "heading_open":
    return [Block(Kind.HEADING, start, end, level=int(token.tag[1:]))]
  if token.type == "hr":
    return [Block(Kind.RULE, start, end)]
  if token.type in ("bullet_list_open", "ordered_list_open"):
    items = []
    for inner in tokens[n + 1 :]:
      if inner.level == 0:
        break
      if inner.type == "list_item_open" and inner.level == 1 and inner.map:
        items.append(_item(text, *_span(text, starts, inner.map)))
    if token.type == "bullet_list_open":
      items = [dataclasses.replace(i, number=None) for i in items]
    return _end_lazy(text, items)
  if token.type == "paragraph_open":
    return _paragraph(text, start, end)
  return [Block(Kind.SOLID, start, end)]


def _end_lazy(text: str, items: Sequence[Item]) -> list[Block]:
  """A list; where only its last item goes on at the margin, as CommonMark lets it, that is a text."""
  margins = [_MARGIN.search(text, i.start, i.end) for i in items]
  last = margins[-1]
  if len(items) < 2 or last is None or any(margins[:-1]):
    return [Block(Kind.LIST, items[0].start, items[-1].end, items=tuple(items))]
  end = last.start()
  kept = [*items[:-1], dataclasses.replace(items[-1], end=end, body=min(items[-1].body, end))]
  return [
    Block(Kind.LIST, items[0].start, end, items=tuple(kept)),
    Block(Kind.TEXT, last.start() + 1, items[-1].end),
  ]


def _item(text: str, start: int, end: int) -> Item:
  marker = _MARKER.match(text, start, end)
  number = _NUMBER.match(text, start, end)
  return Item(start, end, marker.end() if marker else start, int(number[1]) if number else None)


def _paragraph(text: str, start: int, end: int) -> list[Block]:
  """A paragraph, with its bold first line and the lines that are list items taken apart."""
  bold = _BOLD_LINE.match(text, start, end)
  if bold:
    head = Block(Kind.HEADING, start, start + len(bold[0].rstrip()), level=BOLD)
    rest = bold.end() + 1
    return [head, *(_paragraph(text, rest, end) if rest < end else [])]
  items: list[int] = []
  at = start
  while at < end:
    if _LINE_ITEM.match(text, at, end):
      items.append(at)
    line_end = text.find("\n", at, end)
    at = line_end + 1 if line_end >= 0 else end
  if len(items) < 2:
    return [Block(Kind.TEXT, start, end)]
  lead = [Block(Kind.TEXT, start, start + len(text[start : items[0]].rstrip()))] if items[0] > start else []
  spans = [_item(text, a, a + len(text[a:b].rstrip())) for a, b in zip(items, [*items[1:], end])]
  return [*lead, Block(Kind.LIST, items[0], spans[-1].end, items=tuple(spans))]


def _join_numbered(blocks: Sequence[Block]) -> list[Block]:
  """Joins lists of one numbered item and the blocks between them into one list, where the numbers go on.

  The last item ends with its own block, or takes as many further text blocks as the item before it has: what
  comes after is the answer's.
  """
  out: list[Block] = []
  n = 0
  while n < len(blocks):
    heads = _numbered_heads(blocks, n)
    if len(heads) < 2:
      out.append(blocks[n])
      n += 1
      continue
    sizes = [b - a for a, b in itertools.pairwise(heads)]
    last = heads[-1] + 1
    while last < len(blocks) and last - heads[-1] < sizes[-1] and blocks[last].kind is not Kind.HEADING:
      last += 1
    ends = [*heads[1:], last]
    items: list[Item] = []
    for a, b in zip(heads, ends):
      *before, item = blocks[a].items
      items += [*before, dataclasses.replace(item, end=blocks[b - 1].end)]
    out.append(Block(Kind.LIST, blocks[n].start, items[-1].end, items=tuple(items)))
    n = last
  return out


def _numbered_heads(blocks: Sequence[Block], first: int) -> list[int]:
  """Indices of the lists that go on counting where the one before stopped, from a list at `first`."""
  heads: list[int] = []
  for n in range(first, len(blocks)):
    block = blocks[n]
    if block.kind is Kind.HEADING and heads:
      break
    if not block.ordered:
      if not heads:
        break
      continue
    following = block.items[0].number == (blocks[heads[-1]].items[-1].number or 0) + 1 if heads else True
    if not following:
      break
    heads.append(n)
  return heads
