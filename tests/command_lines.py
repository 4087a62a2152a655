"""Many command lines of one program in one process: to start Python and JAX for each takes seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_RUN = """
import contextlib, importlib, io, json, sys
from absl import app, flags

program = importlib.import_module(sys.argv[1])
for line in sys.stdin:
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  status, stdout, stderr = 0, io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
    try:
      app.run(program.main, [sys.argv[1], *json.loads(line)])
    except SystemExit as e:
      status = e.code or 0
  print(json.dumps([status, stderr.getvalue()]))
"""


class Outcome(NamedTuple):
  status: int
  stderr: str


def environment() -> dict[str, str]:
  """Of a process that finds what this one does, wherever it is started."""
  return os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}


def outcomes(program: str, lines: Iterable[Iterable[str]], cwd: Path | None = None) -> list[Outcome]:
  """How each command line ends: its exit status, and what it says on stderr.

  Args:
    program: a module that `python -m` runs, with a `main` for absl.
    lines: flags of each.
  """
  done = subprocess.run(
    [sys.executable, "-c", _RUN, program],
    input="".join(json.dumps(list(line)) + "\n" for line in lines),
    env=environment(), cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return [Outcome(*json.loads(line)) for line in done.stdout.splitlines()]
