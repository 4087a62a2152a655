"""The training loop, from the first step to the last, readable from top to bottom."""

import dataclasses
import itertools
import math
import sys
from pathlib import Path
from typing import Any, NoReturn

import jax

from pasta_jax.model.adapter import Adapter, save_adapter
from pasta_jax.model.checkpoint import save_checkpoint
from pasta_jax.model.memory import device_bytes_free, told_when_memory_runs_out
from pasta_jax.train.checkpoints import Checkpoints, claim
from pasta_jax.train.config import Config
from pasta_jax.train.evaluate import eval_batches, evaluate
from pasta_jax.train.forward import unstack
from pasta_jax.train.loss import CLASSES
from pasta_jax.train.metrics import Recorder
from pasta_jax.train.packing import State as LoaderState
from pasta_jax.train.report import write_report
from pasta_jax.train.setup import Run, eval_run, eval_sample, find_file, set_up
from pasta_jax.train.watch import DivergedError, Watch, stop_between_steps

ADAPTER, BEST, MODEL = "adapter.npz", "adapter.best.npz", "model"

_LESS = "use config.remat=full, a smaller config.logits_tokens, a larger config.accumulate, or a larger mesh"


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


@told_when_memory_runs_out(_LESS)
def train(config: Config, workdir: str) -> Outcome:
  """Trains, or goes on where an interrupted run of the same configuration stopped.

  Args:
    workdir: takes metrics, checkpoints, the result and a report; the same one resumes. With LoRA the result
      is adapter.npz, and beside it adapter.best.npz has the lowest held-out loss of all evaluations.

  Raises:
    ValueError, OSError: with one line for the user.
    KeyboardInterrupt: after a checkpoint, at SIGTERM or Ctrl-C.
  """
  folder = Path(workdir)
  adapter = [config.adapter_file] if config.adapter else []
  with claim(folder, config, [find_file(name) for name in config.data] + adapter):
    return _train(config, folder)


def _train(config: Config, folder: Path) -> Outcome:
  # What there is to do. Everything that can fail early does so here.
  run = set_up(config)
  program, loader = run.program, run.loader
  batches = eval_batches(eval_sample(run.data, config), config.batch_rows, config.length)
  describe(run)
  step_program = compile_step(run)
  watch = Watch(config.diverged)

  def to_evaluate(step: int) -> bool:
    due = step == program.steps or (config.eval_every and step % config.eval_every == 0)
    return bool(batches and due)

  with Checkpoints(folder, config.keep) as checkpoints, stop_between_steps() as stop:
    # Where to begin.
    done = checkpoints.latest or 0
    evaluation: dict[str, float] = {}
    best: dict[str, Any] | None = None
    if done:
      run.state = {}  # its memory is wanted
      run.state, host = checkpoints.restore(done, program.abstract_state())
      loader.state, watch.state = LoaderState(**host["loader"]), host["watch"]
      evaluation, best = host["evaluation"], host.get("best")
      checkpoints.best = best and best["step"]
      print(f"going on after step {done} of {program.steps}", file=sys.stderr)

    def save(step: int) -> None:
      host = {
        "loader": dataclasses.asdict(loader.state),
        "watch": watch.state,
        "evaluation": evaluation,
        "best": best,
      }
      checkpoints.save(step, run.state, host)

    def leave(step: int) -> NoReturn:
      checkpoints.wait()
      error = stop.exception
      error.args = (f"saved after step {step} of {program.steps}; the same command goes on from there",)
      raise error

    with Recorder(folder, program, done, bool(evaluation)) as recorder:

      def take_in(step: int, out: Any) -> None:
        figures = {k: float(v) for k, v in jax.device_get(out).items()}
        recorder.step(step, step_line(figures), figures["tokens"])
        try:
          watch.see(step, figures["loss"], figures["gradient_norm"])
        except DivergedError as e:
          raise diverged(step, e) from None

      def diverged(step: int, error: Any) -> DivergedError:
        kept = max((s for s in checkpoints.steps if s < step), default=None)
        where = f"the last good checkpoint is step {kept}" if kept else "there is no checkpoint before it"
        advice = "try a lower config.learning_rate or a longer config.warmup, in another --workdir"
        return DivergedError(f"{error}; {where} in {checkpoints.folder}; {advice}")

      def measure(step: int) -> dict[str, float]:
        """The held-out figures after `step`; none where a request to stop came meanwhile."""
        nonlocal best
        going = itertools.takewhile(lambda _: stop.signal is None, batches)
        figures = evaluate(going, eval_run(run), run.controls)
        if stop.signal is not None:
          return {}
        recorder.evaluation(step, figures)
        loss = figures["loss"]
        if not math.isfinite(loss):
          raise diverged(step, f"step {step}: the held-out loss is {loss}")
        better = best is None or loss < best["loss"]
        if better:
          best, checkpoints.best = {"step": step, "loss": loss}, step
        if config.lora and better:
          save_adapter_of(run, folder / BEST, step, figures)
        if config.lora and step < program.steps:
          save_adapter_of(run, folder / ADAPTER, step, figures)  # to try while the run goes on
        return figures

      # A run that was stopped where an evaluation was due has saved without it.
      if done and to_evaluate(done) and not evaluation:
        evaluation = measure(done)
        if not evaluation:
          leave(done)

      # Steps. A step's figures are taken in while the next one runs.
      waiting: tuple[int, Any] | None = None
      for step in range(done + 1, program.steps + 1):
        batch = program.place_batch(loader.next())
        with jax.transfer_guard("disallow"):  # a batch has been placed; nothing else comes from the host
          run.state, out = step_program(run.frozen, run.state, batch)
        if waiting:
          take_in(*waiting)
        waiting = (step, out)

        last = step == program.steps
        to_save = last or to_evaluate(step) or (config.save_every and step % config.save_every == 0)
        stopping = stop.due(step)
        if not (to_save or stopping):
          continue
        take_in(*waiting)  # nothing that diverged is saved
        waiting, evaluation = None, {}
        if to_evaluate(step) and not stopping:
          evaluation = measure(step)
          stopping = not evaluation
        save(step)
        if stopping and not (last and not to_evaluate(step)):
          leave(step)

    # The end.
    checkpoints.wait()
    result = save_result(run, folder, program.steps, evaluation)
    write_report(folder, config, run.data, evaluation, best)
  return Outcome(program.steps, evaluation, result)


