"""Flags of programs that take a run's configuration as `--config=FILE --config.NAME=VALUE`."""

import sys

from absl import flags


def parse(argv: list[str]) -> list[str]:
  """For `app.run`: what is wrong in one line, where ml_collections raises errors of all kinds."""
  try:
    rest = flags.FLAGS(argv)
  except (flags.Error, AttributeError, LookupError, TypeError, ValueError, OSError, ImportError) as e:
    message = e.args[0] if e.args and not isinstance(e, OSError) else e
    text = str(message).strip("'").replace("\\n", " ")  # the text of a KeyError inside an AttributeError
    sys.exit(f"error: {' '.join(text.split())}; --helpshort lists the flags")
  if len(rest) > 1:
    sys.exit(f"error: unexpected argument {rest[1]!r}; everything is a --flag")
  return rest
