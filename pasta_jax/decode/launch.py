"""Launching a decode: loading, one prompt to the terminal or a file of prompts to a file."""

import dataclasses
import sys
import time
from typing import Any

import jax.numpy as jnp

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.journal import open_journal
from pasta_jax.decode.options import Options
from pasta_jax.decode.progress import Progress
from pasta_jax.decode.requests import Request, RequestError, Result
from pasta_jax.decode.rows import InputRow, answer_rows, check_input, file_digest
from pasta_jax.decode.script import read_script, script_of
from pasta_jax.decode.show import show
from pasta_jax.model.adapter import adapter_notes, load_adapter, with_adapter
from pasta_jax.model.dtypes import resolve_dtype
from pasta_jax.model.marks import with_marks
from pasta_jax.model.sharding import make_mesh
from pasta_jax.model.tokenizer_ids import with_ids
from pasta_jax.model.weights import is_random, load_model

# What the rows of an output depend on.
_SETTINGS = (
  "model", "max_len", "system", "max_new_tokens", "stop", "chat", "logprobs", "lanes", "fork", "positions",
  "fixed", "promise_bias", "script",
)  # fmt: skip


def make_engine(options: Options) -> Engine:
  adapter = load_adapter(options.adapter_file) if options.adapter_file else None
  mesh = make_mesh(options.mesh)
  if sys.stderr.isatty():
    what = f"loading {options.model} and compiling (seconds; the first time about a minute) ..."
    print(what, file=sys.stderr)
  model = load_model(options.model, dtype=resolve_dtype(options.dtype, few=True), mesh=mesh)
  if is_random(options.model):
    model = with_ids(model)
  if model.tokenizer is None:
    raise ValueError(f"--model {options.model} has no tokenizer, so it cannot answer a prompt")
  if adapter is not None:
    scheme = {key: getattr(options, key) for key in ("fork", "positions", "fixed")}
    splits = options.pasta and not options.script
    what = f"--adapter {options.adapter}"
    for note in adapter_notes(what, adapter, options.model, scheme if splits else {}):
      print(note, file=sys.stderr)
    model = with_adapter(model, adapter)
  if options.pasta:
    model = with_marks(model)
  return Engine(
    model,
    batch_size=options.batch_size,
    max_len=options.max_len,
    segment=options.segment,
    mesh=mesh,
    lanes=options.lanes if options.pasta else 1,
    chunks=options.limits.chunks,
    take=True,
  )


def run(options: Options) -> None:
  """Does what the flags ask for.

  Raises:
    ValueError, OSError: with one line for the user.
  """
  if options.prompts_file:
    answer_file(options)
  else:
    answer_prompt(options)


def _request(options: Options, prompt: Any, row: int) -> Request:
  if options.system and options.chat:
    system = {"role": "system", "content": options.system}
    if isinstance(prompt, str):
      prompt = [system, {"role": "user", "content": prompt}]
    elif prompt[0]["role"] != "system":
      prompt = [system, *prompt]
  # Rows draw different numbers, the same ones however the file is batched.
  sampling = dataclasses.replace(options.sampling, seed=(options.sampling.seed + row) % 2**31)
  request = Request(
    prompt,
    max_new_tokens=options.max_new_tokens,
    sampling=sampling,
    stop=options.stop,
    chat=options.chat,
    logprobs=options.logprobs,
    fork=options.fork,
    fixed=options.fixed,
    limits=options.limits,
    promise_bias=options.promise_bias,
  )
  # "oracle" waits for the script.
  return request if options.script else dataclasses.replace(request, positions=options.positions)


def _scripted(options: Options, request: Request, document: str, engine: Engine) -> Request:
  """`request` with a document's ids, however many these are."""
  return dataclasses.replace(
    request,
    script=script_of(document, engine.tokenizer, options.pasta),
    positions=options.positions,
    max_new_tokens=engine.max_len,
  )


def answer_prompt(options: Options) -> Result:
  """Prints the answer to `options.prompt` as `options.stream` says; then speed figures on stderr."""
  request = _request(options, options.prompt, 0)
  document = read_script(options.script) if options.script else None
  watch = show(options.stream)
  engine = make_engine(options)
  if document is not None:
    request = _scripted(options, request, document, engine)
  result = watch(engine.stream(request))
  print(speed_line(result), file=sys.stderr)
  if options.trace:
    from pasta_jax.decode.trace import trace_of
    from pasta_jax.decode.trace_file import write_trace

    write_trace(options.trace, trace_of(result, engine, prompt=options.prompt, model=options.model))
  return result


def speed_line(result: Result) -> str:
  """`result`'s figures for people."""
  later = result.tokens - 1
  after = result.seconds - result.first_token_seconds
  rate = f", then {1e3 * after / later:.1f} ms per token ({later / after:.1f} tokens/s)" if later else ""
  split = ""
  if result.parallel is not None:
    s = result.parallel.stats
    split = (
      f"; {s.chunks + 1} threads, {s.plain_tokens} plain tokens / critical path {s.critical_path}"
      f" = theoretical speedup {s.theoretical_speedup:.2f}"
    )
  return (
    f"[{result.prompt_tokens} prompt tokens, {result.tokens} new tokens in {result.seconds:.2f} s: "
    f"first after {result.first_token_seconds:.2f} s{rate}{split}; ended by {result.finish_reason}]"
  )


def answer_file(options: Options) -> None:
  """Answers `options.prompts_file` row by row into `options.output_file`."""
  rows = check_input(options.prompts_file)
  run_settings: dict[str, Any] = {"mode": "pasta" if options.pasta else "sequential"}
  run_settings["adapter"] = file_digest(options.adapter_file) if options.adapter_file else ""
  run_settings["dtype"] = str(jnp.dtype(resolve_dtype(options.dtype, few=True)))
  run_settings |= {name: getattr(options, name) for name in _SETTINGS}
  run_settings["stop"] = list(options.stop)
  run_settings |= dataclasses.asdict(options.sampling) | dataclasses.asdict(options.limits)
  run_settings["prompts_file"] = file_digest(options.prompts_file)
  journal = open_journal(options.output_file, run_settings, options.resume)
  kept = f"rows are kept in {journal.partial}"  # if there are any: without, it is not left
  try:
    left = len(rows) - len(journal.rows)
    started = time.perf_counter()
    tokens = 0
    engine = make_engine(options) if left else None
    with Progress(len(rows), len(journal.rows)) as bar:

      def advance(n: int) -> None:
        nonlocal tokens
        tokens += n
        bar(tokens / (time.perf_counter() - started))

      def make(row: InputRow) -> Request:
        prompt = row.values.get("messages") or row.values["prompt"]
        request = _request(options, prompt, row.line - 1)
        if not options.script:
          return request
        document = row.values.get(options.script)
        if not isinstance(document, str):
          raise RequestError(f'no document in "{options.script}", the key that --script names')
        assert engine is not None
        return _scripted(options, request, document, engine)

      if engine is not None:
        answer_rows(engine, rows, journal, make, advance)
  except KeyboardInterrupt as e:
    if journal.rows:
      e.args = (f"{len(journal.rows)} of {len(rows)} {kept}; go on with --resume",)
    raise
  except OSError as e:
    if not journal.rows:
      raise
    raise OSError(f"{e}; finished {kept}, go on with --resume") from e
  finally:
    journal.close()
  journal.finish()
  seconds = time.perf_counter() - started
  print(
    f"[{len(rows)} rows, {journal.errors} with an error, {tokens} tokens in {seconds:.1f} s "
    f"({tokens / seconds:.1f} tokens/s) -> {options.output_file}]",
    file=sys.stderr,
  )
