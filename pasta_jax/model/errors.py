"""The error of everything that reads or writes weights."""


class WeightsError(ValueError):
  """Weights that cannot be loaded or saved: one line with the file, the tensor, what is wrong, what to do."""


def one_line(error: BaseException, limit: int = 300) -> str:
  """The message of someone else's error on one line, for quoting inside a `WeightsError`."""
  text = " ".join(str(error).split()) or type(error).__name__
  return text if len(text) <= limit else text[: limit - 3] + "..."
