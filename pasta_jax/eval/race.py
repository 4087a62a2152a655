"""One prompt, two models: PASTA in lanes, then its twin one token at a time, and what stands beside what.

The runs follow each other on one machine, so that neither slows the other down:

    pasta       PASTA's answer, in lanes
    twin        the twin's own answer, in one lane
    same_text   PASTA's text again, one token at a time in the twin's lane: what the lanes saved
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Event, Request, RequestError, Result
from pasta_jax.eval.speed_documents import decode_seconds
from pasta_jax.lang.threads import Threads

RUNS = ("pasta", "twin", "same_text")


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a race came to.

  Attributes:
    pasta, twin: the answers.
    same_text: PASTA's text in one lane; None where there is none, or it does not fit.
  """

  pasta: Result
  twin: Result
  same_text: Result | None

  def figures(self) -> dict[str, Any]:
    """Plain values, as JSON has them; speedups are None where there is nothing to divide.

    `tokens` (drawn), `steps` (one after the other), `seconds` (from the prompt to the end) and
    `decode_seconds` (from the first token on) of each run; `chunks`, `plain_tokens`, `critical_path`,
    `theoretical`, `realised` (same text, from the first token on) and `over_twin` (the twin's seconds for
    its own answer over PASTA's) of both.
    """
    assert self.pasta.parallel is not None
    stats = self.pasta.parallel.stats
    out: dict[str, Any] = {}
    for name in RUNS:
      result: Result | None = getattr(self, name)
      if result is not None:
        out[name] = {
          "tokens": result.tokens,
          "steps": result.parallel.steps + 1 if result.parallel else result.tokens,
          "seconds": result.seconds,
          "decode_seconds": decode_seconds(result),
          "finish_reason": result.finish_reason,
        }
    realised = None
    if self.same_text is not None and decode_seconds(self.pasta) > 0:
      realised = decode_seconds(self.same_text) / decode_seconds(self.pasta)
    return out | {
      "chunks": stats.chunks,
      "plain_tokens": stats.plain_tokens,
      "critical_path": stats.critical_path,
      "theoretical": stats.theoretical_speedup,
      "realised": realised,
      "over_twin": self.twin.seconds / self.pasta.seconds,
    }


def race(
  pasta: Engine, sequential: Engine, prompt: str, max_new_tokens: int = 512
) -> Iterator[tuple[str, Event | Outcome]]:
  """Runs one prompt through both.

  Args:
    pasta: several lanes, a model with marks.
    sequential: one lane, the twin.

  Yields:
    (name of RUNS, event) as the text comes, an empty one when a run starts; at the end ("outcome", Outcome).

  Raises:
    RequestError: the prompt is empty or too long.
  """
  request = Request(prompt, max_new_tokens=max_new_tokens)
  for engine in (pasta, sequential):
    engine.encode(request)
    engine.generate([dataclasses.replace(request, max_new_tokens=2)])  # what runs first, runs slower
  results: dict[str, Result] = {}
  for name, engine in (("pasta", pasta), ("twin", sequential)):
    yield name, Event(0, "")
    for event in engine.stream(request):
      if event.result is not None:
        results[name] = event.result
      yield name, event
  text = tuple(sequential.tokenizer.encode(results["pasta"].text))
  if text:
    again = dataclasses.replace(request, script=Threads(text), max_new_tokens=sequential.max_len)
    try:
      for event in sequential.stream(again):
        if event.result is not None:
          results["same_text"] = event.result
        yield "same_text", event
    except RequestError:
      pass  # reading text has other tokens than the lanes drew: at the very end of max_len it may not fit
  yield "outcome", Outcome(results["pasta"], results["twin"], results.get("same_text"))


def table(outcome: Outcome, model: str, lanes: int) -> str:
  """The figures for people."""
  f = outcome.figures()
  names = {
    "pasta": f"PASTA, {lanes} lanes",
    "twin": "twin, one lane",
    "same_text": "PASTA's text, one lane",
  }
  lines = [f"{model:<24}{'tokens':>8}{'steps':>8}{'seconds':>10}{'ms/step':>9}"]
  for name in RUNS:
    if name in f:
      r = f[name]
      each = 1e3 * r["decode_seconds"] / max(r["steps"] - 1, 1)
      lines.append(f"{names[name]:<24}{r['tokens']:>8}{r['steps']:>8}{r['seconds']:>10.2f}{each:>9.1f}")
  lines.append("")
  chunks = f"{f['chunks']} chunk{'s' * (f['chunks'] != 1)}" if f["chunks"] else "nothing to split"
  path = f"{f['plain_tokens']} tokens of text in a critical path of {f['critical_path']}"
  lines.append(f"theoretical speedup  {f['theoretical']:.2f}x   {chunks}; {path}")
  if f["realised"] is not None:
    lines.append(
      f"realised speedup     {f['realised']:.2f}x   over the same text in one lane, after the prompt"
    )
  own = f"the twin's seconds for its own answer of {f['twin']['tokens']} tokens"
  lines.append(f"against the twin     {f['over_twin']:.2f}x   {own}")
  for name in ("pasta", "twin"):
    if f[name]["finish_reason"] == "length":
      lines.append(f"{names[name]}: cut at {f[name]['tokens']} tokens")
  return "\n".join(lines)
