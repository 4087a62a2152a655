"""Annotation by rules: list items, headed sections and labelled paragraphs become chunks.

In the manner of APAR (arXiv 2401.06761), which cuts training answers at lists and paragraphs without a model.
`style("pasta")` cuts more carefully than that, and joins with a sync where a later text looks back;
`style("apar")` leaves the head of each part on the main thread, cuts plain paragraphs too and never joins.
docs/annotation.md states the rules.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from pasta_jax.lang.document import Document
from pasta_jax.lang.grammar import Limits
from pasta_jax.lang.marks import LENGTHS
from pasta_jax.train.annotate import depends
from pasta_jax.train.annotate.annotator import Annotation, Rejection
from pasta_jax.train.annotate.cuts import ChunkCut, Cut, SyncCut, document_of, estimated_steps
from pasta_jax.train.annotate.lengths import estimated_tokens
from pasta_jax.train.annotate.structure import Block, Kind, blocks_of
from pasta_jax.train.annotate.topics import lead_of, topic_of

_CHOICES = {
  "heads": ("chunk", "main"),
  "joins": ("back", "never"),
  "paragraphs": ("labelled", "all", "none"),
  "steps": ("keep", "split"),
  "sections": ("best", "whole", "within"),
}

_LABEL_END = re.compile(r"\s*(?:\*\*|__).+?(?:\*\*|__)[:.]?[ \t]+|\s*[^\n:]{2,60}:[ \t]+|[^\n]*?[.!?][ \t]+")
_BOLD_LABEL = re.compile(r"(?:\*\*[^*\n]{2,60}\*\*|__[^_\n]{2,60}__)[:.]?[ \t]*\S")
_PLAIN_LABEL = re.compile(r"[A-Z][\w'’/&-]*(?: [\w'’/&-]+){0,3}:[ \t]+\S")


@dataclasses.dataclass(frozen=True)
class RuleOptions:
  """How the rules cut.

  Attributes:
    heads: "chunk": the head of a list item or labelled paragraph belongs to its chunk; "main": it stays on
      the main thread, and the chunk is what follows it.
    joins: "back": a sync before a text that looks back at chunks; "never": no sync at all.
    paragraphs: "labelled": those that begin with a bold or short label; "all": also those without one that do
      not continue what stands before them; "none".
    steps: "keep": parts that build on each other (steps, derivations, programs) stay text, as do single ones
      that look back at another; "split": they are taken like others.
    sections: "whole": the body of a section is one chunk; "within": its items and labelled paragraphs are,
      where it has two or more; "best": whichever takes fewer steps (estimated) for the answer.
    least_tokens: a part shorter than this (estimated) stays text.
    mean_tokens: a group of parts shorter than this on the average stays text.
    limits: chunks of a round and of an answer.
  """

  heads: str = "chunk"
  joins: str = "back"
  paragraphs: str = "labelled"
  steps: str = "keep"
  sections: str = "best"
  least_tokens: int = 10
  mean_tokens: int = 15
  limits: Limits = dataclasses.field(default_factory=Limits)

  def __post_init__(self):
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise ValueError(f"--{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")


STYLES = {
  "pasta": RuleOptions(),
  "apar": RuleOptions(heads="main", joins="never", paragraphs="all", steps="split", sections="whole"),
}


def style(name: str) -> RuleOptions:
  """The options of a named style."""
  if name not in STYLES:
    raise ValueError(f"--style must be one of {', '.join(STYLES)}, got {name!r}")
  return STYLES[name]


@dataclasses.dataclass(frozen=True)
class RulesAnnotator:
  """Annotates by rules; never rejects."""

  options: RuleOptions = dataclasses.field(default_factory=RuleOptions)

  @property
  def name(self) -> str:
    return "rules"

  async def annotate(self, prompt: str, answer: str) -> Annotation | Rejection:
    return Annotation(self.document(prompt, answer))

  def document(self, prompt: str, answer: str) -> Document:
    """The document of a normalised answer."""
    o = self.options
    ways = ("whole", "within") if o.sections == "best" else (o.sections,)
    documents = [
      document_of(answer, _Cutter(prompt, answer, o, way).cuts(), o.limits, joins=o.joins == "back")
      for way in ways
    ]
    return min(documents, key=estimated_steps)  # the first of equals: fewer, longer chunks


@dataclasses.dataclass(frozen=True)
class _Part:
  """A candidate for a chunk.

  Attributes:
    start: of the whole part, its marker or heading included.
    body, end: what would be the chunk.
    head: its heading or lead, or None.
    outside: the head is a heading, not part of the body.
    blocks: the blocks of a section's body; empty for items and paragraphs.
  """

  start: int
  body: int
  end: int
  head: str | None
  outside: bool = False
  blocks: tuple[Block, ...] = ()


class _Cutter:
  """Walks the blocks of one answer in order and collects its cuts."""

  def __init__(self, prompt: str, answer: str, options: RuleOptions, sections: str):
    self.prompt, self.answer, self.options, self.sections = prompt, answer, options, sections
    self.lower_words = frozenset(re.findall(r"[^\W\d_]+", f"{prompt}\n{answer}"))
    self.found: list[Cut] = []

  def cuts(self) -> list[Cut]:
    self._region(blocks_of(self.answer), intro="")
    return self.found

  # -- what is where

  def _text(self, part: _Part | Block) -> str:
    return self.answer[part.body if isinstance(part, _Part) else part.start : part.end]

  def _open(self) -> list[ChunkCut]:
    """The chunks since the last sync."""
    out: list[ChunkCut] = []
    for cut in reversed(self.found):
      if isinstance(cut, SyncCut):
        break
      out.append(cut)
    return out[::-1]

  def _seen(self, end: int) -> str:
    """The prompt and what the main thread has before `end`, without the chunks that it does not see."""
    text = [self.prompt]
    at = 0
    for cut in self._open():
      text.append(self.answer[at : cut.start])
      at = cut.end
    return "\n".join([*text, self.answer[at:end]])

  # -- what depends on what

  def _waits(self, part: _Part) -> bool:
    """Whether a part looks back at the open chunks."""
    opened = self._open()
    if not opened or self.options.steps == "split":
      return False
    text, start = self._text(part), part.start
    if depends.continues(text, pronouns=False, head=part.head if not part.outside else None):
      return True
    heads = [c.head for c in opened]
    return depends.names_one_of(text, heads, self._seen(start))

  def _main(self, start: int, end: int) -> None:
    """Text of the main thread: joins the open chunks if it needs them."""
    text = self.answer[start:end]
    opened = self._open()
    if not opened or not re.search(r"\w", text):
      return
    farewell = depends.says_farewell(text)
    if farewell or (text.endswith(":") and not depends.takes_up(text)):
      hidden = "\n".join(self.answer[c.start : c.end] for c in opened)
      shared = depends.words_from(text, hidden, self._seen(start))
      if len(shared) < (2 if farewell else 1):
        return
    self._join(start)

  def _join(self, at: int) -> None:
    if self._open() and self.options.joins == "back":
      self.found.append(SyncCut(at))

  # -- regions: sections, and what lies before them

  def _region(self, blocks: Sequence[Block], intro: str) -> None:
    levels = [b.level for b in blocks if b.kind is Kind.HEADING]
    level = min((n for n in set(levels) if levels.count(n) > 1), default=0)
    first = next((n for n, b in enumerate(blocks) if b.level == level), 0) if level else len(blocks)
    self._flow(blocks[:first], intro)
    if not level:
      return
    bounds = [n for n in range(first, len(blocks)) if 0 < blocks[n].level <= level] + [len(blocks)]
    groups = [list(blocks[a:b]) for a, b in itertools.pairwise(bounds)]
    closing = _closing(self.answer, groups)
    sections = [self._section(g) for g in groups]
    if self._sequence(sections, self._intro(blocks[:first], intro), ordered=False):
      for section in sections:
        self._whole(section)
    else:
      for section in sections:
        self._one_section(section)
    self._flow(closing, "")

  def _section(self, group: Sequence[Block]) -> _Part:
    heading, *body = group
    while body and body[-1].kind is Kind.RULE:
      body.pop()
    head = self._text(heading).strip("# \t*_:.")
    if not body:
      return _Part(heading.start, heading.end, heading.end, head, True)
    return _Part(heading.start, body[0].start, body[-1].end, head, True, tuple(body))

  def _one_section(self, section: _Part) -> None:
    text = self._text(section)
    concluding = depends.concluding_head(section.head or "")
    if concluding or self._waits(section):
      self._join(section.start)
      self._region(section.blocks, section.head or "")
    elif self.sections == "within" and self._cut_within(section):
      return
    elif self.options.least_tokens <= estimated_tokens(text) <= LENGTHS[-1]:
      self._cut(section)
    else:
      self._region(section.blocks, section.head or "")

  def _cut_within(self, section: _Part) -> bool:
    """Cuts a section's own parts, if there are at least two."""
    before = len(self.found)
    self._region(section.blocks, section.head or "")
    if sum(isinstance(c, ChunkCut) for c in self.found[before:]) > 1:
      return True
    del self.found[before:]
    return False

  def _intro(self, blocks: Sequence[Block], intro: str) -> str:
    """The heading or paragraph that introduces what follows `blocks`."""
    return f"{intro}\n{self._text(blocks[-1])}" if blocks else intro

  # -- flow: blocks without sections

  def _flow(self, blocks: Sequence[Block], intro: str) -> None:
    n = 0
    while n < len(blocks):
      block = blocks[n]
      if block.kind is Kind.LIST:
        items = [_Part(i.start, i.body, i.end, lead_of(self.answer[i.body : i.end])) for i in block.items]
        self._group(items, self._intro(blocks[:n], intro), block.ordered)
        n += 1
        continue
      run = self._labelled(blocks, n)
      heads = {p.head for p in run}
      if len(run) > 1 and len(heads) == len(run):
        self._group(run, self._intro(blocks[:n], intro), ordered=False)
        n += len(run)
      elif len(run) > 1:  # labels that repeat are a dialogue's
        self._main(run[0].start, run[-1].end)
        n += len(run)
      elif self._stands_alone(blocks, n):
        self._cut(_Part(block.start, block.start, block.end, None))
        n += 1
      else:
        self._main(block.start, block.end)
        n += 1

  def _labelled(self, blocks: Sequence[Block], n: int) -> list[_Part]:
    """The paragraphs from `n` on that begin with a label, as parts."""
    run: list[_Part] = []
    if self.options.paragraphs == "none":
      return run
    label = _BOLD_LABEL if _BOLD_LABEL.match(self._text(blocks[n])) else _PLAIN_LABEL
    for block in blocks[n:]:
      text = self._text(block)
      if block.kind is not Kind.TEXT or not label.match(text):
        break
      if depends.says_farewell(text) or depends.concludes(text):
        break
      run.append(_Part(block.start, block.start, block.end, lead_of(text)))
    return run

  def _stands_alone(self, blocks: Sequence[Block], n: int) -> bool:
    """Whether a paragraph without a label is a part of its own, where those are asked for."""
    block = blocks[n]
    if self.options.paragraphs != "all" or block.kind is not Kind.TEXT or n == 0:
      return False
    text = self._text(block)
    return not (
      text.endswith(":")
      or depends.concludes(text)
      or depends.says_farewell(text)
      or not self.options.least_tokens <= estimated_tokens(text) <= LENGTHS[-1]
    )

  # -- groups of parts

  def _sequence(self, parts: Sequence[_Part], intro: str, ordered: bool) -> bool:
    if self.options.steps == "split":
      return False
    texts = [self._text(p) for p in parts]
    heads = [p.head for p in parts]
    known = f"{self.prompt}\n{intro}"
    return depends.works_out(texts, known) or depends.in_sequence(texts, heads, intro, ordered, self.prompt)

  def _group(self, parts: Sequence[_Part], intro: str, ordered: bool) -> None:
    """List items or labelled paragraphs."""
    if not parts:
      return
    sizes = [estimated_tokens(self._text(p)) for p in parts]
    small = sum(sizes) < self.options.mean_tokens * len(sizes)
    if len(parts) < 2 or small or self._sequence(parts, intro, ordered):
      self._main(parts[0].start, parts[-1].end)
      return
    for part in parts:
      if self._waits(part):
        self._join(part.start)
      elif self.options.least_tokens <= estimated_tokens(self._text(part)) <= LENGTHS[-1]:
        self._cut(part)

  def _whole(self, section: _Part) -> None:
    self._main(section.start, section.end)

  def _cut(self, part: _Part) -> None:
    if sum(isinstance(c, ChunkCut) for c in self.found) == self.options.limits.chunks:
      return  # an answer may have no more
    body = part.body
    text = self._text(part)
    if self.options.heads == "main" and not part.outside:
      head = _LABEL_END.match(self.answer, body, part.end)
      body = head.end() if head else part.end
      if estimated_tokens(self.answer[body : part.end]) < self.options.least_tokens:
        return
    topic = topic_of(text, part.head if part.outside else None, self.lower_words)
    if topic:
      name = "" if part.outside else part.head or ""
      self.found.append(ChunkCut(body, part.end, topic, part.start, name))


def _closing(answer: str, groups: Sequence[list[Block]]) -> list[Block]:
  """Takes from the last section what closes the whole answer, and returns it.

  That is what follows a rule, else the last paragraphs, if they say farewell or conclude, or if they follow a
  list while every other section ends with one, or another block while the others have one block each.
  """
  last = groups[-1]
  rules = [n for n, b in enumerate(last) if b.kind is Kind.RULE and n > 1]
  keep = rules[-1] if rules and rules[-1] < len(last) - 1 else len(last)
  if keep == len(last):
    others = [g[-1].kind for g in ([b for b in g if b.kind is not Kind.RULE] for g in groups[:-1])]
    lists = bool(others) and all(k is Kind.LIST for k in others)
    single = len(groups) > 2 and all(len([b for b in g if b.kind is not Kind.RULE]) == 2 for g in groups[:-1])
    while keep > 2 and last[keep - 1].kind is Kind.TEXT:
      text = answer[last[keep - 1].start : last[keep - 1].end]
      after_list = lists and any(b.kind is Kind.LIST for b in last[: keep - 1])
      if not (single or after_list or depends.says_farewell(text) or depends.concludes(text)):
        break
      keep -= 1
  closing = last[keep:]
  del last[keep:]
  return closing
