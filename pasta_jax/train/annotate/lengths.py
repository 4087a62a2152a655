"""Lengths of chunks without a tokenizer: estimates that training replaces with the tokenizer's counts."""

import re

from pasta_jax.lang.marks import LENGTH_STEP, LENGTHS

# Byte-level BPE vocabularies of 49K to 256K keep most words up to a dozen letters whole, digits apart.
_PIECES = re.compile(r"[^\W\d_]{1,12}|\d|[^\w\s]|_|\n")
# Scripts without spaces between words take about one piece per character.
_WIDE = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def estimated_tokens(text: str) -> int:
  """About how many tokens a text has."""
  return sum(1 for _ in _PIECES.finditer(_WIDE.sub("1", text)))


def promised_tokens(text: str) -> int:
  """What a promise of this body says: the estimate rounded up to tens, within 10 to 320."""
  tens = -(-estimated_tokens(text) // LENGTH_STEP) * LENGTH_STEP
  return min(max(tens, LENGTHS[0]), LENGTHS[-1])
