"""Reads what the TPU compiler estimated from the text of a compiled program.

The text is a schedule: each computation lists its instructions in the order in which a chip runs them, and
most fusions and copies carry `"estimated_cycles"`. A decode segment looks like this:

    ENTRY main            while(...), body=%step          the steps of a segment
    %step                 fusion  cycles 185786           feed-forward of layer 0
                          slice-start ... slice-done      weights on their way to on-chip memory meanwhile
                          conditional(...)                a branch per attended length; greedy or not
    %branch               fusion  cycles 3378
                          while(...)                      a serial loop, if there is one

One path through the branches is run through a small model of the chip (`Clock`): instructions take their
estimated cycles one after another; copies between HBM and on-chip memory, which have no cycles in the text,
run beside them with the bandwidth that the instructions leave, and whoever waits for one waits until it is
through.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

# Bytes of the element types that occur; `token` and `opaque` have none.
_ITEM_BITS = {
  "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
  "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
}  # fmt: skip
_INSTRUCTION = re.compile(r"^ *(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) .*\{$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"\b(body|condition|to_apply|true_computation|false_computation|calls)=%([^\s,}]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
COLLECTIVES = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
)  # fmt: skip
# In this memory space the text marks what is on the chip; without a mark it is in HBM.
_ON_CHIP = "S(1)"


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: as in the text, without the %.
    opcode: e.g. "fusion".
    shape: the result's type, as in the text.
    rest: everything after the opening parenthesis of the operands.
  """

  name: str
  opcode: str
  shape: str
  rest: str

  @property
  def op_name(self) -> str:
    """Where it comes from in the JAX program: named scopes, joined by slashes; "" if unknown."""
    found = _OP_NAME.search(self.rest)
    return found[1] if found else ""

  @property
  def operands(self) -> list[str]:
    """Names of its operands."""
    return re.findall(r"%([^\s,)]+)", self.rest.partition(")")[0])

  @property
  def cycles(self) -> int | None:
    """The compiler's estimate, if the text has one."""
    found = _CYCLES.search(self.rest)
    return int(found[1]) if found else None

  def called(self, role: str) -> str | None:
    """The computation that it calls as `role`, e.g. "body"."""
    return dict(_CALLED.findall(self.rest)).get(role)

  @property
  def branches(self) -> tuple[str, ...]:
    """Computations of a conditional, by the value that chooses them (false before true)."""
    found = _BRANCHES.search(self.rest)
    if found:
      return tuple(name.strip().lstrip("%") for name in found[1].split(","))
    two = self.called("false_computation"), self.called("true_computation")
    return tuple(name for name in two if name is not None)


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program: computations by name, and which one is entered."""

  computations: Mapping[str, Sequence[Instruction]]
  entry: str


def parse(text: str) -> Module:
  """The module in `text`, as `compiled.as_text()` returns it.

  Raises:
    ValueError: there is no entry computation.
  """
  computations: dict[str, list[Instruction]] = {}
  current: list[Instruction] | None = None
  entry = None
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      current = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (found := _INSTRUCTION.match(line)):
      current.append(Instruction(found[1], found[3], found[2], found[4]))
  if entry is None:
    raise ValueError("the compiler's text has no entry computation")
  return Module(computations, entry)


def arrays(shape: str) -> list[tuple[int, bool]]:
  """The arrays of a type in the text, tuples flattened: (bytes, whether on the chip)."""
  found = []
  for kind, dims, layout in _ARRAY.findall(shape):
    if kind in _ITEM_BITS:
      size = math.prod(int(d) for d in dims.split(",") if d)
      found.append((-(-size * _ITEM_BITS[kind] // 8), _ON_CHIP in layout))
  return found


def transfer_bytes(instruction: Instruction) -> int:
  """Bytes that the start of an asynchronous copy or slice moves between HBM and the chip; else 0."""
  if instruction.opcode not in ("copy-start", "slice-start", "async-start"):
    return 0
  # A copy's type is (to, from, context), a slice's ((from), to, context).
  first, second, *_ = [*arrays(instruction.shape), (0, False), (0, False)]
  if first[1] == second[1]:
    return 0
  return min(first[0], second[0])


# Chooses a branch of a conditional: (its op_name, how many there are) -> index.
Choose = Callable[[str, int], int]


@dataclasses.dataclass
class Estimate:
  """What one run of a computation takes, along one path through its branches.

  Attributes:
    cycles: of the instructions that have an estimate, by scope, see `scope_of`.
    parts: how many they are, by scope.
    waits: cycles spent waiting for copies, by scope.
    transfers: bytes copied between HBM and on-chip memory beside the instructions.
    collectives: for each kind, how often it is called, and the bytes that it returns on a chip, added up.
    loops: op_names of the serial loops on the path; what is in them counts as often as they turn.
  """

  cycles: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  parts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  waits: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
  transfers: int = 0
  collectives: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  loops: list[str] = dataclasses.field(default_factory=list)

  @property
  def total_cycles(self) -> float:
    return sum(self.cycles.values()) + sum(self.waits.values())


class Clock:
  """HBM's bandwidth, shared by the instructions and the copies that run beside them, first come first served.

  Args:
    bytes_per_cycle: of HBM.
  """

  def __init__(self, bytes_per_cycle: float):
    self._rate = bytes_per_cycle
    self._pending: dict[str, float] = {}  # bytes that each copy has yet to move, oldest first

  def start(self, name: str, size: int) -> None:
    """A copy of `size` bytes is issued."""
    self._pending[name] = size

  def run(self, cycles: float, size: int) -> None:
    """An instruction runs, which itself reads and writes `size` bytes of HBM."""
    self._move(max(cycles * self._rate - size, 0.0))

  def wait(self, name: str) -> float:
    """Cycles until a copy is through, those before it included."""
    if name not in self._pending:
      return 0.0
    left = 0.0
    for other, size in self._pending.items():
      left += size
      if other == name:
        break
    self._move(left)
    return left / self._rate

  def _move(self, room: float) -> None:
    for name in list(self._pending):
      moved = min(self._pending[name], room)
      self._pending[name] -= moved
      room -= moved
      if self._pending[name] > 0:
        return
      del self._pending[name]


# The scopes that a step is told apart by; what is in none of them is bookkeeping.
SCOPES = ("embed", "cache_write", "attention", "feed_forward", "logits", "sample")
OTHER = "interpreter"


def scope_of(op_name: str) -> str:
  """The part of the decoder that an instruction belongs to; the innermost named one."""
  names = [part for part in op_name.split("/") if part in SCOPES]
  return names[-1] if names else OTHER


def estimate(module: Module, computation: str, choose: Choose, bytes_per_cycle: float) -> Estimate:
  """Adds up one run of `computation`.

  Args:
    bytes_per_cycle: HBM's bandwidth.
  """
  result = Estimate()
  _add(module, computation, choose, result, Clock(bytes_per_cycle), "")
  return result


def _add(
  module: Module, computation: str, choose: Choose, result: Estimate, clock: Clock, inside: str
) -> None:
  name = inside
  shapes = {i.name: i.shape for i in module.computations[computation]}
  for instruction in module.computations[computation]:
    # An instruction without a name was made for its neighbours: a copy that an operand needs, say.
    name = instruction.op_name or name
    scope = scope_of(name)
    if (cycles := instruction.cycles) is not None:
      result.cycles[scope] += cycles
      result.parts[scope] += 1
      touched = [instruction.shape, *(shapes.get(o, "") for o in instruction.operands)]
      clock.run(cycles, sum(size for t in touched for size, on_chip in arrays(t) if not on_chip))
    if size := transfer_bytes(instruction):
      result.transfers += size
      clock.start(f"{computation}/{instruction.name}", size)
    elif instruction.opcode.endswith("-done"):
      result.waits[scope] += clock.wait(f"{computation}/{instruction.operands[0]}")
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
      calls, moved = result.collectives.get(kind, (0, 0))
      size = max((b for b, _ in arrays(instruction.shape)), default=0)
      result.collectives[kind] = calls + 1, moved + size
    if instruction.opcode == "while":
      result.loops.append(name)
      for _ in range(trip_count(module, instruction) or 1):
        _add(module, instruction.called("body") or "", choose, result, clock, name)
    elif instruction.opcode == "conditional":
      branches = instruction.branches
      where = instruction.op_name or _first_name(module, branches) or name
      _add(module, branches[choose(where, len(branches))], choose, result, clock, where)
    elif instruction.opcode == "call" and (target := instruction.called("to_apply")):
      _add(module, target, choose, result, clock, name)


def _first_name(module: Module, computations: Sequence[str]) -> str:
  """Where a conditional comes from that does not say so itself: names inside its branches tell."""
  names = (i.op_name for c in reversed(computations) for i in module.computations[c] if "/" in i.op_name)
  return next(names, "")


def trip_count(module: Module, loop: Instruction) -> int | None:
  """How often a counting loop turns: its condition is `i < constant`, from 0. None where it is another."""
  condition = module.computations.get(loop.called("condition") or "", ())
  root = next((i for i in reversed(condition) if i.opcode == "compare"), None)
  limits = [i for i in condition if i.opcode == "constant"]
  if root is None or len(condition) > 4 or len(limits) != 1 or "direction=LT" not in root.rest:
    return None
  number = re.match(r"(\d+)\)", limits[0].rest)
  return int(number[1]) if number else None


def step_bodies(module: Module, marker: str = "layer_0") -> list[str]:
  """The loop bodies that run the model, one per compiled width, in order.

  A segment of several widths is a loop of loops; the inner ones are the steps.

  Args:
    marker: scope that only the model has.
  """

  def runs_model(computation: str) -> bool:
    return any(f"/{marker}/" in i.rest for i in module.computations[computation])

  def within(computation: str) -> list[str]:
    bodies = [i.called("body") for i in module.computations[computation] if i.opcode == "while"]
    found: list[str] = []
    for body in filter(None, bodies):
      found += within(body) or ([body] if runs_model(body) else [])
    return found

  return within(module.entry)
