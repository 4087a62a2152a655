"""SentencePiece tokenizers: `.model` files, and the same rebuilt from the lists in a GGUF file."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb

from pasta_jax.model.tokenizer import Roles, Tokenizer, TokenizerError

FILE = "tokenizer.model"

# Piece types, in SentencePiece's and GGUF's numbering alike.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_SPACE = "\u2581"  # what SentencePiece writes for a space

# User-defined pieces that are text all the same: runs of white space, and the HTML tags of Gemma.
_TEXT_PIECE = re.compile(rf"[\s{_SPACE}]+|</?(?!mask\b|pad\b|eos\b|bos\b|unk\b)[a-z]+[1-6]?>")

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _proto() -> Any:
  return pb.ModelProto()  # type: ignore[attr-defined]  # protobuf makes its classes at run time


class SpmTokenizer(Tokenizer):
  """SentencePiece, from a serialised model.

  Text comes back as its normalizer leaves it: Gemma's and Llama 2's leave everything but U+2581, which stands
  for a space. Where a model has neither a piece nor bytes for a character, the character is dropped.
  """

  def __init__(self, model: bytes, roles: Roles | None = None, where: str = FILE):
    """Args:
    model: contents of a `.model` file.
    roles: what the special ids mean; None: from the model itself.
    where: names the source in errors.
    """
    proto = _proto()
    try:
      proto.ParseFromString(model)
      if not proto.pieces:
        raise ValueError("it has no pieces")
      for i, piece in enumerate(proto.pieces):
        if not isinstance(piece.piece, str):  # protobuf hands out bytes that are no UTF-8 as they are
          raise ValueError(f"piece {i} is not UTF-8")
        if piece.type == BYTE and not _BYTE_PIECE.fullmatch(piece.piece):
          raise ValueError(f"piece {i} is not a byte")
    except Exception as e:  # protobuf's DecodeError depends on its build
      raise TokenizerError(f"{where} is not a SentencePiece model: {e}") from None
    specials = {}
    for i, piece in enumerate(proto.pieces):
      if piece.type == USER_DEFINED and not _TEXT_PIECE.fullmatch(piece.piece):
        # SentencePiece finds user-defined pieces in any text, and control pieces in none.
        piece.type = CONTROL
      if piece.type in (CONTROL, UNKNOWN, UNUSED):
        specials[i] = piece.piece
    self._model = proto.SerializeToString()
    try:
      self._spm = sentencepiece.SentencePieceProcessor(model_proto=self._model)
    except Exception as e:
      raise TokenizerError(f"{where} is not a usable SentencePiece model: {e}") from None
    self._prefix = proto.normalizer_spec.add_dummy_prefix
    super().__init__([_bytes(p) for p in proto.pieces], specials, roles or self._own_roles(specials))

  def _own_roles(self, specials: dict[int, str]) -> Roles:
    def known(i: int) -> int | None:
      return i if i >= 0 else None

    eos = known(self._spm.eos_id())
    ends = [i for i, text in specials.items() if text in ("<end_of_turn>", "<|eot_id|>", "<|im_end|>")]
    stop = tuple(dict.fromkeys([*([eos] if eos is not None else []), *ends]))
    return Roles(known(self._spm.bos_id()), eos, known(self._spm.pad_id()), True, stop)

  @property
  def strips_space(self) -> bool:
    return self._prefix

  def _encode(self, text: str) -> list[int]:
    # Where no piece and no byte covers a character, SentencePiece gives its unknown id: drop it.
    unknown = self._spm.unk_id()
    return [i for i in self._spm.encode(text) if i != unknown]

  def _save_model(self, folder: str) -> None:
    pathlib.Path(folder, FILE).write_bytes(self._model)


def spm_model(
  tokens: Sequence[str],
  scores: Sequence[float],
  types: Sequence[int],
  *,
  unknown: int,
  bos: int | None,
  eos: int | None,
  pad: int | None,
  add_space_prefix: bool,
) -> bytes:
  """A SentencePiece BPE model from a GGUF file's lists; bytes as in a `.model` file."""
  proto = _proto()
  for i, (text, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
    # SentencePiece wants exactly one unknown piece, at the id that the trainer spec names.
    kind = UNKNOWN if i == unknown else CONTROL if kind in (UNKNOWN, UNUSED) else kind
    # Converters write a run of spaces, which is a user-defined piece of Gemma's, as spaces.
    spelt = text.replace(" ", _SPACE) if kind in (NORMAL, USER_DEFINED) else text
    proto.pieces.add(piece=spelt, score=score, type=kind)
  spec = proto.trainer_spec
  spec.model_type = 2  # BPE
  spec.vocab_size = len(proto.pieces)
  spec.byte_fallback = BYTE in types
  spec.unk_id, spec.unk_piece = unknown, tokens[unknown]
  for name, special in (("bos", bos), ("eos", eos), ("pad", pad)):
    setattr(spec, f"{name}_id", -1 if special is None else special)
    if special is not None:
      setattr(spec, f"{name}_piece", tokens[special])
  proto.normalizer_spec.name = "identity"
  proto.normalizer_spec.add_dummy_prefix = add_space_prefix
  proto.normalizer_spec.remove_extra_whitespaces = False
  proto.normalizer_spec.escape_whitespaces = True
  return proto.SerializeToString()


def _bytes(piece: Any) -> bytes:
  if piece.type == BYTE:
    return bytes([int(piece.piece[1:-1], 16)])
  return piece.piece.replace(_SPACE, " ").encode()
