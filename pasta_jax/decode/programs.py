"""The compiled programs of one engine: everything it will ever run, compiled ahead for one set of shapes.

A prompt of any length runs as pieces of a few fixed sizes, the part of the cache in use is chosen on the
device, and settings are arrays. So the programs do not depend on the requests, and a second prompt never
compiles.
"""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pasta_jax.decode import step
from pasta_jax.decode.forward import lane_logits
from pasta_jax.decode.sampling import SamplingRows
from pasta_jax.decode.state import (
  MAX_STOP_IDS,
  Admission,
  Policy,
  Script,
  State,
  empty_state,
  state_shardings,
)
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.memory import check_free, device_bytes
from pasta_jax.model.packed import abstract_packed, activation_dtype, packs
from pasta_jax.model.params import abstract_params
from pasta_jax.model.sharding import param_shardings, replicated

SHORTEST_PREFIX = 128
_COMPILERS = 2  # programs that are compiled at a time: two are large, the segment and the prompt's pieces


def piece_sizes(platform: str) -> tuple[int, ...]:
  """Sizes of the pieces in which prompts are run, ascending; each divides the next.

  A CPU is bound by arithmetic at 64 tokens already, so that one size serves; an accelerator reads all its
  weights for every piece, and gets a long one too.
  """
  return (64,) if platform == "cpu" else (128, 1024)


def least_rows(platform: str) -> int:
  """Rows that matrix products shall have at least.

  A TPU takes longer over one row than over eight (docs/tpu.md has the compiler's estimates), so that eight
  are the least there, for the sequential decoder too: it would be a slow baseline otherwise.
  """
  return 8 if platform == "tpu" else 1


