"""What depends on what: words by which a text shows that it was written with an earlier part in view.

A chunk does not see the other chunks of its round, and the main thread sees them from a sync on only. The rules
here find texts that would need to. They err on the side of dependence: a text that is kept costs speed, a text
that is split wrongly costs sense.
"""

import re
from collections.abc import Iterable, Sequence

from pasta_jax.train.annotate.topics import STOP_WORDS

# A beginning that continues what was just said.
_CONNECTIVE = re.compile(
  r"""(?:however|therefore|thus|hence|consequently|accordingly|as\ a\ result|similarly|likewise|moreover|furthermore
  |in\ addition|additionally|besides|on\ the\ other\ hand|in\ contrast|by\ contrast|conversely|but|yet|still|otherwise
  |instead|meanwhile|nevertheless|nonetheless|even\ so|in\ other\ words|that\ said|that\ being\ said|then|next
  |after\ (?:that|this|which)|afterwards?|once\ (?:this|that|these|those|it|they|you\ have|you've|the)|finally|lastly
  |following\ this|from\ there|at\ this\ point|now\ that|with\ (?:this|that|these|those)|to\ (?:this|these)\ end
  |repeat|continue|so|and|or|also|because\ of\ (?:this|that|these)|given\ (?:this|that|these)|if\ so
  |substitut(?:e|ing)|combin(?:e|ing)\ (?:these|the\ (?:two|results|equations)))\b""",
  re.IGNORECASE | re.VERBOSE,
)
# A beginning whose subject is in an earlier paragraph.
_PRONOUN = re.compile(
  r"""(?:this|that|these|those|it|its|it's|they|their|them|he|his|she|her|such|another|the\ (?:former|latter|same|other)
  |others|both|each\ of|all\ of|for\ (?:example|instance)|e\.g\.|such\ as|here)\b""",
  re.IGNORECASE | re.VERBOSE,
)
# Anywhere: points at an earlier part.
_POINTER = re.compile(
  r"""\b(?:as\ (?:mentioned|noted|described|shown|explained|discussed|stated|seen|outlined|listed|said)
      \ (?:above|before|earlier|previously|in)
  |(?:mentioned|listed|described|shown|discussed|given|outlined|stated|calculated|found)\ (?:above|earlier|previously|before)
  |aforementioned|the\ above|above-mentioned|the\ (?:previous|preceding|prior|former|latter)
  |(?:from|in|of|see|repeat|to|with|after|before|under|per)\ (?:steps?|items?|points?|sections?|parts?|numbers?|options?)
      \ (?:\#\ ?)?(?:\d+|one|two|three|four|five|six)
  |steps?\ \d+|(?:both|all|each|any|none|either|neither)\ of\ (?:these|those|them|the\ above)
  |the\ (?:first|second|third)\ (?:one|option|method|approach|step|point|item)
  |same\ as\ (?:above|before)|previous\ (?:step|point|section|item|one)|earlier\ (?:step|point|section))\b""",
  re.IGNORECASE | re.VERBOSE,
)
# Concludes, or turns to the reader about what was said.
_CONCLUSION = re.compile(
  r"""[\W_]*(?:in\ (?:summary|conclusion|short|sum|brief|general|essence|all|the\ end|total|any\ case|both|each)|overall
  |to\ (?:sum|summari[sz]e|conclude|recap|wrap)|summing\ up|summary|conclusion|all\ (?:in\ all|these|those|of|three|four|five)
  |therefore|thus|hence|so\b|as\ you\ can\ see|by\ (?:following|doing|using|combining|incorporating|implementing|taking)
  |remember|ultimately|taken\ together|together|these|those|this|that|they|both|each|either|any\ of|whichever|which(?:ever)?\ one
  |of\ (?:these|those|them|the)|with\ (?:these|all)|combined|final\ (?:answer|thoughts?|verdict|result)|answer|result|total|sum
  |key\ (?:takeaways?|points?)|takeaways?|bottom\ line|tl;?dr|verdict|my\ (?:recommendation|advice|suggestion|pick|choice|favou?rite)
  |recommendation|i(?:'d|\ would)?\ (?:recommend|suggest|choose|pick)|the\ (?:best|right|above|main\ difference|key|bottom\ line|final|answer))""",
  re.IGNORECASE | re.VERBOSE,
)
# Text for the end of an answer that needs nothing of it.
_FAREWELL = re.compile(
  r"""[\W_]*(?:would\ you\ like|do\ you\ (?:want|have|need)|let\ me\ know|if\ you(?:'d|\ would)?\ (?:like|want|need|have)
  |feel\ free|i\ hope|hope\ (?:this|that|it)|good\ luck|have\ (?:fun|a\ )|enjoy|happy\ |what(?:'s|\ is|\ do|\ are)\ you
  |your\ turn|need\ (?:more|help|any)|want\ (?:me|more|to)|which\ (?:one\ )?(?:do|would|of)|are\ you|is\ there\ (?:any|a\ )
  |disclaimer|please\ (?:note|let|consult)|(?:pro\ )?tips?\b|bonus|note|sources?|references?|p\.?s\.?\b)""",
  re.IGNORECASE | re.VERBOSE,
)
_CONCLUDING_HEAD = re.compile(
  r"""\b(?:conclusions?|summary|summing\ up|final\ (?:thoughts?|answer|verdict|notes?|tips?|words?|result|recommendations?)
  |(?:key\ )?takeaways?|bottom\ line|verdict|wrap(?:ping)?[ -]?up|overall|in\ short|tl;?dr|comparison|comparing|recap
  |putting\ (?:it|this|them)|recommendations?|my\ (?:pick|choice|advice)|the\ answer|result|closing|next\ steps?|which\ (?:one|should))\b""",
  re.IGNORECASE | re.VERBOSE,
)
# Heads of parts that follow each other in time, or in a tale.
_SEQUENCE_HEAD = re.compile(
  r"[\W_]*(?:step|phase|stage|chapter|scene|act|verse|stanza|chorus|bridge|part|episode|iteration|round|turn)s?"
  r"[\s#]*(?:\d|one|two|three|four|five|i\b|ii|iv|v\b)",
  re.IGNORECASE,
)
_STEP_WORDS = re.compile(
  r"\b(?:steps?|step[- ]by[- ]step|instructions?|directions|procedure|preparation|method|algorithm|recipe"
  r"|assembly|derivation|proof|solution)\b",
  re.IGNORECASE,
)
_STEP_PROMPT = re.compile(
  r"\b(?:recipe|step[- ]by[- ]step|steps|instructions|walk me through|solve|prove|derive|calculate|algorithm)\b",
  re.IGNORECASE,
)
_MATHS = re.compile(r"\\\[|\\\(|\$\$|\\frac|\\boxed|\b\w+\s*=\s*-?[\d\\(]|\d\s*[=≈]\s*-?\$?\d")
_CODE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_DECORATION = re.compile(r"[\s*_#>\"'“”‘’(\[\-–—]*")
_CONTENT = re.compile(r"[^\W_][^\W_'’-]{3,}|\d{2,}")


