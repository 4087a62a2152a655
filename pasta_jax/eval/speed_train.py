"""The speed of training: a step with all parameters, one with LoRA, and torch's, in one run.

    python -m pasta_jax.eval.speed_train --model=smollm2-135m --json=speed_train.json

A step is forward, backward, the cut of the gradient norm and AdamW, on rows of packed documents; tokens are
B x T. The three go in turns of some steps each, on the same batches, as the speed of a shared machine changes
from minute to minute. Torch is measured where it and transformers are installed, and is a dependency of
nothing; in bfloat16 under its autocast.
"""

import dataclasses
import gc
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from pasta_jax import runtime

_MODEL = flags.DEFINE_string("model", "smollm2-135m", "As in decode.main.")
_DATA = flags.DEFINE_string("data", "data/seed.jsonl", "Rows to pack.")
_ROWS = flags.DEFINE_integer("rows", 4, "Rows of a batch.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 256, "Tokens of a row.", lower_bound=16)
_RANK = flags.DEFINE_integer("lora_rank", 16, "Of the LoRA step.", lower_bound=1)
_REMAT = flags.DEFINE_string("remat", "attended", "As config.remat.")
_LOGITS = flags.DEFINE_integer("logits_tokens", 128, "As config.logits_tokens.", lower_bound=1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "As config.dtype, and torch's.")
_STEPS = flags.DEFINE_integer("steps", 15, "Steps measured; the median counts.", lower_bound=1)
_PEERS = flags.DEFINE_bool("peers", True, "Measure torch where it is installed.")
_JSON = flags.DEFINE_string("json", "", "Write the figures here.")
_CACHE = flags.DEFINE_string("compilation_cache", runtime.default_cache_folder(), "As in decode.main.")


_TURNS = 3

Step = Callable[[dict[str, np.ndarray]], None]  # a step on a batch, finished when it returns


def prepare_step(run: Any) -> tuple[Step, float]:
  """The step of a run, compiled, and its temporary memory in gigabytes."""
  program = run.program
  compiled = program.jit_train_step.lower(
    run.frozen, program.abstract_state(), program.abstract_batch()
  ).compile()

  def step(batch: dict[str, np.ndarray]) -> None:
    run.state, out = compiled(run.frozen, run.state, program.place_batch(batch))
    jax.block_until_ready((run.state, out))

  return step, getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0) / 1e9


def in_turns(
  steps: Mapping[str, Step], batches: Sequence[dict[str, np.ndarray]], turns: int
) -> dict[str, float]:
  """Seconds of each step, the median over all batches.

  The first step of a turn does not count: memory that the others gave back has to come again.
  """
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for turn in range(turns):
    mine = batches[turn::turns]
    for name, step in steps.items():
      for number, batch in enumerate([*mine[-1:], *mine]):
        start = time.perf_counter()
        step(batch)
        if number:
          seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(each) for name, each in seconds.items()}


def _loader_seconds(run: Any) -> float:
  """Seconds that the loader takes for a batch, an epoch's plan included."""
  count = run.loader.batches_of(0)
  run.loader.state = dataclasses.replace(run.loader.state, epoch=7, index=0)
  start = time.perf_counter()
  for _ in range(count):
    run.loader.next()
  return (time.perf_counter() - start) / count


def prepare_torch(model: str, dtype: str) -> Step | None:
  """The same step in torch: all parameters, fused AdamW, its own causal attention.

  None where torch or transformers is not installed, or the model is of another family than llama.
  """
  from pasta_jax.eval.speed_peers import hf_model
  from pasta_jax.model.weights import load_model

  loaded = load_model(model)
  known = loaded.config.vocab_size - 1  # marks are ids of ours: any id costs the same
  net = hf_model(loaded.config, loaded.params, use_cache=False, attn_implementation="sdpa")
  if net is None:
    return None
  import torch

  net.train()
  optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, weight_decay=0.0, fused=True)

  def step(batch: dict[str, np.ndarray]) -> None:
    ids = torch.from_numpy(np.minimum(batch["ids"], known).astype(np.int64))
    target = np.where(batch["weight"] > 0, np.minimum(batch["target"], known), -100).astype(np.int64)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
      logits = net(input_ids=ids).logits
      flat = torch.from_numpy(target).reshape(-1)
      loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), flat)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return step


def measure() -> dict[str, Any]:
  from pasta_jax.model.dtypes import resolve_dtype
  from pasta_jax.train.config import Config
  from pasta_jax.train.setup import set_up

  config = Config(
    model=_MODEL.value,
    data=(_DATA.value,),
    batch_rows=_ROWS.value,
    length=_LENGTH.value,
    remat=_REMAT.value,
    logits_tokens=_LOGITS.value,
    lora_rank=_RANK.value,
    dtype=str(resolve_dtype(_DTYPE.value)),
    steps=1000,
  )
  steps: dict[str, Step] = {}
  temporary = {}
  for name in ("lora", "full"):
    run = set_up(dataclasses.replace(config, lora=name == "lora"))
    steps[name], temporary[name] = prepare_step(run)
  torch = prepare_torch(config.model, config.dtype) if _PEERS.value else None
  if torch:
    steps["torch"] = torch
  gc.collect()
  seconds = in_turns(steps, [run.loader.next() for _ in range(_STEPS.value)], _TURNS)
  speed = {name: config.batch_rows * config.length / each for name, each in seconds.items()}
  loader = _loader_seconds(run)
  return {
    "model": config.model,
    "device": jax.devices()[0].device_kind,
    "cores": len(os.sched_getaffinity(0)),
    "rows": config.batch_rows,
    "length": config.length,
    "remat": config.remat,
    "dtype": config.dtype,
    **{
      name: {
        "seconds": seconds[name],
        "tokens_per_second": speed[name],
        "temporary_gb": temporary[name],
      }
      for name in ("lora", "full")
    },
    "loader_seconds": loader,
    "torch_full_tokens_per_second": speed.get("torch"),
    "full_over_torch": speed["full"] / speed["torch"] if torch else None,
    "lora_over_full": speed["lora"] / speed["full"],
    "step_over_loader": seconds["full"] / loader,
  }


def table(figures: dict[str, Any]) -> str:
  """Tokens per second of each step and of the loader, and how they compare."""
  full, torch = figures["full"], figures["torch_full_tokens_per_second"]
  loader = figures["rows"] * figures["length"] / figures["loader_seconds"]
  speeds = [
    ("all parameters", f"{full['tokens_per_second']:.0f}"),
    ("LoRA", f"{figures['lora']['tokens_per_second']:.0f}"),
    ("torch, all parameters", "not measured" if torch is None else f"{torch:.0f}"),
    ("loader alone", f"{loader:.0f}"),
  ]
  ratios = [
    ("LoRA over all parameters", figures["lora_over_full"]),
    ("all parameters over torch", figures["full_over_torch"]),
    ("loader over a step with all parameters", figures["step_over_loader"]),
  ]
  lines = ["| step | tokens/s |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in speeds)]
  lines += ["", "| ratio of speeds | |", "| --- | --- |"]
  lines += [f"| {name} | {value:.2f} |" for name, value in ratios if value is not None]
  return "\n".join(lines)


def _run() -> None:
  runtime.use_compilation_cache(_CACHE.value)
  figures = measure()
  print(table(figures))
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  runtime.on_huge_pages()
  app.run(main)