def step_widths(lanes: int, platform: str, batch: int = 1) -> tuple[int, ...]:
  """Lanes of the compiled steps: powers of two up to the first that holds `lanes`, from `least_rows` on.

  A CPU pays for every row of a product, so that a request that is alone there gets widths halfway between
  too; several together have `step_rows`.
  """
  widths = [least_rows(platform)]
  while widths[-1] < lanes:
    widths.append(2 * widths[-1])
  halfway = [3 * w // 2 for w in widths[1:-1]] if platform == "cpu" and batch == 1 else []
  return tuple(sorted(widths + halfway))


def step_rows(widths: tuple[int, ...], batch: int, platform: str) -> tuple[tuple[int, ...], ...]:
  """For each width, how many lanes over all requests get steps of their own; see step.Loop.

  Where one request runs eight threads, the others mostly run fewer. A CPU pays for every row of a product;
  an accelerator reads the weights in the same time for all of them.
  """
  if platform != "cpu" or batch == 1:
    return ()
  return tuple(tuple(r * batch for r in (2, 4) if 2 * r <= w) for w in widths)


def attended_lengths(num_slots: int, halfway: bool = False) -> tuple[int, ...]:
  """Lengths of the part of a cache that a step attends over: powers of two up to `num_slots`.

  Args:
    halfway: and those halfway between. A CPU copies that part and multiplies with all of it; the program of
      one lane is small enough for more lengths (docs/performance.md).
  """
  lengths = []
  n = SHORTEST_PREFIX
  while n < num_slots:
    lengths += [n, 3 * n // 2] if halfway else [n]
    n *= 2
  return (*(n for n in lengths if n < num_slots), num_slots)


@dataclasses.dataclass(frozen=True)
class Shapes:
  """What the programs are compiled for.

  Attributes:
    batch: B, requests at a time.
    num_slots: S, slots per request.
    loop: see step.Loop.
    threads: N, the main thread and the chunks that an answer may have.
    dtype: of parameters; of the cache too, but where packed.activation_dtype says otherwise.
    pieces: sizes of the pieces in which prompts are run, none longer than S.
  """

  batch: int
  num_slots: int
  loop: step.Loop
  threads: int
  dtype: Any
  pieces: tuple[int, ...]

  @property
  def rows(self) -> int:
    """Rows of the widest step's matrix products."""
    return self.batch * self.loop.width

  @property
  def prefixes(self) -> tuple[int, ...]:
    """Attended lengths of the pieces of a prompt.

    Every other of a lane's: a piece has enough other work to make up for a longer prefix.
    """
    return attended_lengths(self.num_slots)[::-2][::-1]


def fit_slots(max_len: int, sizes: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
  """Slots of a cache for `max_len` tokens, and the pieces that fit it: whole pieces, so that padding fits."""
  pieces = tuple(s for s in sizes if s <= max_len) or sizes[:1]
  return -(-max_len // pieces[-1]) * pieces[-1], pieces


def plan_pieces(length: int, sizes: tuple[int, ...]) -> list[tuple[int, int, int]]:
  """Cuts a prompt into pieces: (start, count, padded size), the largest size first."""
  pieces = []
  start = 0
  while start < length:
    left = length - start
    size = min((s for s in sizes if s >= left), default=sizes[-1])
    pieces.append((start, min(left, size), size))
    start += size
  return pieces


# By generation, whose cores have 128, 64 and 128 MiB; what is left holds weights copied ahead.
_PRODUCT_KIB = {
  **dict.fromkeys(("TPU v5 lite", "TPU v5e"), 48 * 1024),
  **dict.fromkeys(("TPU v5", "TPU v5p"), 32 * 1024),
  **dict.fromkeys(("TPU v6 lite", "TPU v6e"), 48 * 1024),
}


def compiler_options(device: Any, rows: int, dtype: Any) -> dict[str, str | bool] | None:
  """Options of the compiler for a kind of device; None: its defaults.

  A TPU may give a matrix product more of the memory on the chip than the default of 16 MiB: weights then come
  in larger blocks, nearer to the full bandwidth (docs/tpu.md). On CPU, of XLA's two libraries for matrix
  products the older one, Eigen, is the faster one for the few rows of a decode step in float32; the other one
  alone has products in bfloat16 (docs/performance.md).

  Args:
    rows: see Shapes.rows.
    dtype: of the weights.
  """
  if device.platform == "cpu":
    by_default = rows == 1 or dtype == jnp.bfloat16
    return None if by_default else _understood({"xla_cpu_experimental_ynn_fusion_type": ""})
  kib = _PRODUCT_KIB.get(device.device_kind)
  return {"xla_tpu_scoped_vmem_limit_kib": str(kib)} if kib else None


@functools.cache
def _understands(option: tuple[str, str | bool]) -> bool:
  """Whether this version of the compiler has an option: experimental ones come and go."""
  try:
    jax.jit(lambda: 0).lower().compile(compiler_options=dict((option,)))
  except jax.errors.JaxRuntimeError:
    return False
  return True


def _understood(options: dict[str, str | bool]) -> dict[str, str | bool] | None:
  return {k: v for k, v in options.items() if _understands((k, v))} or None


class Lowering:
  """The programs of one engine before they are compiled; `mesh` may be of devices that are not there.

  Attributes:
    state: shapes and shardings of the state that they pass on, the cache in it.
    cache_dtype: of keys and values.
    lengths: that a step attends over, see attended_lengths.
  """

  def __init__(self, cfg: ModelConfig, shapes: Shapes, mesh: Mesh):
    self._cfg, self._shapes = cfg, shapes
    self._everywhere = replicated(mesh)
    self._state_shardings = state_shardings(cfg, mesh, shapes.batch)
    platform = mesh.devices.flat[0].platform
    self._least_rows = least_rows(platform)
    halfway = platform == "cpu" and shapes.loop.width == 1
    self.lengths = attended_lengths(shapes.num_slots, halfway)
    self._options = compiler_options(mesh.devices.flat[0], shapes.rows, shapes.dtype)
    self.cache_dtype = activation_dtype(shapes.dtype, mesh)
    empty = partial(
      empty_state, cfg, shapes.batch, shapes.num_slots, self.cache_dtype, shapes.threads, shapes.num_slots
    )
    params: Any = abstract_params(cfg, shapes.dtype, param_shardings(cfg, mesh))
    if packs(mesh):
      params = abstract_packed(cfg, params, self._everywhere, shapes.rows)
    kinds = self._abstract(np.zeros(cfg.vocab_size, np.int32))
    self.state = state = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      jax.eval_shape(empty),
      self._state_shardings,
    )
    self._builds: dict[Any, Callable[[], Any]] = {
      "segment": lambda: self._lower(self._segment, 1, params, kinds, state),  # takes longest, so it begins
      "new_state": lambda: self._lower(empty, 0),
      "make_room": lambda: self._lower(step.make_room, 1, state),
      "stop_rows": lambda: self._lower(
        step.stop_rows, 0, state, self._abstract(np.zeros(shapes.batch, bool))
      ),
    }
    for size in shapes.pieces:
      self._builds[size] = partial(self._lower_prefill, size, params, kinds, state)

  @property
  def names(self) -> tuple[Any, ...]:
    """`segment`, `new_state`, `make_room`, `stop_rows`, and prefill by the size of its piece."""
    return tuple(self._builds)

  def lower(self, name: Any) -> Any:
    return self._builds[name]()

  def compile(self, name: Any) -> Any:
    return self.compile_lowered(self.lower(name))

  def compile_lowered(self, lowered: Any) -> Any:
    return lowered.compile(compiler_options=self._options)

  def _segment(self, params: Any, kinds: Any, state: Any) -> tuple[State, step.Outputs]:
    least = self._least_rows
    model = partial(lane_logits, self._cfg, params, self.lengths, least_rows=least)
    return step.segment(self._shapes.loop, model, kinds, state)

  def _lower_prefill(self, size: int, params: Any, kinds: Any, state: Any) -> Any:
    shapes = self._shapes
    ints = self._abstract(np.int32(0))
    return self._lower(
      partial(step.prefill, self._cfg, shapes.loop, shapes.prefixes, least_rows=self._least_rows),
      3,
      params,
      kinds,
      state,
      ints,
      self._abstract(np.zeros(size, np.int32)),
      ints,
      ints,
      self._abstract(np.bool_(False)),
      jax.tree.map(self._abstract, example_admission(shapes)),
    )

  def _lower(self, fn: Callable, extras: int, *args: Any) -> Any:
    """Lowers fn, which takes a State and returns one with `extras` more results; the State is donated."""
    donated = [i for i, arg in enumerate(args) if isinstance(arg, State)]
    out = (self._state_shardings, *(self._everywhere,) * extras) if extras else self._state_shardings
    return jax.jit(fn, donate_argnums=donated, out_shardings=out).lower(*args)

  def _abstract(self, x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=self._everywhere)


class Programs:
  """Compiled `prefill` (one per piece size), `segment`, `make_room`, `stop_rows` and `new_state`.

  The state is donated to every call. Arguments besides parameters and state are explicit device arrays,
  made by `put`. The compiler runs beside its caller, who may prepare the weights meanwhile; `wait` ends that.

  Args:
    kinds: of every id, see grammar.token_kinds; ids beyond them are never drawn.

  Raises:
    ValueError: the cache cannot fit into memory, before anything is compiled.
  """

  def __init__(self, cfg: ModelConfig, shapes: Shapes, mesh: Mesh, kinds: np.ndarray):
    self.cfg, self.shapes, self.mesh = cfg, shapes, mesh
    self._everywhere = replicated(mesh)
    padded = np.zeros(cfg.vocab_size, np.int32)
    padded[: len(kinds)] = kinds[: cfg.vocab_size]
    self.kinds = self.put(padded)
    lowering = Lowering(cfg, shapes, mesh)
    self.lengths = lowering.lengths
    self.on_cpu = mesh.devices.flat[0].platform == "cpu"
    check_free(
      f"a cache of {shapes.batch} x {shapes.num_slots} slots in {lowering.cache_dtype.name} needs",
      device_bytes(lowering.state),
      mesh.local_devices[0],
      "use a smaller batch_size or max_len, or a mesh of more devices",
    )
    # Lowered here, since JAX's settings may be this thread's alone; compiling is C++ that lets others run.
    compilers = ThreadPoolExecutor(_COMPILERS, thread_name_prefix="compile")
    self._compiling = {
      name: compilers.submit(lowering.compile_lowered, lowering.lower(name)) for name in lowering.names
    }
    compilers.shutdown(wait=False)

  def wait(self) -> None:
    """Until everything is compiled.

    Raises:
      Exception: what the compiler raised.
    """
    compiled = {name: future.result() for name, future in self._compiling.items()}
    self._compiling = {}
    self.new_state = compiled["new_state"]
    self._compiled_segment = compiled["segment"]
    self.make_room = compiled["make_room"]
    self.stop_rows = compiled["stop_rows"]
    self._prefill = {size: compiled[size] for size in self.shapes.pieces}

  def segment(self, params: Any, state: Any) -> tuple[State, step.Outputs]:
    """The next steps of every row; see step.segment."""
    return self._compiled_segment(params, self.kinds, state)

  def prefill(self, params: Any, state: Any, row: int, prompt: np.ndarray, admission: Admission) -> Any:
    """Runs a whole prompt through one row, as pieces; returns what the last piece returned."""
    settings = self.put(admission)
    outputs: Any = None
    for start, count, size in plan_pieces(len(prompt), self.shapes.pieces):
      ids = np.zeros(size, np.int32)
      ids[:count] = prompt[start : start + count]
      last = np.bool_(start + count == len(prompt))
      row_, ids_, start_, count_, last_ = self.put(
        (np.int32(row), ids, np.int32(start), np.int32(count), last)
      )
      state, *outputs = self._prefill[size](
        params, self.kinds, state, row_, ids_, start_, count_, last_, settings
      )
    return state, *outputs

  def put(self, tree: Any) -> Any:
    """Host values onto the devices, explicitly."""
    return jax.device_put(tree, self._everywhere)


def example_admission(shapes: Shapes) -> Admission:
  """An admission of the right shapes and types."""
  zero, real, off = np.int32(0), np.float32(0), np.bool_(False)
  table = np.zeros(shapes.threads, np.int32)
  return Admission(
    limit=zero,
    stop_ids=np.zeros(MAX_STOP_IDS, np.int32),
    sampling=SamplingRows(temperature=real, top_k=zero, top_p=real, min_p=real, seed=zero, logprobs=off),
    policy=Policy(
      **{f.name: zero for f in dataclasses.fields(Policy)}
      | {"marks": off, "ends": off, "promise_bias": np.zeros(2, np.float32)}
    ),
    script=Script(on=off, ids=np.zeros(shapes.num_slots, np.int32), starts=table, lengths=table),
  )
