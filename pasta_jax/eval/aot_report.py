"""Compiles a decoder's programs for TPUs that need not be there, and reads what the compiler estimates.

Everything in milliseconds here is an estimate by the compiler, none is a measurement.
"""

import dataclasses
import importlib.metadata
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pasta_jax.decode.programs import Lowering, Shapes, fit_slots, piece_sizes, step_widths
from pasta_jax.decode.step import Loop
from pasta_jax.eval import aot_hlo
from pasta_jax.eval.aot_target import Chip, Target
from pasta_jax.lang.marks import MARKS, ControlIds
from pasta_jax.model.cache import cache_shardings
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.params import param_table
from pasta_jax.model.sharding import make_mesh, param_shardings

# Branches of sampling: its conditional has one per way to draw.
WAYS = {"greedy": 0, "temperature": 1, "top_k_top_p": 2}
BASIS = "the TPU compiler's estimate, not a measurement"


@dataclasses.dataclass(frozen=True)
class Decoder:
  """What is compiled.

  Attributes:
    requests: B.
    lanes: threads of a request that run at a time; 1: the sequential decoder.
    slots: S, which a step is taken to attend to in full.
    dtype: of parameters and cache.
    segment: steps of a segment.
    chunks: that an answer may have.
  """

  requests: int = 1
  lanes: int = 8
  slots: int = 1024
  dtype: str = "bfloat16"
  segment: int = 16
  chunks: int = 32

  def __post_init__(self):
    for name in ("requests", "lanes", "slots", "segment", "chunks"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
    if self.dtype not in ("bfloat16", "float32"):
      raise ValueError(f"dtype must be bfloat16 or float32, got {self.dtype!r}")

  def shapes(self) -> Shapes:
    slots, pieces = fit_slots(self.slots, piece_sizes("tpu"))
    if self.lanes == 1:
      loop, threads = Loop(self.segment), 1
    else:
      # Which ids are marks changes nothing in a program but constants.
      controls = ControlIds.of(range(len(MARKS)))
      loop, threads = Loop(self.segment, step_widths(self.lanes, "tpu"), controls), self.chunks + 1
    return Shapes(self.requests, slots, loop, threads, jnp.dtype(self.dtype), pieces)


def report(
  cfg: ModelConfig,
  target: Target,
  decoder: Decoder,
  mesh: str = "",
  prefill: bool = True,
  tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
  """Compiles the decoder of one model, and tells memory, work and the compiler's estimates.

  Args:
    mesh: axes and sizes, as `make_mesh` takes them.
    prefill: compile the pieces of prompts too, not the segment of steps alone.
    tell: called with each line of the report for people, as soon as it is known: a large model takes minutes.

  Raises:
    ValueError: a mesh that does not fit the slice, or a program that the compiler finds no memory for.
  """
  devices = make_mesh(mesh, target.devices)
  shapes = decoder.shapes()
  lowering = Lowering(cfg, shapes, devices)
  chip = target.chip
  weights, cache = _weights_bytes(cfg, shapes, devices), _cache_bytes(cfg, shapes, devices)
  floor_ms = 1e3 * (_read_bytes(cfg, shapes, devices) + cache) / chip.hbm_bytes_per_s
  figures: dict[str, Any] = {
    "config": cfg.name,
    "basis": BASIS,
    "compiler": f"libtpu {_version('libtpu')}, jax {jax.__version__}",
    "topology": target.topology,
    "chips": math.prod(devices.shape.values()),
    "mesh": dict(devices.shape),
    "requests": decoder.requests,
    "lanes": decoder.lanes,
    "slots": shapes.num_slots,
    "dtype": decoder.dtype,
    "layers": cfg.num_layers,
    "weights_bytes_per_chip": weights,
    "cache_bytes_per_chip": cache,
    "hbm_bytes_per_chip": chip.hbm_bytes,
    "floor_ms": floor_ms,
    "steps": [],
    "programs": {},
  }
  _tell_all(tell, _header(figures))
  for name in ("segment", *shapes.pieces) if prefill else ("segment",):
    started = time.perf_counter()
    compiled = _compile(cfg, lowering, name)
    seconds = time.perf_counter() - started
    program = {**_memory(compiled, chip), **_work(compiled), "compile_s": seconds}
    module = aot_hlo.parse(compiled.as_text())
    if name == "segment":
      for body, width in zip(aot_hlo.step_bodies(module), shapes.loop.widths, strict=True):
        figures["steps"].append({"width": width, **_step(module, body, chip, floor_ms)})
        _tell_all(tell, _step_lines(figures["steps"][-1]))
    else:
      program["estimated_ms"] = _ms(_estimate(module, module.entry, chip, "greedy").total_cycles, chip)
    label = "segment" if name == "segment" else f"prefill_{name}"
    figures["programs"][label] = program
    tell(_program_line(label, program))
  figures["fits"] = all(p["fits"] for p in figures["programs"].values())
  return figures


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "of unknown version"


def _compile(cfg: ModelConfig, lowering: Lowering, name: Any) -> Any:
  try:
    return lowering.compile(name)
  except jax.errors.JaxRuntimeError as e:
    line = " ".join(str(e).split())[:300]
    raise ValueError(f"{cfg.name or cfg.family}: the TPU compiler cannot compile {name}: {line}") from None


def _shard_bytes(shape: tuple[int, ...], sharding: Any, dtype: Any) -> int:
  return math.prod(sharding.shard_shape(shape)) * jnp.dtype(dtype).itemsize


def _weights_bytes(cfg: ModelConfig, shapes: Shapes, mesh: Any) -> int:
  """Bytes of weights on each chip."""
  shardings = param_shardings(cfg, mesh)
  return sum(_shard_bytes(s.shape, shardings[n], shapes.dtype) for n, s in param_table(cfg).items())


def _read_bytes(cfg: ModelConfig, shapes: Shapes, mesh: Any) -> int:
  """Bytes of weights that a step reads on each chip: all but a table of which it needs a few rows."""
  unread = 0
  if not cfg.tied_embeddings:
    spec = param_table(cfg)["embed"]
    unread = _shard_bytes(spec.shape, param_shardings(cfg, mesh)["embed"], shapes.dtype)
  return _weights_bytes(cfg, shapes, mesh) - unread


def _cache_bytes(cfg: ModelConfig, shapes: Shapes, mesh: Any) -> int:
  """Bytes of keys and values on each chip."""
  shape = (shapes.batch, cfg.num_kv_heads, shapes.num_slots, cfg.head_dim)
  each = cache_shardings(cfg, mesh, shapes.batch).k
  return 2 * sum(_shard_bytes(shape, sharding, shapes.dtype) for sharding in each)


def _memory(compiled: Any, chip: Chip) -> dict[str, Any]:
  """Bytes on each chip while a program runs."""
  stats = compiled.memory_analysis()
  arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
  results = stats.output_size_in_bytes - stats.alias_size_in_bytes
  total = arguments + results + temporaries + stats.generated_code_size_in_bytes
  return {
    "arguments_bytes": arguments,
    "temporaries_bytes": temporaries,
    "total_bytes": total,
    "fits": total <= chip.hbm_bytes,
  }


def _work(compiled: Any) -> dict[str, float]:
  """Operations and bytes of a chip by the compiler's count; the body of a segment's loop counts once."""
  cost = compiled.cost_analysis() or {}
  cost = cost[0] if isinstance(cost, list) else cost
  return {"flops": float(cost.get("flops", 0)), "bytes_accessed": float(cost.get("bytes accessed", 0))}


def _estimate(module: aot_hlo.Module, computation: str, chip: Chip, way: str) -> aot_hlo.Estimate:
  """Along the path that attends to all slots, draws in the given way, and wants no log-probabilities."""

  def choose(op_name: str, branches: int) -> int:
    if aot_hlo.scope_of(op_name) != "sample":
      return branches - 1
    return WAYS[way] if branches == len(WAYS) else 0

  return aot_hlo.estimate(module, computation, choose, chip.hbm_bytes_per_s / chip.hertz)


def _step(module: aot_hlo.Module, body: str, chip: Chip, floor_ms: float) -> dict[str, Any]:
  greedy = _estimate(module, body, chip, "greedy")
  total = _ms(greedy.total_cycles, chip)
  return {
    "floor_ms": floor_ms,
    "estimated_ms": total,
    "ratio": total / floor_ms,
    "cycles": sum(greedy.cycles.values()),
    "waiting_ms": _ms(sum(greedy.waits.values()), chip),
    "parts_ms": {k: _ms(greedy.cycles[k] + greedy.waits[k], chip) for k in sorted(greedy.cycles)},
    "instructions": sum(greedy.parts.values()),
    "prefetched_bytes": greedy.transfers,
    "collectives": {k: {"calls": n, "bytes": size} for k, (n, size) in greedy.collectives.items()},
    "loops": greedy.loops,
    "estimated_ms_by_draw": {way: _ms(_estimate(module, body, chip, way).total_cycles, chip) for way in WAYS},
    "loops_by_draw": {way: len(_estimate(module, body, chip, way).loops) for way in WAYS},
  }


def _ms(cycles: float, chip: Chip) -> float:
  return 1e3 * cycles / chip.hertz


def _tell_all(tell: Callable[[str], None], lines: list[str]) -> None:
  for line in lines:
    tell(line)


def _header(figures: dict[str, Any]) -> list[str]:
  mesh = ",".join(f"{axis}:{n}" for axis, n in figures["mesh"].items() if n > 1) or "one chip"
  gb = {k: figures[f"{k}_bytes_per_chip"] / 1e9 for k in ("weights", "cache", "hbm")}
  return [
    f"{figures['config']}, {figures['layers']} layers, {figures['dtype']}, {figures['topology']} ({mesh}),"
    f" {figures['requests']} requests x {figures['lanes']} lanes, {figures['slots']} slots",
    f"  all times: {BASIS} ({figures['compiler']})",
    f"  a chip holds {gb['weights']:.2f} GB of weights and {gb['cache']:.3f} GB of cache; it has"
    f" {gb['hbm']:.0f} GB",
  ]


def _step_lines(step: dict[str, Any]) -> list[str]:
  draws = (
    f"{way} {ms:.3f} ms ({step['loops_by_draw'][way]} loops)"
    for way, ms in step["estimated_ms_by_draw"].items()
  )
  return [
    f"  step of {step['width']:2d} lanes  {step['estimated_ms']:8.3f} ms estimated by the compiler, greedy;"
    f" HBM floor {step['floor_ms']:.3f} ms; {step['ratio']:.2f}x the floor",
    "    of it            " + ", ".join(f"{k} {v:.3f}" for k, v in step["parts_ms"].items()),
    f"    waiting for HBM  {step['waiting_ms']:.3f} ms; {step['prefetched_bytes'] / 1e6:.0f} MB prefetched",
    f"    instructions     {step['instructions']}; serial loops: {', '.join(step['loops']) or 'none'}",
    f"    by way to draw   {', '.join(draws)}",
    *(
      f"    {kind:16s} {c['calls']} calls, {c['bytes'] / 1e6:.2f} MB, not in the estimate"
      for kind, c in step["collectives"].items()
    ),
  ]


def _program_line(name: str, p: dict[str, Any]) -> str:
  ms = f"; {p['estimated_ms']:.2f} ms estimated by the compiler" if "estimated_ms" in p else ""
  return (
    f"  {name:13s}    {p['total_bytes'] / 1e9:.2f} GB on a chip, {'fits' if p['fits'] else 'DOES NOT FIT'}"
    f" ({p['temporaries_bytes'] / 1e6:.0f} MB temporary); {p['flops'] / 1e9:.1f} Gflop,"
    f" {p['bytes_accessed'] / 1e9:.2f} GB accessed{ms}; compiled in {p['compile_s']:.0f} s"
  )
