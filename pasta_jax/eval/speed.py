"""The speed of decoding, in one run beside what bounds it and beside its peers.

    python -m pasta_jax.eval.speed --model=smollm2-135m --json=speed.json

A table for people, JSON for programs. Peers that are not installed are null.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

from pasta_jax import runtime

_MODEL = flags.DEFINE_string("model", "smollm2-135m", "As in decode.main.")
_DTYPE = flags.DEFINE_string("dtype", "auto", "As in decode.main.")
_JSON = flags.DEFINE_string("json", "", "Write the figures here.")
_PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 64, "Length of the prompt.", lower_bound=1)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "Tokens drawn per measurement.", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements; the median counts.", lower_bound=1)
_MAX_LEN = flags.DEFINE_integer("max_len", 1024, "As in decode.main.")
_PEERS = flags.DEFINE_bool("peers", True, "Measure HF transformers and llama.cpp where installed.")
_PARTS = flags.DEFINE_multi_enum(
  "parts", ["sequential", "widths", "documents", "throughput"],
  ["sequential", "widths", "documents", "throughput"], "What to measure; may be repeated.",
)  # fmt: skip
_DOCUMENTS = flags.DEFINE_string(
  "documents", "data/seed.jsonl", 'JSONL rows {"prompt", "document"}; those that split are sampled.'
)
_NUM_DOCUMENTS = flags.DEFINE_integer("num_documents", 24, "Documents of the sample.", lower_bound=1)
_LANES = flags.DEFINE_integer("lanes", 8, "As in decode.main.", lower_bound=2)
_CACHE = flags.DEFINE_string("compilation_cache", runtime.default_cache_folder(), "As in decode.main.")

PROMPT = (
  "A train leaves the station in the morning and follows the river to the sea. Tell me what the passengers"
  " see on their way, hour by hour, and how the light and the weather change until they arrive. "
)


def prompt_ids(tokenizer: Any, count: int) -> list[int]:
  """`count` ids of ordinary text."""
  ids = tokenizer.encode(PROMPT)
  return (ids * (count // len(ids) + 1))[:count]


def measure_sequential(engine: Any, prompt: list[int], new_tokens: int, repeats: int) -> dict[str, Any]:
  """Milliseconds per step at width 1 and of prefill, medians, as a caller of the engine sees them."""
  from pasta_jax.decode.requests import Request

  request = Request(prompt, max_new_tokens=new_tokens, model_stops=False)
  results = [engine.generate([request])[0] for _ in range(repeats + 1)][1:]
  steps = [(r.seconds - r.first_token_seconds) / (r.tokens - 1) for r in results]
  return {
    "ms_per_step": 1e3 * statistics.median(steps),
    "ms_per_step_min": 1e3 * min(steps),
    "prefill_ms": 1e3 * statistics.median(r.first_token_seconds for r in results),
  }


def bytes_per_step(engine: Any, length: int) -> int:
  """Bytes that a step must read: every parameter once, and keys and values of `length` slots."""
  from pasta_jax.model.cache import cache_bytes
  from pasta_jax.model.packed import activation_dtype
  from pasta_jax.model.params import param_bytes

  cfg, dtype = engine.config, engine.programs.shapes.dtype
  table = 0 if cfg.tied_embeddings else cfg.vocab_size * cfg.d_model * np.dtype(dtype).itemsize
  cache = activation_dtype(dtype, engine.mesh)
  return param_bytes(cfg, dtype) - table + cache_bytes(cfg, 1, length, cache)


def measure_startup(model: str, dtype: str, max_len: int, cache: str) -> dict[str, Any]:
  """First token and peak memory of a process of its own, with a warm compilation cache.

  Raises:
    ValueError: it failed, with the last line of what it said.
  """
  command = [
    sys.executable,
    "-m",
    "pasta_jax.eval.startup",
    f"--model={model}",
    f"--dtype={dtype}",
    f"--max_len={max_len}",
    f"--compilation_cache={cache}",
  ]
  figures: dict[str, Any] = {}
  for _ in range(3):  # the first may fill the cache
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    if out.returncode:
      said = out.stderr.strip().splitlines() or [f"exit status {out.returncode}"]
      raise ValueError(f"--model {model}: {said[-1].removeprefix('error: ')}")
    figures = json.loads(out.stdout.strip().splitlines()[-1])
  return figures


def measure(model_name: str) -> dict[str, Any]:
  """All figures that the flags ask for, as `--json` writes them.

  Raises:
    ValueError, OSError: with one line for the user; what is wrong with the flags is told before a model is
      loaded.
  """
  from pasta_jax.eval import speed_documents
  from pasta_jax.eval.bandwidth import read_bandwidth
  from pasta_jax.eval.report import check_json_path
  from pasta_jax.model.weights import is_random

  check_json_path(_JSON.value)
  parts = set(_PARTS.value)
  if is_random(model_name) and parts & {"documents", "throughput"}:
    print(f"{model_name} reads no text: documents and throughput are left out", file=sys.stderr)
    parts -= {"documents", "throughput"}
  rows = []
  if parts & {"documents", "throughput"}:
    rows = speed_documents.read_splitting_rows(_DOCUMENTS.value, _NUM_DOCUMENTS.value)
  # Before this process holds a model: two of them need twice the memory.
  startup = (
    measure_startup(model_name, _DTYPE.value, _MAX_LEN.value, _CACHE.value) if "sequential" in parts else {}
  )
  model = load(model_name)
  bandwidth = read_bandwidth()
  figures: dict[str, Any] = {
    "model": model_name,
    "device": f"{jax.devices()[0].device_kind} x {len(jax.devices())}",
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "dtype": str(jax.numpy.result_type(model.params["embed"])),
    "read_gb_per_s": bandwidth / 1e9,
  }
  if "sequential" in parts:
    figures |= sequential_figures(model_name, model, bandwidth, startup)
  if {"widths", "documents", "throughput"} & parts:
    figures |= parallel_figures(model, parts, rows)
  return figures


def load(model_name: str) -> Any:
  from pasta_jax.model.dtypes import resolve_dtype
  from pasta_jax.model.marks import with_marks
  from pasta_jax.model.tokenizer_ids import with_ids
  from pasta_jax.model.weights import load_model

  return with_marks(with_ids(load_model(model_name, dtype=resolve_dtype(_DTYPE.value, few=True))))


def sequential_figures(
  model_name: str, model: Any, bandwidth: float, startup: dict[str, Any]
) -> dict[str, Any]:
  """One lane beside the floor and its peers."""
  from pasta_jax.decode.engine import Engine
  from pasta_jax.eval import speed_peers
  from pasta_jax.eval.bandwidth import read_bandwidth
  from pasta_jax.model.packages import PACKAGES, packaged_gguf

  engine = Engine(model, max_len=_MAX_LEN.value)
  prompt, new = prompt_ids(engine.tokenizer, _PROMPT_TOKENS.value), _NEW_TOKENS.value
  sequential = measure_sequential(engine, prompt, new, _REPEATS.value)
  bandwidth = max(bandwidth, read_bandwidth())
  hf = llama = None
  if _PEERS.value:
    is_file = model_name.endswith(".gguf")
    gguf_path = str(packaged_gguf(model_name)) if model_name in PACKAGES else model_name if is_file else None
    llama = speed_peers.llama_cpp_ms(gguf_path, prompt, new)
    hf = speed_peers.hf_ms(engine.config, model.params, prompt, new)
    again = measure_sequential(engine, prompt, new, _REPEATS.value)
    sequential = min(sequential, again, key=lambda s: s["ms_per_step"])
  return {
    "prompt_tokens": len(prompt),
    "new_tokens": new,
    "weights_mb": bytes_per_step(engine, 0) / 1e6,
    "read_gb_per_s": bandwidth / 1e9,
    "sequential": {
      **sequential,
      "floor_ms": 1e3 * bytes_per_step(engine, len(prompt) + new // 2) / bandwidth,
      "first_token_s": startup["first_token_s"],
      "hf_ms": hf,
      "llama_cpp_ms": llama,
      "peak_rss_mb": startup["peak_rss_mb"],
      "peak_rss_run_mb": startup["peak_rss_run_mb"],
    },
  }


def parallel_figures(model: Any, parts: set[str], rows: list[dict[str, str]]) -> dict[str, Any]:
  """Several lanes: step times, documents, batches.

  Args:
    parts: what to measure.
    rows: of documents; see speed_documents.
  """
  from pasta_jax.decode.engine import Engine
  from pasta_jax.eval import speed_documents
  from pasta_jax.eval.speed_widths import measure_widths

  figures: dict[str, Any] = {}
  pasta = Engine(model, max_len=_MAX_LEN.value, lanes=_LANES.value)
  if "widths" in parts:
    figures |= measure_widths(pasta, slots=_MAX_LEN.value)
  if not rows:
    return figures
  sequential = Engine(model, max_len=_MAX_LEN.value)
  if "documents" in parts:
    figures["documents"] = speed_documents.measure_documents(pasta, sequential, rows)
  if "throughput" in parts:
    engines = {1: (pasta, sequential)}
    for batch in (4, 8):
      engines[batch] = (
        Engine(model, batch_size=batch, max_len=_MAX_LEN.value, lanes=_LANES.value),
        Engine(model, batch_size=batch, max_len=_MAX_LEN.value),
      )
    figures["throughput"] = speed_documents.measure_throughput(engines, rows)
  return figures


def table(figures: dict[str, Any]) -> str:
  """The figures for people, with the ratios that matter."""
  lines = [
    f"{figures['model']}, {figures['dtype']}, {figures['device']}, {figures['cores']} cores, greedy,"
    f" memory read at {figures['read_gb_per_s']:.1f} GB/s"
  ]
  if "sequential" in figures:
    lines += _sequential_lines(figures)
  if "width_ms" in figures:
    one = figures["width_ms"]["1"]
    lines += [
      f"  width {w:>2}             {ms:8.2f} ms   {ms / one:.2f}x of width 1"
      for w, ms in figures["width_ms"].items()
    ]
    lines += [f"  {n:>4} slots attended  {ms:8.2f} ms" for n, ms in figures["length_ms"].items()]
    lines.append(f"  interpreter etc.     {figures['overhead_percent']:8.1f} %    of a step")
  if "documents" in figures:
    d = figures["documents"]
    lines.append(
      f"  {d['n']} documents         theoretical {d['theoretical']:.2f}x, realised {d['realised']:.2f}x:"
      f" {d['ratio']:.2f} of it"
    )
  for batch, t in figures.get("throughput", {}).items():
    lines.append(
      f"  {batch} at a time          {t['pasta']:8.1f} tokens/s in lanes, {t['sequential']:.1f} one lane each"
    )
  return "\n".join(lines)


def _sequential_lines(figures: dict[str, Any]) -> list[str]:
  s = figures["sequential"]
  ms = s["ms_per_step"]

  def ratio(peer: float | None, text: str) -> str:
    return "not installed" if peer is None else f"{peer:8.2f} ms   {text.format(peer / ms)}"

  return [
    f"  step at width 1      {ms:8.2f} ms   (fastest run {s['ms_per_step_min']:.2f};"
    f" prompt {figures['prompt_tokens']}, {figures['new_tokens']} new tokens)",
    f"  floor of memory      {s['floor_ms']:8.2f} ms   {ms / s['floor_ms']:.2f}x of it is reached"
    f"; {figures['weights_mb']:.0f} MB of weights and the cache",
    f"  HF transformers      {ratio(s['hf_ms'], 'we are {:.2f}x as fast')}",
    f"  llama.cpp            {ratio(s['llama_cpp_ms'], 'we are {:.2f}x as fast')}",
    f"  prefill              {s['prefill_ms']:8.2f} ms",
    f"  first token          {s['first_token_s']:8.2f} s    after the start of a process, warm cache",
    f"  peak memory          {s['peak_rss_mb']:8.0f} MB   "
    f"{s['peak_rss_mb'] / figures['weights_mb']:.2f}x the weights, once they are loaded;"
    f" {s['peak_rss_run_mb']:.0f} MB over the whole run"
    f" ({s['peak_rss_run_mb'] / figures['weights_mb']:.2f}x)",
  ]


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")

  def run() -> None:
    runtime.use_compilation_cache(_CACHE.value)
    started = time.perf_counter()
    figures = measure(_MODEL.value)
    print(table(figures))
    print(f"  measured in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if _JSON.value:
      path = pathlib.Path(_JSON.value)
      beside = path.with_name(path.name + ".writing")
      beside.write_text(json.dumps(figures, indent=1) + "\n")
      beside.replace(path)

  sys.exit(runtime.run_main(run))


if __name__ == "__main__":
  app.run(main)
