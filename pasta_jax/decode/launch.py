"""Launching a decode: options, loading, one prompt to the terminal or a file of prompts to a file."""

import dataclasses
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.journal import open_journal
from pasta_jax.decode.requests import Request, Result, Sampling
from pasta_jax.decode.rows import InputRow, answer_rows, check_input, file_digest
from pasta_jax.model.sharding import make_mesh
from pasta_jax.model.weights import load_model

DTYPES = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Options:
  """What the flags of `decode.main` say; see their help."""

  model: str
  prompt: str = ""
  system: str = ""
  prompts_file: str = ""
  output_file: str = ""
  resume: bool = False
  batch_size: int = 1
  max_new_tokens: int = 256
  max_len: int = 2048
  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  stop: tuple[str, ...] = ()
  chat: bool = True
  stream: bool = True
  logprobs: bool = False
  dtype: str = "auto"
  mesh: str = ""
  segment: int = 16

  def __post_init__(self):
    if bool(self.prompt) == bool(self.prompts_file):
      raise ValueError("give one of --prompt and --prompts_file")
    if self.prompts_file and not self.output_file:
      raise ValueError("--prompts_file needs --output_file")
    if self.output_file and not self.prompts_file:
      raise ValueError("--output_file needs --prompts_file")
    if self.dtype not in DTYPES:
      raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


def resolve_dtype(name: str) -> Any:
  """bfloat16 on accelerators and float32 on CPU, where XLA's bfloat16 is slower, unless named."""
  if name == "auto":
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
  return jnp.dtype(name)


def make_engine(options: Options) -> Engine:
  mesh = make_mesh(options.mesh)
  model = load_model(options.model, dtype=resolve_dtype(options.dtype), mesh=mesh)
  if model.tokenizer is None:
    raise ValueError(f"--model {options.model} has no tokenizer, so it cannot answer a prompt")
  return Engine(
    model, batch_size=options.batch_size, max_len=options.max_len, segment=options.segment, mesh=mesh
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
  return Request(
    prompt,
    max_new_tokens=options.max_new_tokens,
    sampling=sampling,
    stop=options.stop,
    chat=options.chat,
    logprobs=options.logprobs,
  )


def answer_prompt(options: Options) -> Result:
  """Prints the answer to `options.prompt`, as it comes if `stream`; then speed figures on stderr."""
  request = _request(options, options.prompt, 0)
  engine = make_engine(options)
  result: Result | None = None
  for event in engine.stream(request):
    if options.stream:
      print(event.text, end="", flush=True)
    result = event.result
  assert result is not None
  print("" if options.stream else result.text, flush=True)
  print(speed_line(result), file=sys.stderr)
  return result


def speed_line(result: Result) -> str:
  """`result`'s figures for people."""
  later = result.tokens - 1
  after = result.seconds - result.first_token_seconds
  rate = f", then {1e3 * after / later:.1f} ms per token ({later / after:.1f} tokens/s)" if later else ""
  return (
    f"[{result.prompt_tokens} prompt tokens, {result.tokens} new tokens in {result.seconds:.2f} s: "
    f"first after {result.first_token_seconds:.2f} s{rate}; ended by {result.finish_reason}]"
  )


def answer_file(options: Options) -> None:
  """Answers `options.prompts_file` row by row into `options.output_file`."""
  rows = check_input(options.prompts_file)
  depends_on = ("model", "system", "max_new_tokens", "stop", "chat", "logprobs")
  run_settings: dict[str, Any] = {name: getattr(options, name) for name in depends_on}
  run_settings["stop"] = list(options.stop)
  run_settings |= dataclasses.asdict(options.sampling)
  run_settings["prompts_file"] = file_digest(options.prompts_file)
  journal = open_journal(options.output_file, run_settings, options.resume)
  try:
    left = len(rows) - len(journal.rows)
    started = time.perf_counter()
    tokens = 0
    engine = make_engine(options) if left else None
    with _progress(len(rows), len(journal.rows)) as bar:

      def advance(n: int) -> None:
        nonlocal tokens
        tokens += n
        bar(tokens / (time.perf_counter() - started))

      def make(row: InputRow) -> Request:
        prompt = row.values.get("messages") or row.values["prompt"]
        return _request(options, prompt, row.line - 1)

      errors = answer_rows(engine, rows, journal, make, advance) if engine else 0
  except KeyboardInterrupt as e:
    e.args = (f"{len(journal.rows)} of {len(rows)} rows are kept in {journal.partial}; go on with --resume",)
    raise
  except OSError as e:
    raise OSError(f"{e}; finished rows are kept in {journal.partial}, go on with --resume") from e
  finally:
    journal.close()
  journal.finish()
  seconds = time.perf_counter() - started
  print(
    f"[{len(rows)} rows, {errors} with an error, {tokens} tokens in {seconds:.1f} s "
    f"({tokens / seconds:.1f} tokens/s) -> {options.output_file}]",
    file=sys.stderr,
  )


class _progress:
  """A progress bar on stderr where `rich` is installed and stderr is a terminal; otherwise silent."""

  def __init__(self, total: int, done: int):
    self._bar: Any = None
    if sys.stderr.isatty():
      try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
      except ImportError:
        return
      self._bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} tokens/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
      )
      self._task = self._bar.add_task("rows", total=total, completed=done, rate=0.0)

  def __enter__(self):
    if self._bar is not None:
      self._bar.start()
    return self._step

  def _step(self, rate: float) -> None:
    if self._bar is not None:
      self._bar.update(self._task, advance=1, rate=rate)

  def __exit__(self, *_: Any) -> None:
    if self._bar is not None:
      self._bar.stop()
