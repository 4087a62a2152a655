"""Where a trace goes: a page for people or JSON for programs, whole or absent."""

import json
import os
import pathlib
from typing import Any

KINDS = (".html", ".json")


def check_trace_path(path: str) -> None:
  """Raises ValueError where no trace can be written, before anything is decoded for it."""
  file = pathlib.Path(path)
  if file.suffix.lower() not in KINDS:
    raise ValueError(f"--trace {path}: name a .html page or a .json file")
  if not file.parent.is_dir():
    raise ValueError(f"--trace {path}: {file.parent} is no folder; make it first")
  if file.is_dir():
    raise ValueError(f"--trace {path}: is a folder")


def write_trace(path: str, trace: dict[str, Any]) -> None:
  """Writes a trace beside its place, then renames it; a file that is there is replaced.

  Args:
    path: ends in .html or .json.
    trace: see trace.trace_of.
  """
  from pasta_jax.decode.trace_page import trace_page

  check_trace_path(path)
  file = pathlib.Path(path)
  page = file.suffix.lower() == ".html"
  text = trace_page(trace) if page else json.dumps(trace, ensure_ascii=False, indent=1) + "\n"
  beside = file.with_name(file.name + ".writing")
  try:
    with open(beside, "w", encoding="utf-8", errors="replace") as f:
      f.write(text)
      f.flush()
      os.fsync(f.fileno())
    os.replace(beside, file)
  finally:
    beside.unlink(missing_ok=True)
