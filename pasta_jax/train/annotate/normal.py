"""What an annotated document must render to: the answer in normal form."""


def check_encodable(text: str, what: str) -> None:
  """Raises ValueError where a text has an unpaired surrogate, which no UTF-8 file or request can hold."""
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise ValueError(f"the {what} has an unpaired surrogate at character {e.start}") from None


def normalise(answer: str) -> str:
  r"""The answer that a document must render to, byte for byte.

  `\r\n` and lone `\r` become `\n`; blank lines at the beginning and white space at the end go. Nothing else
  changes: inner white space, Unicode forms and letters that look like marks stay as they are.

  Raises:
    ValueError: the answer is empty, or has an unpaired surrogate.
  """
  text = answer.replace("\r\n", "\n").replace("\r", "\n").rstrip()
  lead = len(text) - len(text.lstrip())
  text = text[text.rfind("\n", 0, lead) + 1 :]
  if not text:
    raise ValueError("the answer is empty")
  check_encodable(text, "answer")
  return text
