"""Chat templates: Jinja text from a model's files, rendered so that messages cannot spell special ids."""

import datetime
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
  in the runs: only the template's own specials count.

  Raises:
    TemplateFailure: broken template, or one that refuses these messages.
  """
  try:
    import jinja2
    import jinja2.sandbox
  except ImportError:
    raise TemplateFailure("chat templates need jinja2: pip install 'pasta_jax[demo]'") from None

  def refuse(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)

  guard = _free_guard(messages)
  pattern = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")
  guarded = _guard(messages, pattern, guard)
  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
  env.globals["raise_exception"] = refuse
  env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
  try:
    text = env.from_string(template).render(
      messages=guarded, bos_token=bos, eos_token=eos, add_generation_prompt=add_generation_prompt
    )
  except (jinja2.exceptions.TemplateError, TypeError, KeyError, AttributeError, ValueError) as e:
    raise TemplateFailure(f"the model's chat template refuses these messages: {e}") from None
  runs: list[tuple[str, bool]] = []
  at = 0
  for match in pattern.finditer(text):
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


def _guard(value: Any, pattern: re.Pattern, guard: str) -> Any:
  """`value` with every special's spelling in its strings broken after the first character."""
  if isinstance(value, str):
    while pattern.search(value):  # breaking one can leave another
      value = pattern.sub(lambda m: m.group()[0] + guard + m.group()[1:], value)
    return value
  if isinstance(value, Mapping):
    return {k: _guard(v, pattern, guard) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_guard(v, pattern, guard) for v in value]
  return value
