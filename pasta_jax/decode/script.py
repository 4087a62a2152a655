"""Scripts: a document supplies the ids that a request takes, while the model computes every step in full."""

import pathlib
from typing import Any

from pasta_jax.decode.requests import RequestError
from pasta_jax.lang.parse import ParseError, parse
from pasta_jax.lang.threads import Threads, encode_document


def script_of(text: str, tokenizer: Any, marks: bool) -> Threads:
  """The ids of a document in PASTA-LANG; lengths are promised as it says.

  Args:
    text: the document.
    tokenizer: of the model.
    marks: whether the answer may have marks; where not, the script is the document's reading text.

  Raises:
    RequestError: `text` is no document, with its line and column.
  """
  try:
    document = parse(text)
  except ParseError as e:
    raise RequestError(f"script: {e}") from None
  if marks:
    return encode_document(document, tokenizer.encode, tokenizer.controls, recompute_lengths=False)
  return Threads(tuple(tokenizer.encode(document.plain)))


def read_script(path: str) -> str:
  """A script's text, without the line end that editors put behind it.

  Raises:
    ValueError: no UTF-8.
    OSError: it cannot be read.
  """
  try:
    return pathlib.Path(path).read_text(encoding="utf-8").removesuffix("\n")
  except UnicodeDecodeError as e:
    raise ValueError(f"--script {path}: not UTF-8 at byte {e.start}") from None
  except OSError as e:
    raise OSError(f"--script {path}: {e.strerror}") from None
