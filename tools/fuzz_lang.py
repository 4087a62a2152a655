"""Fuzzes the parser and repair of PASTA-LANG with atheris (`pip install atheris`).

    python tools/fuzz_lang.py -max_total_time=300 -len_control=0 -max_len=4096 -timeout=10 [FOLDER]

Flags are libFuzzer's; FOLDER keeps what was found to reach other code. A text that breaks a property, or
takes longer than -timeout seconds, is written to a file `crash-...` or `timeout-...` in the working folder,
and the program ends with a traceback. The properties are those of tests/test_lang_parse.py and
tests/test_lang_repair.py.
"""

import os
import pathlib
import sys
import tempfile

import atheris

# Works on a checkout without an installed project.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["pasta_jax.lang"]):
  from pasta_jax.lang.document import Document, escape, problems, unescape
  from pasta_jax.lang.parse import ParseError, parse
  from pasta_jax.lang.parse import problems as text_problems
  from pasta_jax.lang.repair import repair

# What libFuzzer puts together.
WORDS = (
  "<promise", 'topic=\\"', '\\" tokens=\\"', '20\\"/>', "<async>", "</async>", "<sync/>", "</promise>",
  "&lt;", "&amp;", "&quot;", "<Sync >", "< async", "topic=", "tokens=", "'", "\\x0a",
  '<promise topic=\\"a\\" tokens=\\"10\\"/><async>x</async>',
)  # fmt: skip


def check(text: str) -> None:
  """Raises AssertionError where a property does not hold."""
  assert unescape(escape(text)) == text
  found = text_problems(text)
  document = _parsed(text)
  if isinstance(document, ParseError):
    assert found, text
    assert document.problem == found[0], text
  else:
    assert not found, text
    assert not problems(document), text
    assert parse(document.annotated) == document, text
  mended, repairs = repair(text)
  assert not problems(mended), text
  assert parse(mended.annotated) == mended, text
  assert repair(mended.annotated) == (mended, ()), text
  assert bool(repairs) == bool(found), text
  assert isinstance(document, ParseError) or mended == document, text


def _parsed(text: str) -> Document | ParseError:
  try:
    return parse(text)
  except ParseError as e:
    return e


def one_input(data: bytes) -> None:
  check(data.decode("utf-8", errors="surrogateescape"))


def main() -> None:
  # libFuzzer leaves without telling Python, so that nothing could remove a file of another name each time.
  words = os.path.join(tempfile.gettempdir(), "pasta_lang.dict")
  pathlib.Path(words).write_text("".join(f'"{w}"\n' for w in WORDS))
  atheris.Setup([sys.argv[0], f"-dict={words}", *sys.argv[1:]], one_input)
  atheris.Fuzz()


if __name__ == "__main__":
  main()
