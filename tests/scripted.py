"""One small engine with lanes for all files that look at what people see, and an answer of several rounds."""

import functools

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Request
from pasta_jax.decode.script import script_of
from tests.law import split_model

DOCUMENT = (
  'Two ways:\n\n- <promise topic="by train" tokens="20"/><async>**Train.** Slower, 日本, but you can work.'
  '</async>\n- <promise topic="by plane" tokens="30"/><async>**Plane.** Fast.</async>\n\n'
  '<sync/>So take the train.\n<promise topic="last" tokens="10"/><async>Bon voyage \x1b[31mé</async>!'
)


@functools.cache
def lanes_engine() -> Engine:
  return Engine(split_model(), batch_size=2, max_len=320, segment=8, lanes=4, chunks=8)


def scripted(document: str = DOCUMENT, **settings) -> Request:
  """A request that takes a document's ids."""
  return Request("Q", script=script_of(document, lanes_engine().tokenizer, marks=True), **settings)
