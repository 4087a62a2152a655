"""Chat templates: Jinja text from a model's files, rendered so that messages cannot spell special ids."""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


class TemplateFailure(ValueError):
  """A template that is broken or refuses the messages."""


# A noncharacter of Unicode: no text has a use for it.
_GUARDS = tuple(chr(c) for c in range(0xFDD0, 0xFDF0))


def render(
  template: str,
  messages: Sequence[Mapping[str, Any]],
  *,
  specials: Sequence[str],
  bos: str = "",
  eos: str = "",
  add_generation_prompt: bool = True,
) -> list[tuple[str, bool]]:
  """Renders a conversation into runs of (text, whether the text is a special's spelling).

  A special's spelling inside a message is broken with a noncharacter before the template sees it, and mended
  in the runs: only the template's own specials count. So is the beginning of one at a message's end, which
  what the template puts behind it might complete.

  Raises:
    TemplateFailure: broken template, or one that refuses these messages.
  """
  try:
    import jinja2
  except ImportError:
    raise TemplateFailure("chat templates need jinja2: pip install 'pasta_jax[demo]'") from None
  guard = _free_guard(messages)
  spellings = _spellings(tuple(specials))
  guarded = _guard(messages, spellings, guard)
  try:
    text = _compiled(template).render(
      messages=guarded, bos_token=bos, eos_token=eos, add_generation_prompt=add_generation_prompt
    )
  except (jinja2.exceptions.TemplateError, TypeError, KeyError, AttributeError, ValueError) as e:
    raise TemplateFailure(f"the model's chat template refuses these messages: {e}") from None
  runs: list[tuple[str, bool]] = []
  at = 0
  for match in spellings.pattern.finditer(text):
    if match.start() > at:
      runs.append((text[at : match.start()], False))
    runs.append((match.group(), True))
    at = match.end()
  if at < len(text):
    runs.append((text[at:], False))
  return [(run.replace(guard, ""), special) for run, special in runs]


def _free_guard(messages: Any) -> str:
  text = json.dumps(messages, ensure_ascii=False, default=str)
  for guard in _GUARDS:
    if guard not in text:
      return guard
  raise TemplateFailure("messages use every noncharacter of Unicode")


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
  """A Jinja template in a sandbox, with what transformers gives to templates."""
  import jinja2.sandbox

  def refuse(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)

  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
  env.globals["raise_exception"] = refuse
  env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
  return env.from_string(template)


@dataclasses.dataclass(frozen=True)
class _Spellings:
  """How specials are written.

  Attributes:
    pattern: finds every special, the longest where several begin.
    beginnings: what they begin with.
    longest: letters of the longest of `beginnings`.
  """

  pattern: re.Pattern[str]
  beginnings: frozenset[str]
  longest: int


@functools.lru_cache(maxsize=8)
def _spellings(specials: tuple[str, ...]) -> _Spellings:
  """The spellings of a tokenizer's specials, but for those of one letter, which is text: it cannot be broken.

  Gemma has thousands that begin alike: alternatives are nested letter by letter, so that a `<` costs no more
  than the letters that follow it.
  """
  tree: dict[str, Any] = {}
  specials = tuple(text for text in specials if len(text) > 1)
  for text in specials:
    node = tree
    for letter in text:
      node = node.setdefault(letter, {})
    node[""] = {}

  def alternatives(node: dict[str, Any]) -> str:
    parts = [re.escape(letter) + alternatives(rest) for letter, rest in node.items() if letter]
    if not parts:
      return ""
    return f"(?:{'|'.join(parts)})" + ("?" if "" in node else "")

  beginnings = frozenset(text[:n] for text in specials for n in range(1, len(text)))
  pattern = re.compile(alternatives(tree) or r"(?!)")
  return _Spellings(pattern, beginnings, max(map(len, beginnings), default=0))


def _guard(value: Any, spellings: _Spellings, guard: str) -> Any:
  """`value` with every special's spelling in its strings broken after the first character."""
  if isinstance(value, str):
    while spellings.pattern.search(value):  # breaking one can leave another
      value = spellings.pattern.sub(lambda m: m.group()[0] + guard + m.group()[1:], value)
    seen = value.rstrip()  # a template may trim it
    if any(seen[-n:] in spellings.beginnings for n in range(1, spellings.longest + 1)):
      value = seen + guard + value[len(seen) :]
    return value
  if isinstance(value, Mapping):
    return {_guard(k, spellings, guard): _guard(v, spellings, guard) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_guard(v, spellings, guard) for v in value]
  return value
