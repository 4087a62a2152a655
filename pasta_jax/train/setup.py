"""From a configuration to everything that a run needs, failing early where something cannot work."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pasta_jax.lang.marks import ControlIds
from pasta_jax.lang.stats import document_stats
from pasta_jax.lang.threads import encode_document
from pasta_jax.lang.tighten import tighten
from pasta_jax.model.adapter import Adapter, check_adapter, load_adapter
from pasta_jax.model.dtypes import resolve_dtype
from pasta_jax.model.lora import first_mark, init_adapter
from pasta_jax.model.marks import with_marks
from pasta_jax.model.memory import device_bytes, device_bytes_free
from pasta_jax.model.params import Params
from pasta_jax.model.sharding import make_mesh
from pasta_jax.model.weights import LoadedModel, load_model
from pasta_jax.train.config import Config
from pasta_jax.train.forward import stack, stacked
from pasta_jax.train.packing import Example, Layout, Loader, lay_out_all
from pasta_jax.train.rows import Report, Row, RowsError, is_held_out, read_rows
from pasta_jax.train.step import Program, State


@dataclasses.dataclass(frozen=True)
class Data:
  """Documents of a run.

  Attributes:
    train: per file, or its two parts, documents and how often an epoch has them.
    held_out: documents for evaluation.
    reports: per file.
  """

  train: list[tuple[list[Example], float]]
  held_out: list[Example]
  reports: list[Report]


@dataclasses.dataclass
class Run:
  """A run that is ready to start.

  Attributes:
    config: of the run.
    program: what is compiled.
    frozen: weights that do not change; empty where all are trained.
    state: see step.py.
    loader: batches.
    data: documents.
    controls: ids of the marks; None for the twin.
    tokenizer: of the model.
    before: how the adapter that the run goes on from was made; None without one.
  """

  config: Config
  program: Program
  frozen: dict[str, Any]
  state: State
  loader: Loader
  data: Data
  controls: ControlIds | None
  tokenizer: Any
  before: dict[str, Any] | None = None


def find_file(name: str) -> str:
  """A data file: as it is named, or beside the package."""
  beside = Path(__file__).resolve().parents[2] / name
  return str(beside) if not Path(name).exists() and beside.exists() else name


def read_files(config: Config) -> list[tuple[list[Row], Report]]:
  """Rows of each file and what it held: what can be told without a model, so before one is loaded.

  Raises:
    RowsError: bad rows.
  """
  return [read_rows(find_file(name), skip_bad=config.skip_bad_rows) for name in config.data]


def read_data(config: Config, tokenizer: Any, files: list[tuple[list[Row], Report]] | None = None) -> Data:
  """Checks and lays out all rows.

  Args:
    tokenizer: with control ids.
    files: what `read_files` gives; None reads them.

  Raises:
    RowsError: bad rows, or none that fit.
  """
  files = read_files(config) if files is None else files
  texts = config.data_text_weights or (1.0,) * len(config.data)
  speedups = config.data_min_speedup or (0.0,) * len(config.data)
  train, reports = [], []
  held_out: list[Example] = []
  for (rows, report), weight, text, least in zip(files, config.data_weights, texts, speedups, strict=True):
    factors = dict(config.class_weights)
    factors["text"] = text * factors.get("text", 1.0)
    classes = tuple(sorted(factors.items()))
    layout = Layout(config.twin, config.fork, config.positions, config.fixed, classes)
    if config.tighten:
      rows = [dataclasses.replace(row, document=tighten(row.document)) for row in rows]
    examples, too_long, bad = lay_out_all(rows, tokenizer, layout, config.length)
    report = dataclasses.replace(
      report,
      rows=report.rows - len(bad),
      split=sum(row.document.splits for row in rows if row.where not in bad),
      problems=report.problems + tuple(f"line {w.rpartition(':')[2]}: {p}" for w, p in bad.items()),
      too_long=tuple(too_long),
      cut=tuple(example.row.where for example in examples if example.cut),
    )
    if not config.skip_bad_rows:
      report.check()
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
      parts[is_held_out(example.row.prompt, config.holdout)].append(example)
    chosen = [e for e in parts[0] if not least or _speedup(e.row, tokenizer, config.fork) >= least]
    reports.append(dataclasses.replace(report, slow=len(parts[0]) - len(chosen)))
    train += _weighted(chosen, weight, config.unsplit_weight)
    known = {example.row.where for example in held_out}  # of a file that is named twice
    held_out += [example for example in parts[1] if weight and example.row.where not in known]
  if not any(examples for examples, weight in train if weight):
    raise RowsError(
      f"no row of {', '.join(config.data)} to train on is good and fits into config.length {config.length} "
      "tokens" + (f", as fast as config.data_min_speedup {speedups} asks" if any(speedups) else "")
    )
  return Data(train, held_out, reports)


def _speedup(row: Row, tokenizer: Any, fork: str) -> float:
  """The theoretical speedup of a row's document as it stands."""
  threads = encode_document(row.document, tokenizer.encode, tokenizer.controls)
  plain = len(tokenizer.encode(row.document.plain))
  return document_stats(threads, tokenizer.controls, plain, fork).theoretical_speedup


