"""Draws a document: `python -m pasta_jax.lang.show FILE`.

FILE is annotated text, a document as JSON, or JSONL rows with a "document"; - is standard input. Words stand
for tokens, so that no model is needed.
"""

import shutil
import sys

from absl import app, flags

from pasta_jax import runtime
from pasta_jax.lang.document import Document
from pasta_jax.lang.draw import BY, draw
from pasta_jax.lang.files import read_documents
from pasta_jax.lang.interpreter import FORKS
from pasta_jax.lang.parse import parse, problems
from pasta_jax.lang.render import RENDERERS, render
from pasta_jax.lang.repair import repair

_ROW = flags.DEFINE_integer("row", 1, "Which line of a JSONL file.", lower_bound=1)
_AS = flags.DEFINE_enum(
  "as", "drawing", ["drawing", *RENDERERS, "problems"], "What to print; problems: everything that is wrong."
)
_FORK = flags.DEFINE_enum("fork", "eager", FORKS, "When chunks start: at their promise, or together.")
_BY = flags.DEFINE_enum("by", "auto", BY, "A row for every word, for every part, or whichever fits.")
_COLUMNS = flags.DEFINE_integer("columns", 0, "Width of the drawing; 0: of the terminal.", lower_bound=0)
_REPAIR = flags.DEFINE_bool("repair", False, "Repair what is no document; the repairs go to standard error.")


def _repaired(text: str) -> Document:
  document, repairs = repair(text)
  for r in repairs:
    print(f"repaired: {r}", file=sys.stderr)
  return document


def _show(path: str) -> None:
  if _AS.value == "problems":
    _show_problems(path)
    return
  read = _repaired if _REPAIR.value else parse
  ((_, document),) = read_documents(path, read, row=_ROW.value)
  if _AS.value != "drawing":
    sys.stdout.write(render(document, _AS.value) + "\n" * (_AS.value == "json"))
    return
  columns = _COLUMNS.value or max(60, shutil.get_terminal_size((100, 24)).columns)
  print(draw(document, fork=_FORK.value, by=_BY.value, columns=columns))


def _show_problems(path: str) -> None:
  found: list[str] = []

  def read(text: str) -> Document:
    found.extend(map(str, problems(text)))
    return Document(())

  ((place, _),) = read_documents(path, read, row=_ROW.value)
  print("\n".join(f"{place}: {p}" for p in found) or f"{place}: no problems")


def main(argv: list[str]) -> None:
  if len(argv) != 2:
    raise app.UsageError("needs one argument: the file that holds the document, or -")
  sys.exit(runtime.run_main(lambda: _show(argv[1])))


if __name__ == "__main__":
  app.run(main)
