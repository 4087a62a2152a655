"""Byte-level BPE (GPT-2's scheme) through the `tokenizers` package: SmolLM2, Llama 3, Qwen."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pasta_jax.model.tokenizer import Roles, Tokenizer, TokenizerError

FILE = "tokenizer.json"

_LLAMA3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> list[dict[str, Any]]:
  return [
    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
  ]


# `tokenizer.ggml.pre` -> (pre-tokenizers, normalizer, whether a word that is a piece skips the merges).
_GPT2 = [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]
_PRE: dict[str, tuple[list[dict[str, Any]], dict[str, Any] | None, bool]] = {
  "smollm": ([{"type": "Digits", "individual_digits": True}, *_GPT2], None, False),
  "llama-bpe": (_split(_LLAMA3_SPLIT), None, True),
  "qwen2": (_split(_QWEN2_SPLIT), {"type": "NFC"}, False),
  "gpt-2": (_GPT2, None, False),
  "default": (_GPT2, None, False),
}


class BpeTokenizer(Tokenizer):
  """Byte-level BPE from the contents of a tokenizer.json.

  Text comes back as it was, after the vocabulary's normalizer (NFC for Qwen). Where a vocabulary lacks some
  bytes (SmolLM2's: six control characters, and planes that Unicode has not assigned), a character of one byte
  is dropped, as the reference does, and a longer one becomes U+FFFD, so that no half of it is left.
  """

  def __init__(self, spec: dict[str, Any], roles: Roles, where: str = FILE):
    """Args:
    spec: the JSON of tokenizer.json.
    roles: what the special ids mean.
    where: names the source in errors.
    """
    try:
      import tokenizers
    except ImportError:
      raise TokenizerError(f"{where} needs tokenizers: pip install 'pasta_jax[demo]'") from None
    try:
      vocab = dict(spec["model"]["vocab"])
      added = {int(t["id"]): str(t["content"]) for t in spec.get("added_tokens") or []}
      if spec["model"].get("type", "BPE") != "BPE":
        raise TokenizerError(
          f"{where}: {spec['model']['type']} models are not supported, only byte-level BPE"
        )
      if '"ByteLevel"' not in json.dumps(spec.get("pre_tokenizer")):
        raise TokenizerError(
          f"{where} is not byte-level BPE but, it seems, a SentencePiece model's; "
          "put the model's tokenizer.model beside it"
        )
      size = 1 + max([*vocab.values(), *added])
      pieces = [b""] * size
      for text, i in vocab.items():
        pieces[i] = _piece_bytes(text)
      # Without added tokens nothing in a text is special, and without a post-processor nothing is added.
      plain = {**spec, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
      self._fast = tokenizers.Tokenizer.from_str(json.dumps(plain))
    except TokenizerError:
      raise
    except Exception as e:  # tokenizers raises plain Exception
      raise TokenizerError(f"{where} is not a byte-level BPE tokenizer: {type(e).__name__}: {e}") from None
    self._spec = spec
    known = {piece for i, piece in enumerate(pieces) if i not in added}
    self._missing = bytes(b for b in range(256) if bytes([b]) not in known)
    super().__init__(pieces, added, roles)

  def _encode(self, text: str) -> list[int]:
    raw = text.encode()
    if len(raw.translate(None, self._missing)) < len(raw):
      text = "".join("\ufffd" if c > "\x7f" and self._lacks(c) else c for c in text)
    return self._fast.encode(text, add_special_tokens=False).ids

  def _lacks(self, character: str) -> bool:
    return any(b in self._missing for b in character.encode())

  def _save_model(self, folder: str) -> None:
    pathlib.Path(folder, FILE).write_text(json.dumps(self._spec, ensure_ascii=False), encoding="utf-8")


def bpe_spec(
  tokens: Sequence[str], merges: Sequence[str], specials: Mapping[int, str], pre: str
) -> dict[str, Any]:
  """The tokenizer.json of a GGUF file's vocabulary.

  Args:
    tokens: spelling of every id, in GPT-2's byte alphabet.
    merges: "left right" each, best first.
    specials: ids that are not text.
    pre: `tokenizer.ggml.pre`.

  Raises:
    TokenizerError: an unknown `pre`.
  """
  if pre not in _PRE:
    raise TokenizerError(f"tokenizer.ggml.pre {pre!r} is not supported; known are {', '.join(_PRE)}")
  steps, normalizer, ignore_merges = _PRE[pre]
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      {
        "id": i,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
      }
      for i, text in specials.items()
    ],
    "normalizer": normalizer,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": ignore_merges,
      "vocab": {text: i for i, text in enumerate(tokens)},
      "merges": [m.split(" ", 1) for m in merges],
    },
  }


def _byte_alphabet() -> dict[str, int]:
  """GPT-2's printable stand-in for each byte."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in set(printable)]
  return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_alphabet()


def _piece_bytes(text: str) -> bytes:
  try:
    return bytes(_BYTES[c] for c in text)
  except KeyError:
    return text.encode()  # not in the alphabet: a special's spelling
