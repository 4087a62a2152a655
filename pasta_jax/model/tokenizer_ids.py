"""Ids where a model has no tokenizer: random weights can be run and measured, though they know no words."""

import dataclasses
import re
from typing import Any

from pasta_jax.lang.marks import MARKS
from pasta_jax.model.tokenizer import Roles, Tokenizer, TokenizerError

_SPELT = re.compile(rb"<(\d{1,9})>")


class IdsTokenizer(Tokenizer):
  """Ids below 256 are bytes, any other is spelt as its number: `<300>`.

  Args:
    vocab_size: number of ids.
    specials: let the last id end an answer, and keep those before it for the marks; else no id is special.
  """

  def __init__(self, vocab_size: int, specials: bool = False):
    pieces = [bytes([i]) if i < 256 else b"<%d>" % i for i in range(vocab_size)]
    last = vocab_size - 1
    kept = {last - len(MARKS) + n: f"<unused{n}>" for n in range(len(MARKS))} | {last: "<end>"}
    end = last if specials else None
    roles = Roles(bos=None, eos=end, pad=None, add_bos=False, stop=(last,) if specials else ())
    super().__init__(pieces, kept if specials else {}, roles)

  def _encode(self, text: str) -> list[int]:
    ids: list[int] = []
    at, data = 0, text.encode()
    for spelt in _SPELT.finditer(data):
      if self.piece(token := int(spelt[1])) == spelt[0]:
        ids += [*data[at : spelt.start()], token]
        at = spelt.end()
    return [*ids, *data[at:]]

  def save(self, folder: Any) -> None:
    """There is nothing to save.

    Raises:
      TokenizerError: always.
    """
    raise TokenizerError(f"{folder}: ids that stand in for a tokenizer are not saved")

  _save_model = save


def with_ids(model: Any) -> Any:
  """A model without a tokenizer with ids in its place, some of them for the marks and to end an answer.

  Args:
    model: with config, params and tokenizer, e.g. from `load_model`; returned as it is if it has a tokenizer.
  """
  if model.tokenizer is not None:
    return model
  size = model.config.vocab_size
  return dataclasses.replace(model, tokenizer=IdsTokenizer(size, specials=True).with_controls(size))
