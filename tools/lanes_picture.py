"""Draws docs/lanes.svg: the live view of the bundled model while most of its lanes are full.

python tools/lanes_picture.py --prompt="..." --output=docs/lanes.svg
"""

import copy
import io
import sys

from absl import app, flags
from rich.console import Console

from pasta_jax import Engine, Request, find_adapter, load_model, runtime, with_adapter
from pasta_jax.decode.lanes_view import LanesView

_PROMPT = flags.DEFINE_string("prompt", "", "What is asked.")
_OUTPUT = flags.DEFINE_string("output", "docs/lanes.svg", "The picture.")
_ADAPTER = flags.DEFINE_string("adapter", "pasta", "As in decode.main.")
_MODEL = flags.DEFINE_string("model", "smollm2-135m", "As in decode.main.")
_STEP = flags.DEFINE_integer("step", 0, "The step that is drawn; 0: the last with the most running chunks.")
_WIDTH = flags.DEFINE_integer("width", 100, "Columns.")
_HEIGHT = flags.DEFINE_integer("height", 24, "Lines.")


def _run() -> None:
  runtime.use_compilation_cache(runtime.default_cache_folder())
  adapter = find_adapter(_ADAPTER.value, _MODEL.value)
  engine = Engine(with_adapter(load_model(_MODEL.value), adapter), lanes=8, max_len=1024, segment=1)
  view, best = LanesView(), None
  engine.generate(["Hello"], max_new_tokens=2)
  for event in engine.stream(Request(_PROMPT.value, max_new_tokens=512)):
    view.add(event)
    seconds = view.now() - (view.started or 0.0)
    wanted = view.board.step == _STEP.value if _STEP.value else True
    if wanted and (best is None or view.board.running >= best[0]):
      frozen = LanesView(now=lambda s=seconds: s)
      frozen.board, frozen.started = copy.deepcopy(view.board), 0.0
      best = (view.board.running, frozen)
  assert best is not None
  console = Console(
    width=_WIDTH.value, height=_HEIGHT.value, record=True, file=io.StringIO(), force_terminal=True
  )
  console.print(best[1])
  console.save_svg(_OUTPUT.value, title=_PROMPT.value)
  print(_OUTPUT.value)


def main(argv: list[str]) -> None:
  del argv
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  app.run(main)