def _weighted(
  examples: list[Example], weight: float, unsplit_weight: float
) -> list[tuple[list[Example], float]]:
  """A file's documents and how often an epoch has them; those without chunks apart where that differs."""
  if unsplit_weight == 1:
    return [(examples, weight)]
  parts: tuple[list[Example], list[Example]] = ([], [])
  for example in examples:
    parts[example.row.document.splits].append(example)
  return [(parts[1], weight), (parts[0], weight * unsplit_weight)]


def eval_sample(data: Data, config: Config) -> list[Example]:
  """The held-out documents of an evaluation: the first ones of one file, of several a sample from all."""
  count = min(config.eval_rows or len(data.held_out), len(data.held_out))
  if sum(weight > 0 for weight in config.data_weights) == 1:
    return data.held_out[:count]
  return [data.held_out[i * len(data.held_out) // count] for i in range(count)]


def count_steps(config: Config, loader: Loader) -> int:
  """Steps of the whole run."""
  if config.steps:
    return config.steps
  whole = int(config.epochs)
  steps = sum(loader.batches_of(epoch) for epoch in range(whole))
  if config.epochs > whole:
    steps += -int(-(config.epochs - whole) * loader.batches_of(whole) // 1)
  return steps


def set_up(config: Config, model: LoadedModel | None = None) -> Run:
  """Loads the model and the data, and makes the state before the first step.

  Args:
    model: instead of loading `config.model`.

  Raises:
    ValueError: with one line that says what cannot work.
  """
  mesh = make_mesh(config.mesh)
  check_rows_divide(config, mesh)
  files = read_files(config)
  before = read_adapter(config)
  compute = resolve_dtype(config.dtype, mesh.devices.flat[0].platform)
  dtype = compute if config.lora else jnp.dtype(jnp.float32)
  if model is None:
    model = load_model(config.model, dtype=dtype, mesh=mesh)
  if model.tokenizer is None:
    raise ValueError(f"config.model {config.model!r} has no tokenizer, so it cannot be trained on text")
  if config.length > model.config.max_len:
    raise ValueError(
      f"config.length {config.length} exceeds the {model.config.max_len} positions of {config.model}"
    )
  # The twin never sees a mark, but is packed as if its documents had them.
  marked = model.tokenizer
  if marked.controls is None:
    marked = marked.with_controls(model.config.vocab_size)
  data = read_data(config, marked, files)
  loader = Loader(data.train, batch=config.batch_rows, length=config.length, seed=config.seed)
  if not config.twin:
    model = with_marks(model)
  tokenizer, params = model.tokenizer, dict(model.params)
  controls = None if config.twin else tokenizer.controls
  program = Program(
    config,
    model.config,
    min(tokenizer.vocab_size, model.config.vocab_size),
    None if controls is None else first_mark(controls),
    count_steps(config, loader),
    mesh,
  )
  del model  # so that its parameters are freed as they are stacked
  check_state_fits(program, params)
  if config.lora:
    trained = _old_adapter(program, before) if before else _new_adapter(program, params, controls)
    own = {name: params.pop(name).astype(compute) for name in list(params)}
    frozen = stack(own, program.shardings(program.frozen))
  else:
    own = {name: params.pop(name).astype(jnp.float32) for name in list(params)}
    trained, frozen = stack(own, program.shardings(program.trained)), {}
  state = program.new_state(trained)
  return Run(
    config, program, frozen, state, loader, data, controls, tokenizer, before.metadata if before else None
  )


def check_rows_divide(config: Config, mesh: Mesh) -> None:
  """Raises ValueError where a step's rows do not divide over the mesh."""
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  part = config.batch_rows // config.accumulate
  if part % shards:
    raise ValueError(
      f"config.batch_rows {config.batch_rows} in {config.accumulate} parts is {part} rows at a time, "
      f"which do not divide over data x fsdp = {shards} of the mesh {config.mesh!r}"
    )


def check_state_fits(program: Program, params: Params) -> None:
  """Raises ValueError where weights and the optimiser's state cannot fit, before they are made.

  Args:
    params: as they were loaded; their memory is used again.
  """
  shardings = program.shardings(program.frozen)
  frozen = {
    name: jax.ShapeDtypeStruct(spec.shape, program.compute_dtype, sharding=shardings[name])
    for name, spec in program.frozen.items()
  }
  need = device_bytes((program.abstract_state(), frozen))
  device = program.mesh.local_devices[0]
  free = device_bytes_free(device)
  if free is None or need <= (there := free + device_bytes(params)):
    return
  where = "of memory" if device.platform == "cpu" else "on each device"
  less = (
    "a smaller model or a larger config.mesh"
    if program.config.lora
    else "config.lora=True or a larger config.mesh"
  )
  raise ValueError(
    f"the weights and the optimiser's state need {need / 1e9:.2f} GB {where}, {there / 1e9:.2f} GB are free; "
    f"use {less}"
  )


def _new_adapter(program: Program, params: Params, controls: ControlIds | None) -> Params:
  """An adapter before training, stacked, made where it shall lie."""
  config = program.config
  tables = {name: params[name] for name in ("embed", "head") if name in params}

  def init(tables: Params) -> Params:
    return stacked(init_adapter(program.model, config.lora_config, tables, controls, config.seed))

  return jax.jit(init, out_shardings=program.shardings(program.trained))(tables)


def read_adapter(config: Config) -> Adapter | None:
  """The adapter to go on from, None without one.

  Raises:
    ValueError: it was not made for what this run trains.
    WeightsError: no such file, or a damaged one.
  """
  if not config.adapter:
    return None
  adapter = load_adapter(config.adapter_file)
  for what, its, ours in (
    ("model", adapter.model, config.model),
    ("twin", not adapter.marks, config.twin),
    ("lora_rank", adapter.lora.rank, config.lora_rank),
    ("lora_alpha", adapter.lora.alpha, config.lora_alpha),
    ("lora_targets", tuple(adapter.lora.targets), config.lora_targets),
  ):
    if its != ours:
      raise ValueError(f"config.adapter {config.adapter_file} has {what} {its!r}, config.{what} is {ours!r}")
  return adapter


def _old_adapter(program: Program, adapter: Adapter) -> Params:
  """An adapter to go on from, stacked, where it shall lie."""
  check_adapter(f"config.adapter {program.config.adapter_file}", program.model, adapter)
  return stack(dict(adapter.arrays), program.shardings(program.trained))


def eval_run(run: Run) -> Any:
  """From a host's batch to what `evaluate.evaluate` takes."""

  def go(batch: Any) -> dict[str, Any]:
    placed = run.program.place_batch(batch)
    return jax.device_get(run.program.jit_eval_step(run.frozen, run.state["params"], placed))

  return go