def _begins(pattern: re.Pattern, text: str) -> bool:
  return pattern.match(text, _DECORATION.match(text).end()) is not None  # type: ignore[union-attr]


def continues(text: str, *, pronouns: bool) -> bool:
  """Whether a text goes on from what stands before it, by its first words or a pointer in it.

  Args:
    pronouns: count a beginning like "This" or "They": not for a text whose subject is given by a heading or by
      the sentence that introduces a list.
  """
  if _begins(_CONNECTIVE, text) or _POINTER.search(text):
    return True
  return pronouns and _begins(_PRONOUN, text)


def names_one_of(text: str, heads: Iterable[str], known: str) -> bool:
  """Whether a text names the head (of two words or more) of another part, that nothing before has named."""
  lower, known = text.lower(), known.lower()
  for head in heads:
    phrase = " ".join(re.findall(r"[^\W_]+", head.lower()))
    spelt = head.strip(" *_:.").lower()
    if len(phrase.split()) >= 2 and spelt in lower and spelt not in known:
      return True
  return False


def concludes(text: str) -> bool:
  """Whether a text reads as a conclusion from what stands before it."""
  return _CONCLUSION.match(text) is not None or continues(text, pronouns=True)


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
  if ordered and (_STEP_WORDS.search(intro) or _STEP_PROMPT.search(prompt)):
    return True
  going_on = sum(continues(t, pronouns=False) for t in texts[1:])
  return going_on >= (1 if ordered else 2)


def works_out(texts: Sequence[str]) -> bool:
  """Whether parts are a calculation or a program: more than one holds maths, or more than one code."""
  return sum(bool(_MATHS.search(t)) for t in texts) > 1 or sum(bool(_CODE.search(t)) for t in texts) > 1
