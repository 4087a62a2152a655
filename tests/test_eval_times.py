"""Timings of answers as scripts: every run goes to the end of its script."""

from pasta_jax.decode.engine import Engine
from pasta_jax.eval.suite_sets import Item
from pasta_jax.eval.suite_times import measure_times
from tests.law import split_model


class Watched:
  """An engine that remembers what came of each request."""

  def __init__(self, engine: Engine):
    self.engine, self.tokenizer, self.max_len = engine, engine.tokenizer, engine.max_len
    self.tokens: list[tuple[int, int]] = []

  def generate(self, requests):
    results = self.engine.generate(requests)
    script = requests[0].script
    self.tokens.append((results[0].tokens, len(script.main) + sum(map(len, script.chunks))))
    return results


def test_long_answers_are_timed_to_their_end():
  model = split_model()
  pasta = Watched(Engine(model, max_len=384, segment=8, lanes=2))
  one = Watched(Engine(model, max_len=384, segment=8))
  row = {"text": "x" * 300, "main": pasta.tokenizer.encode("x" * 300), "bodies": []}
  answers = {"pasta": [row], "twin": [row]}
  [(_, times)] = measure_times(pasta, one, [Item("1", "Q", None)], answers, [0], 1)  # type: ignore[arg-type]
  assert {"pasta", "same_text", "twin"} <= set(times)
  assert len(pasta.tokens) == 2
  assert len(one.tokens) == 4
  for drawn, wanted in pasta.tokens + one.tokens:
    assert wanted == 300
    assert drawn >= wanted
