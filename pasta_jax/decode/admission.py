"""A request as the arrays that its row keeps."""

from typing import Any

import numpy as np

from pasta_jax.decode.programs import Shapes
from pasta_jax.decode.requests import Request, RequestError
from pasta_jax.decode.sampling import SamplingRows
from pasta_jax.decode.state import MAX_STOP_IDS, NO_ID, Admission, Policy, Script
from pasta_jax.lang.interpreter import FORKS, POSITIONS
from pasta_jax.lang.threads import Threads, problems

# The budget of a scripted answer: its script ends it.
UNLIMITED = 2**30
# Below it a draw takes the likeliest id: logits divided by less would overflow sooner than differ.
LEAST_TEMPERATURE = 1e-6


def make_admission(
  request: Request,
  limit: int,
  stop_ids: list[int],
  marks: bool,
  shapes: Shapes,
  tokenizer: Any,
  promise_bias: tuple[float, float] = (0.0, 0.0),
) -> Admission:
  """What a row keeps of a request.

  Args:
    request: one that the engine's `encode` let pass.
    limit: ids to draw at most.
    stop_ids: ids that end the main thread.
    marks: whether the answer may have marks.
    shapes: of the programs.
    tokenizer: of the model.
    promise_bias: of a request that names none.
  """
  padded = np.full(MAX_STOP_IDS, NO_ID, np.int32)
  padded[: len(stop_ids)] = stop_ids
  s, limits = request.sampling, request.limits
  scripted = request.script is not None
  return Admission(
    limit=np.int32(UNLIMITED if scripted else limit),
    stop_ids=padded,
    sampling=SamplingRows(
      temperature=np.float32(s.temperature if s.temperature >= LEAST_TEMPERATURE else 0),
      top_k=np.int32(s.top_k),
      top_p=np.float32(s.top_p),
      min_p=np.float32(s.min_p),
      seed=np.int32(s.seed),
      logprobs=np.bool_(request.logprobs),
    ),
    policy=Policy(
      marks=np.bool_(marks),
      ends=np.bool_(request.model_stops or not set(stop_ids).isdisjoint(tokenizer.stop_ids)),
      promise_bias=np.array(
        promise_bias if request.promise_bias is None else request.promise_bias, np.float32
      ),
      fork=np.int32(FORKS.index(request.fork)),
      scheme=np.int32(POSITIONS.index(request.positions)),
      fixed=np.int32(request.fixed),
      round_chunks=np.int32(limits.round_chunks),
      chunks=np.int32(min(limits.chunks, shapes.threads - 1)),
      chunk_tokens=np.int32(limits.chunk_tokens),
      overrun=np.int32(limits.overrun),
      least_grant=np.int32(limits.least_grant),
      topic_pieces=np.int32(limits.topic_pieces),
    ),
    script=_script(request.script, stop_ids, shapes, tokenizer),
  )


def check_script(
  script: Threads, stop_ids: list[int], marks: bool, chunks: int, limit: int, tokenizer: Any
) -> None:
  """Raises RequestError where a script is no document, too long, or has no id to end it."""
  if not stop_ids:
    raise RequestError("script: the request has no stop id to end it with")
  if tokenizer.controls is not None and (found := problems(script, tokenizer.controls)):
    raise RequestError(f"script: {found[0]}")
  if script.chunks and not marks:
    raise RequestError("script: it has chunks, but the request or the engine does not allow marks")
  if len(script.chunks) > chunks:
    raise RequestError(f"script: {len(script.chunks)} chunks; the engine was made for {chunks}")
  if (size := script_size(script)) > limit:
    raise RequestError(f"script: {size} ids; the engine has room for {limit} after this prompt")


def script_size(script: Threads) -> int:
  """Ids that a script draws: with the end, and what closes each chunk."""
  return len(script.main) + 1 + sum(len(c) + 1 for c in script.chunks)


def _script(script: Threads | None, stop_ids: list[int], shapes: Shapes, tokenizer: Any) -> Script:
  starts, lengths = (np.zeros(shapes.threads, np.int32) for _ in range(2))
  ids = np.zeros(shapes.num_slots, np.int32)
  if script is None:
    return Script(on=np.bool_(False), ids=ids, starts=starts, lengths=lengths)
  flat = [*script.main, stop_ids[0]]
  for n, body in enumerate(script.chunks, start=1):
    starts[n], lengths[n] = len(flat), len(body)
    flat += [*body, tokenizer.controls.close]
  ids[: len(flat)] = flat
  return Script(on=np.bool_(True), ids=ids, starts=starts, lengths=lengths)
