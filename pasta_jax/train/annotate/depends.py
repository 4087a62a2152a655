"""What depends on what: signs that a text was written with an earlier part in view.

A chunk does not see the other chunks of its round, and the main thread sees them from a sync on only. The
rules here find texts that would need to. They err on the side of dependence: a text that is kept costs speed,
a text that is split wrongly costs sense.
"""

import re
from collections.abc import Iterable, Sequence

from pasta_jax.train.annotate.topics import STOP_WORDS


def _any(*phrases: str) -> str:
  """One of some phrases, in which a space stands for white space."""
  return "(?:" + "|".join(phrases).replace(" ", r"\s+") + r")(?!\w)"


def _pattern(text: str) -> re.Pattern:
  return re.compile(text, re.IGNORECASE)


# Whatever may stand before the first word.
_LEAD = r"[\W_]*"

# A beginning that continues what was just said.
_CONNECTIVE = _pattern(
  _LEAD
  + _any(
    "however|therefore|thus|hence|consequently|accordingly|similarly|likewise|moreover|furthermore",
    "additionally",
    "as a result|in addition|besides|on the other hand|in contrast|by contrast|conversely|otherwise|instead",
    "but|and|or|so|also|yet,|still,|meanwhile|nevertheless|nonetheless|even so|in other words",
    "that said|that being said|then|next|after (?:that|this|which)|afterwards?|finally|lastly|repeat",
    "continue",
    "once (?:this|that|these|those|it|they|you have|you've|the)|following this|from there|at this point",
    "now that",
    "with (?:this|that|these|those)|to (?:this|these) end|(?:because of|given) (?:this|that|these)|if so",
    "substituting|combining (?:these|the (?:two|results|equations))",
    "(?:both|all|each|any|none|either|neither) of (?:these|those|them|the above)",
  )
)
# A beginning whose subject is in an earlier paragraph.
_PRONOUN = _pattern(
  _LEAD
  + _any(
    "this|that|these|those|it|its|it's|they|their|them|he|his|she|her|such|another|others|both|each of",
    "all of",
    r"the (?:former|latter|same|other)|for (?:example|instance)|e\.g\.|here",
  )
)
# Anywhere: points at an earlier part.
_POINTER = _pattern(
  r"(?<!\w)"
  + _any(
    "as (?:mentioned|noted|described|shown|explained|discussed|stated|seen|outlined|listed|said)"
    " (?:above|before|earlier|previously|in)",
    "(?:mentioned|listed|described|shown|discussed|given|outlined|stated|calculated|found)"
    " (?:above|earlier|previously|before)",
    "aforementioned|above-mentioned|the above|the (?:former|latter)|same as (?:above|before)",
    "(?:from|in|of|see|repeat|to|with|after|before|under|per)"
    r" (?:steps?|items?|points?|sections?|parts?|numbers?|options?)"
    r" (?:#\s?)?(?:\d+|one|two|three|four|five|six)",
    r"steps? \d+|the (?:first|second|third) (?:option|method|approach|step|point|item)",
    "(?:previous|preceding|prior|earlier)"
    " (?:steps?|points?|sections?|items?|paragraphs?|parts?|examples?|answer)",
  )
)
_THESE = _pattern(r"\b(?:these|those|they|them|both)\b")
# Concludes, or takes up what was said.
_CONCLUSION = _pattern(
  _LEAD
  + _any(
    "in (?:summary|conclusion|short|sum|brief|general|essence|all|the end|total|any case|both|each)|overall",
    "to (?:sum|summari[sz]e|conclude|recap|wrap)|summing up|summary|conclusion|ultimately|remember",
    "all in all|all (?:these|those|of|three|four|five)|as you can see|taken together|together|combined",
    "by (?:following|doing|using|combining|incorporating|implementing|taking)|any of|whichever",
    "which(?:ever)? one",
    "of (?:these|those|them|the)|with (?:these|all)|final (?:answer|thoughts?|verdict|result)",
    "(?:key )?takeaways?|key points?|bottom line|tl;?dr|verdict|recommendation|either|each",
    "my (?:recommendation|advice|suggestion|pick|choice|favou?rite)",
    "i(?:'d| would)? (?:recommend|suggest|choose)",
    r"(?:answer|result|total|sum)(?:\W*:|\s(?:is|was|comes))",
    "the (?:best|right|above|main difference|key|bottom line|final|answer)",
  )
)
# Closes an answer and needs nothing of it.
_FAREWELL = _pattern(
  _LEAD
  + _any(
    "would you like|do you (?:want|have|need)|let me know|if you(?:'d| would)? (?:like|want|need|have)",
    "feel free",
    "i hope|hope (?:this|that|it)|good luck|have (?:fun|a)|enjoy|happy|what(?:'s| is| do| are) you|your turn",
    "need (?:more|help|any)|want (?:me|more|to)|which (?:one )?(?:do|would|of)|are you|is there (?:any|a)",
    "disclaimer|please (?:note|let|consult)|(?:pro )?tips?|bonus|note|sources?|references?",
    "sincerely|(?:best|kind|warm) (?:regards|wishes)|regards|yours|thank you|thanks",
    "with (?:kind|best|warm)|cheers",
  )
)
_CONCLUDING_HEAD = _pattern(
  r"(?<!\w)"
  + _any(
    "conclusions?|summary|summing up|takeaways?|bottom line|verdict|wrap(?:ping)?[ -]?up|overall",
    "in short|tl;?dr",
    "final (?:thoughts?|answer|verdict|notes?|tips?|words?|result|recommendations?)|comparison|comparing",
    "recap",
    "putting (?:it|this|them)|recommendations?|my (?:pick|choice|advice)|the answer|result|closing",
    "next steps?",
    "which (?:one|should)",
  )
)
# Heads of parts that follow each other in time, or in a tale.
_SEQUENCE_HEAD = _pattern(
  _LEAD
  + r"(?:step|phase|stage|chapter|scene|act|verse|stanza|chorus|bridge|part|episode|iteration|round|turn)s?"
  r"[\s#]*(?:\d|(?:one|two|three|four|five|i{1,3}|iv|v)\b)"
)
_STEP_INTRO = _pattern(
  r"\b(?:steps?|step[- ]by[- ]step|instructions?|directions|procedure|preparation|method|algorithm|recipe"
  r"|assembly|derivation|proof|solution)\b"
)
_STEP_PROMPT = _pattern(
  r"\b(?:recipe|step[- ]by[- ]step|(?:the|what|which) steps|instructions|walk me through|solve|prove|derive"
  r"|calculate|algorithm)\b"
)
# Numbered parts without heads that answer this are steps.
_HOW_PROMPT = _pattern(r"\bhow (?:do|to|can|should|would|could|does one)\b")
_LATEX = re.compile(r"\\\[|\\\(|\$\$|\\frac|\\boxed|\\sqrt")
_FENCED = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"[^\W\d]\w*|\d+(?:[.,]\d+)+|\d{2,}")
_DEFINED = re.compile(
  r"\b(?:def|class|function|func|fn|const|let|var|struct|CREATE\s+TABLE)\s+(\w+)"
  r"|^[ \t]*([^\W\d]\w*)\s*=(?!=)",
  re.MULTILINE,
)
_RESULT = re.compile(r"[=≈]\s*[-+*_$€£]*(\d+(?:[.,]\d+)+|\d{2,})(?!\s*[-+*/×·÷=\d])")
_CONTENT = re.compile(r"[^\W_][^\W_'’-]{3,}|\d{2,}")