def compile_step(run: Run) -> Any:
  """The compiled step.

  Raises:
    ValueError: it needs more memory than there is.
  """
  program = run.program
  batch = program.abstract_batch()
  compiled = program.jit_train_step.lower(run.frozen, program.abstract_state(), batch).compile()
  analysis = compiled.memory_analysis()
  need = getattr(analysis, "temp_size_in_bytes", 0)
  free = device_bytes_free(program.mesh.local_devices[0])
  if free is not None and need > free:
    raise ValueError(
      f"a step needs {need / 1e9:.1f} GB beside the weights, {free / 1e9:.1f} GB are free; {_LESS}"
    )
  return compiled


def step_line(figures: dict[str, float]) -> dict[str, float]:
  """A step's metrics as they are written: means instead of sums."""
  line = {"loss": figures["loss"], "gradient_norm": figures["gradient_norm"]}
  for name in CLASSES:
    if figures[f"{name}_tokens"]:
      line[f"loss_{name}"] = figures[f"{name}_nll"] / figures[f"{name}_tokens"]
  return line


def describe(run: Run) -> None:
  """Says on stderr what is about to happen."""
  program, data = run.program, run.data
  for report in data.reports:
    print(report, file=sys.stderr)
    for what, places in (
      (f"documents exceed {run.config.length} tokens", report.too_long),
      ("documents have a topic longer than decoding allows, which is cut", report.cut),
    ):
      if places:
        shown = ", ".join(places[:3]) + (", ..." if len(places) > 3 else "")
        print(f"{len(places)} {what}: {shown}", file=sys.stderr)
  count = sum(s.size for s in program.trained.values())
  print(
    f"{'twin' if run.config.twin else 'pasta'}: {sum(len(e) for e, _ in data.train)} documents to train on, "
    f"{len(data.held_out)} held out; {program.steps} steps, {run.loader.batches_of(0)} per epoch; "
    f"{count:,} parameters trained; mesh {dict(program.mesh.shape)}, {program.compute_dtype.name}",
    file=sys.stderr,
  )


def save_result(run: Run, folder: Path, step: int, evaluation: dict[str, float]) -> Path:
  """The adapter's file, or with all parameters trained the model's folder, after `step` steps."""
  if run.config.lora:
    return save_adapter_of(run, folder / ADAPTER, step, evaluation)
  tokenizer = run.tokenizer if hasattr(run.tokenizer, "save") else None
  params = unstack(run.state["params"])
  return save_checkpoint(folder / MODEL, run.program.model, params, tokenizer, overwrite=True)


def save_adapter_of(run: Run, path: Path, step: int, evaluation: dict[str, float]) -> Path:
  """Writes the adapter as it is after `step` steps."""
  config = run.config
  arrays = unstack(jax.device_get(run.program.replicate(run.state["params"])))
  metadata = {"config": config.as_dict(), "steps": step, "evaluation": evaluation}
  if run.before:
    metadata["before"] = run.before
  adapter = Adapter(arrays, config.lora_config, run.controls is not None, config.model, metadata)
  return save_adapter(path, adapter) if jax.process_index() == 0 else path
