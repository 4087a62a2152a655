"""The training loop, from the first step to the last, readable from top to bottom."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax

from pasta_jax.model.adapter import Adapter, save_adapter
from pasta_jax.model.checkpoint import save_checkpoint
from pasta_jax.train.config import Config
from pasta_jax.train.evaluate import eval_batches, evaluate
from pasta_jax.train.loss import CLASSES
from pasta_jax.train.metrics import MetricsFile, Progress
from pasta_jax.train.setup import Run, eval_run, set_up

METRICS, ADAPTER, MODEL = "metrics.jsonl", "adapter.npz", "model"


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a run came to.

  Attributes:
    step: steps done.
    evaluation: the last one's metrics.
    result: the adapter's file, or the model's folder.
  """

  step: int
  evaluation: dict[str, float]
  result: Path


def train(config: Config, workdir: str) -> Outcome:
  """Trains, evaluates, and writes metrics and the result into `workdir`.

  Raises:
    ValueError, OSError: with one line for the user.
  """
  folder = Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)

  # What there is to do.
  run = set_up(config)
  program, loader = run.program, run.loader
  held_out = run.data.held_out[: config.eval_rows or None]
  batches = eval_batches(held_out, config.batch_rows, config.length)
  describe(run)
  (folder / "config.json").write_text(json.dumps(config.as_dict(), indent=1))

  metrics = MetricsFile(folder / METRICS, 0)
  progress = Progress(program.steps, 0, config.log_every)
  evaluation: dict[str, float] = {}

  def evaluate_now(step: int) -> None:
    nonlocal evaluation
    if batches:
      evaluation = evaluate(batches, eval_run(run), run.controls)
      metrics.write({"step": step} | {f"eval_{k}": v for k, v in evaluation.items()})
      progress.say(f"step {step}: held out: " + ", ".join(f"{k} {v:.3f}" for k, v in evaluation.items()))

  # Steps.
  try:
    began, tokens = time.perf_counter(), 0.0
    for step in range(1, program.steps + 1):
      batch = program.place_batch(loader.next())
      run.state, out = program.jit_train_step(run.frozen, run.state, batch)
      figures = {k: float(v) for k, v in jax.device_get(out).items()}
      tokens += figures["tokens"]
      seconds = time.perf_counter() - began
      progress.step(step, f"loss {figures['loss']:.4f}, {tokens / seconds:.0f} tokens/s")
      if step % config.log_every == 0 or step == 1:
        rate = float(program.schedule(step - 1))
        line = step_line(figures) | {"learning_rate": rate, "tokens_per_second": tokens / seconds}
        metrics.write({"step": step, "epoch": loader.state.epoch} | line)
      if config.eval_every and step % config.eval_every == 0 and step < program.steps:
        evaluate_now(step)
        save_result(run, folder, step)
        began, tokens = time.perf_counter(), 0.0

    # The end.
    evaluate_now(program.steps)
    result = save_result(run, folder, program.steps, evaluation)
  finally:
    metrics.close()
    progress.close()
  return Outcome(program.steps, evaluation, result)


def step_line(figures: dict[str, float]) -> dict[str, float]:
  """A step's metrics as they are written: means instead of sums."""
  line = {"loss": figures["loss"], "gradient_norm": figures["gradient_norm"]}
  for name in CLASSES:
    if figures[f"{name}_tokens"]:
      line[f"loss_{name}"] = figures[f"{name}_nll"] / figures[f"{name}_tokens"]
  return line


def describe(run: Run) -> None:
  """Says on stderr what is about to happen."""
  import sys

  program, data = run.program, run.data
  for report in data.reports:
    print(report, file=sys.stderr)
  if data.too_long:
    shown = ", ".join(data.too_long[:3])
    print(f"{len(data.too_long)} documents exceed {run.config.length} tokens: {shown}, ...", file=sys.stderr)
  count = sum(s.size for s in program.trained.values())
  epochs = run.loader.batches_of(0)
  print(
    f"{'twin' if run.config.twin else 'pasta'}: {sum(len(e) for e, _ in data.train)} documents to train on, "
    f"{len(data.held_out)} held out; {program.steps} steps, {epochs} per epoch; "
    f"{count:,} parameters trained; mesh {dict(program.mesh.shape)}, {program.compute_dtype.name}",
    file=sys.stderr,
  )


def save_result(run: Run, folder: Path, step: int, evaluation: dict[str, float] | None = None) -> Path:
  """The adapter, or with all parameters trained the model."""
  config = run.config
  if not config.lora:
    if evaluation is None:
      return folder / MODEL
    tokenizer = run.tokenizer if hasattr(run.tokenizer, "save") else None
    return save_checkpoint(folder / MODEL, run.program.model, run.state["params"], tokenizer, overwrite=True)
  arrays: dict[str, Any] = jax.device_get(run.state["params"])
  metadata = {"config": config.as_dict(), "step": step, "evaluation": evaluation or {}}
  adapter = Adapter(arrays, config.lora_config, run.controls is not None, config.model, metadata)
  return save_adapter(folder / ADAPTER, adapter)