def continues(text: str, *, pronouns: bool, head: str | None = None) -> bool:
  """Whether a text goes on from what stands before it, by its first words or a pointer in it.

  Args:
    pronouns: count a beginning like "This" or "They": not for a text whose subject is given by a heading or
      by the sentence that introduces a list.
    head: words at the beginning that name the text and continue nothing: "Besides strings: ...".
  """
  if _POINTER.search(text):
    return True
  if head and (at := text.find(head)) >= 0:
    text = text[at + len(head) :]
  if _CONNECTIVE.match(text):
    return True
  return pronouns and _PRONOUN.match(text) is not None


def names_one_of(text: str, heads: Iterable[str], known: str) -> bool:
  """Whether a text names the head (two words or more) of another part, that nothing before has named."""
  text, known = text.lower(), known.lower()
  for head in heads:
    spelt = head.strip(" *_:.").lower()
    if spelt not in text or len(spelt.split()) < 2:
      continue
    named = re.compile(rf"(?<!\w){re.escape(spelt)}(?!\w)")
    if named.search(text) and not named.search(known):
      return True
  return False


def concludes(text: str) -> bool:
  """Whether a text reads as a conclusion from what stands before it."""
  return _CONCLUSION.match(text) is not None or continues(text, pronouns=True)


def takes_up(text: str) -> bool:
  """Whether a line that introduces something does so from what stands before it."""
  return concludes(text) or _THESE.search(text) is not None


def says_farewell(text: str) -> bool:
  """Whether a text is one of those that close an answer: an offer, a wish, a note."""
  return _FAREWELL.match(text) is not None


def concluding_head(head: str) -> bool:
  return _CONCLUDING_HEAD.search(head) is not None


def words_from(text: str, hidden: str, known: str) -> set[str]:
  """Content words (and numbers) of a text that stand in what it cannot see and in nothing that it can.

  Args:
    hidden: the chunks that the text would not see.
    known: the prompt and the main text before.
  """

  def words(s: str) -> set[str]:
    return {w.lower() for w in _CONTENT.findall(s)} - STOP_WORDS

  return (words(text) & words(hidden)) - words(known)


def in_sequence(
  texts: Sequence[str], heads: Sequence[str | None], intro: str, ordered: bool, prompt: str
) -> bool:
  """Whether parts are steps that build on each other.

  Args:
    texts, heads: of the parts.
    intro: the heading or paragraph before them.
    ordered: they are numbered.
    prompt: what the answer replies to.
  """
  if any(h and _SEQUENCE_HEAD.match(h) for h in heads):
    return True
  if ordered and (_STEP_INTRO.search(intro) or _STEP_PROMPT.search(prompt)):
    return True
  if ordered and not any(heads) and _HOW_PROMPT.search(prompt):
    return True
  going_on = sum(continues(t, pronouns=False, head=h) for t, h in zip(texts[1:], heads[1:])) + bool(
    _POINTER.search(texts[0])
  )
  return going_on >= (1 if ordered else 2)


def works_out(texts: Sequence[str], known: str) -> bool:
  """Whether parts are a calculation or a program.

  They are, if more than one holds LaTeX, or if one uses a result (`= 42`) or a name of a code block
  (`rows =`, `def rows`) that an earlier one has and nothing `known`, the prompt for example, does.
  """
  if sum(bool(_LATEX.search(t)) for t in texts) > 1:
    return True
  seen = set(_NAME.findall(known))
  defined: set[str] = set()
  for text in texts:
    code = "\n".join(m[2] for m in _FENCED.finditer(text))
    own = {name for pair in _DEFINED.findall(code) for name in pair if name}
    results = set(_RESULT.findall(text))
    if (set(_NAME.findall(code)) | set(_NAME.findall(text)) & _numbers(defined)) & (defined - own - seen):
      return True
    defined |= own | results
  return False


def _numbers(names: Iterable[str]) -> set[str]:
  return {n for n in names if n[0].isdigit()}
