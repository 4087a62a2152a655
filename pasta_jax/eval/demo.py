"""The demonstration: a prompt is answered in parallel lanes, next to the sequential twin.

    python -m pasta_jax.eval.demo --prompt="What are the main ways to save energy at home?"

Both models come with the package as adapters of one open model. In a terminal the lanes are shown as they
fill; anywhere else both answers are printed as they come. Figures stand below, and in --json.
"""

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from absl import app, flags

from pasta_jax import runtime

if TYPE_CHECKING:
  from pasta_jax.decode.requests import Event
  from pasta_jax.eval.race import Outcome

flags.DEFINE_string("model", "smollm2-135m", "As in decode.main.")
flags.DEFINE_string("adapter", "pasta", "pasta: the one that comes with the package; or an .npz file.")
flags.DEFINE_string("twin", "twin", "The twin's; it was trained on the same answers without marks.")
flags.DEFINE_string("prompt", "", "What is asked.")
flags.DEFINE_integer("max_new_tokens", 512, "Tokens of an answer at most, marks included.", lower_bound=1)
flags.DEFINE_integer("max_len", 1024, "Tokens of prompt and answer at most.", lower_bound=1)
flags.DEFINE_integer("lanes", 8, "Threads of an answer that run at a time.", lower_bound=2)
flags.DEFINE_string("stream", "lanes", "lanes: a live view where there is a terminal; or text.")
flags.DEFINE_string("json", "", "Write the figures here.")
flags.DEFINE_string(
  "compilation_cache", runtime.default_cache_folder(), "Folder for compiled programs; empty turns it off."
)


def _run() -> None:
  f = flags.FLAGS
  from pasta_jax.decode.requests import Request, nearest
  from pasta_jax.eval.report import check_json_path
  from pasta_jax.model.adapter import adapter_notes, load_adapter
  from pasta_jax.model.bundled import find_adapter
  from pasta_jax.model.dtypes import resolve_dtype

  check_json_path(f.json)
  if f.stream not in ("lanes", "text"):
    raise ValueError(f"--{nearest('stream', f.stream, ('lanes', 'text'))}")
  if not f.prompt.strip():
    raise ValueError("--prompt is empty")
  adapter = load_adapter(find_adapter(f.adapter, f.model))
  twin = load_adapter(find_adapter(f.twin, f.model))
  if not adapter.marks:
    raise ValueError(f"--adapter {f.adapter} was not trained on marks: its answers do not split")
  if twin.marks:
    raise ValueError(f"--twin {f.twin} was trained on marks: it is no twin")
  scheme = {key: getattr(Request("x"), key) for key in ("fork", "positions", "fixed")}
  for note in adapter_notes(f"--adapter {f.adapter}", adapter, f.model, scheme):
    print(note.partition("; add")[0], file=sys.stderr)
  for note in adapter_notes(f"--twin {f.twin}", twin, f.model, {}):
    print(note, file=sys.stderr)
  runtime.use_compilation_cache(f.compilation_cache)

  from pasta_jax.decode.engine import Engine
  from pasta_jax.eval.race import race, table
  from pasta_jax.eval.suite_store import write_whole
  from pasta_jax.model.adapter import with_adapter
  from pasta_jax.model.weights import load_model

  print(f"loading {f.model} and compiling (seconds; the first time about a minute) ...", file=sys.stderr)
  base = load_model(f.model, dtype=resolve_dtype("auto", few=True))
  if base.tokenizer is None:
    raise ValueError(f"--model {f.model} has no tokenizer, so it cannot answer a prompt")
  pasta = Engine(with_adapter(base, adapter), lanes=f.lanes, max_len=f.max_len, take=True)
  sequential = Engine(with_adapter(base, twin), max_len=f.max_len, take=True)
  del base
  outcome = show(f.stream, race(pasta, sequential, f.prompt, f.max_new_tokens))
  print(table(outcome, f.model, f.lanes))
  if f.json:
    figures = outcome.figures() | {
      "prompt": f.prompt,
      "annotated": outcome.pasta.parallel.annotated if outcome.pasta.parallel else "",
      "twin_text": outcome.twin.text,
    }
    write_whole(f.json, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def show(stream: str, events: "Iterable[tuple[str, Event | Outcome]]") -> "Outcome":
  """Shows a race as lanes in a terminal, else as text."""
  from pasta_jax.decode.show import lanes_console
  from pasta_jax.eval.race import Outcome

  console = lanes_console() if stream == "lanes" else None
  if console is not None:
    from pasta_jax.eval.race_view import show_race

    return show_race(events, console)
  said = ""
  for name, event in events:
    if isinstance(event, Outcome):
      return event
    if name == "same_text":
      continue
    if name != said:
      print(f"--- {'PASTA, in lanes' if name == 'pasta' else 'twin, one lane'}", flush=True)
      said = name
    print(event.text, end="" if event.result is None else "\n\n", flush=True)
  raise AssertionError("a race ends with its outcome")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  app.run(main)
