"""One interface for every tokenizer, and the decoding that they share.

Whatever a user's text says, `encode` yields text pieces only: neither the marks of PASTA-LANG nor a model's
own special ids (end of turn, beginning of text, ...) can be spelt by a prompt. Specials enter through `chat`
and through ids.
"""

import abc
import codecs
import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pasta_jax.lang.marks import MARKS, ControlIds
from pasta_jax.model import chat


class TokenizerError(ValueError):
  """A tokenizer that cannot be loaded or used, with one line that says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Roles:
  """Which special ids mean what.

  Attributes:
    bos, eos, pad: ids; None where the model has none.
    add_bos: whether a plain prompt starts with bos.
    stop: ids that end an answer: eos and the ends of turns.
    chat_template: Jinja text, or "".
  """

  bos: int | None
  eos: int | None
  pad: int | None
  add_bos: bool
  stop: tuple[int, ...]
  chat_template: str = ""


# Spellings of the ids that end a turn, over all families.
END_OF_TURN = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>")

# Ids that a model's makers kept free, by family.
_RESERVED = re.compile(r"<unused\d+>|<\|reserved_special_token_\d+\|>")

# Texts whose mean embedding a mark's row starts at, where rows are grown.
_SEED_TEXTS = ("in parallel", "begin", "end", "wait for all", *(f"{n} words" for n in range(10, 330, 10)))


class Tokenizer(abc.ABC):
  """Text to ids and back.

  Attributes:
    roles: see Roles.
    vocab_size: number of ids, control ids included.
    specials: spelling of every special id, control ids not included.
    controls: ids of the marks, or None (see `with_controls`).
    grown: rows that the embedding must have beyond the ones that the model came with.
  """

  def __init__(self, pieces: Sequence[bytes], specials: Mapping[int, str], roles: Roles):
    """Args:
    pieces: the bytes that each id stands for; ignored for specials.
    specials: spelling of each special id.
    """
    self.roles = roles
    self.vocab_size = len(pieces)
    self.specials = dict(specials)
    self.controls: ControlIds | None = None
    self.grown = 0
    self._pieces = list(pieces)
    for i in self.specials:
      self._pieces[i] = b""
    self._index_specials()

  def _index_specials(self) -> None:
    self._special_ids = {text: i for i, text in self.specials.items()}
    self._never = frozenset(self.specials) | frozenset(self.controls.all if self.controls else ())

  # Families implement these.

  @abc.abstractmethod
  def _encode(self, text: str) -> list[int]:
    """Ids of text, which may hold specials by accident."""

  @abc.abstractmethod
  def _save_model(self, folder: str) -> None:
    """Writes the vocabulary into `folder`."""

  @property
  def strips_space(self) -> bool:
    """Whether decoding drops the space that encoding put before the text."""
    return False

  # Text.

  @property
  def bos_id(self) -> int | None:
    return self.roles.bos

  @property
  def eos_id(self) -> int | None:
    return self.roles.eos

  @property
  def pad_id(self) -> int:
    return self.roles.pad if self.roles.pad is not None else (self.roles.eos or 0)

  @property
  def add_bos(self) -> bool:
    return self.roles.add_bos

  @property
  def stop_ids(self) -> tuple[int, ...]:
    return self.roles.stop

  @property
  def special_ids(self) -> frozenset[int]:
    """The model's special ids and the control ids: what `encode` never yields."""
    return self._never

  def encode(self, text: str, *, bos: bool = False) -> list[int]:
    """Ids of a user's text; never a special or control id, whatever it spells."""
    text = text.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates have no bytes
    ids = self._encode(text)
    if not self.special_ids.isdisjoint(ids):
      ids = self._encode_around(text)
    return [self.roles.bos, *ids] if bos and self.roles.bos is not None else ids

  def _encode_around(self, text: str) -> list[int]:
    """Encodes text that a vocabulary would turn into a special id, cut until it does not."""
    ids = self._encode(text)
    if self.special_ids.isdisjoint(ids):
      return ids
    if len(text) <= 1:
      return [i for i in ids if i not in self.special_ids]
    half = len(text) // 2
    return self._encode_around(text[:half]) + self._encode_around(text[half:])

  def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
    """Text of ids; bytes that are no UTF-8 become U+FFFD.

    Args:
      keep_special: spell special and control ids out, instead of dropping them.
    """
    stream = self.stream(keep_special=keep_special)
    return "".join([stream.push(i) for i in ids]) + stream.flush()

  def stream(self, *, keep_special: bool = False) -> "IncrementalDecoder":
    """A decoder for ids that come one at a time."""
    return IncrementalDecoder(self, keep_special)

  def piece(self, token: int) -> bytes:
    """The bytes that an id stands for; none for specials, control ids and unknown ids."""
    return self._pieces[token] if 0 <= token < len(self._pieces) else b""

  def spelling(self, token: int) -> str | None:
    """How a special or control id is written; None for others."""
    if self.controls and token in self.controls.all:
      return MARKS[self.controls.all.index(token)]
    return self.specials.get(token)

  # Chat.

  @property
  def has_chat_template(self) -> bool:
    return bool(self.roles.chat_template)

  def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
    """Ids of a conversation in the model's own format.

    Args:
      messages: `{"role": ..., "content": ...}` each.
      add_generation_prompt: end with the beginning of the model's turn.

    Raises:
      TokenizerError: the model has no template, or it refuses the messages.
    """
    if not self.roles.chat_template:
      raise TokenizerError("this model has no chat template; give a plain prompt instead of messages")
    try:
      runs = chat.render(
        self.roles.chat_template,
        messages,
        specials=list(self._special_ids),
        bos=self.specials.get(self.roles.bos, "") if self.roles.bos is not None else "",
        eos=self.specials.get(self.roles.eos, "") if self.roles.eos is not None else "",
        add_generation_prompt=add_generation_prompt,
      )
    except chat.TemplateFailure as e:
      raise TokenizerError(str(e)) from None
    ids: list[int] = []
    for text, special in runs:
      ids += [self._special_ids[text]] if special else self.encode(text)
    return ids

  def save(self, folder: Any) -> None:
    """Writes a folder that `load_tokenizer` reads."""
    from pasta_jax.model.tokenizer_io import save_tokenizer  # it imports the families, which import this

    save_tokenizer(self, folder)

  # Control ids.

  def with_controls(self, embedding_rows: int | None = None) -> "Tokenizer":
    """A copy with an id for every mark: reserved ids if the model has enough in a row, else appended ones.

    Args:
      embedding_rows: rows of the model's embedding; those beyond the vocabulary are used before growing.
    """
    if self.controls is not None:
      return self
    other = copy.copy(self)
    need = len(MARKS)
    reserved = {i for i, text in self.specials.items() if _RESERVED.fullmatch(text)}
    runs = sorted(i for i in reserved if all(i + n in reserved for n in range(need)))
    start = runs[0] if runs else self.vocab_size
    other.controls = ControlIds.of(range(start, start + need))
    other.specials = {i: t for i, t in self.specials.items() if i not in set(other.controls.all)}
    other._index_specials()
    if not runs:
      other.vocab_size = self.vocab_size + need
      other.grown = max(0, other.vocab_size - max(self.vocab_size, embedding_rows or 0))
    return other

  @property
  def control_seed_texts(self) -> tuple[str, ...]:
    """For each mark, a text whose pieces' mean embedding a grown row starts at."""
    return _SEED_TEXTS


class IncrementalDecoder:
  """Text of ids as they come: whole UTF-8 characters only; the sum is what `decode` gives."""

  def __init__(self, tokenizer: Tokenizer, keep_special: bool = False):
    self._tokenizer, self._keep = tokenizer, keep_special
    self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    self._strip = tokenizer.strips_space

  def push(self, token: int) -> str:
    """The text that one more id completes, maybe none."""
    if self._keep and (spelling := self._tokenizer.spelling(int(token))) is not None:
      return self.flush() + spelling
    piece = self._tokenizer.piece(int(token))
    if self._strip and piece:
      self._strip = False
      piece = piece.removeprefix(b" ")
    return self._utf8.decode(piece)

  def flush(self) -> str:
    """What is left of a broken character."""
    text = self._utf8.decode(b"", final=True)
    self._utf8.reset()
    return text
