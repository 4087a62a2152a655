"""The reference interpreter: PASTA-LANG run step by step in plain Python, slow and obvious.

It drives any next-token function, one id per running thread and step, and is the oracle against which the
interpreter on the device (decode/interpreter.py) is tested.
"""

import dataclasses
from collections.abc import Callable, Sequence

from pasta_jax.lang.grammar import Kind, Limits, Phase, allowed_kinds, facts, grant
from pasta_jax.lang.marks import ControlIds

FORKS = ("eager", "grouped")
POSITIONS = ("pred10", "oracle", "fixed", "none", "max")

# (thread, index of the draw in its thread, kinds allowed) -> id
NextId = Callable[[int, int, Kind], int]


@dataclasses.dataclass(frozen=True)
class Fed:
  """One lane of one step: which id a thread fed at which position, and what it drew."""

  thread: int
  fed: int
  position: int
  drawn: int


@dataclasses.dataclass
class Run:
  """What came of an answer.

  Attributes:
    main: ids of the main thread, without the one that ended it.
    chunks: body ids of each chunk.
    steps: the lanes of every step, after the prompt.
    end: the id that ended the main thread.
    cut: the budget was used up, so that only the end was left to draw.
    joined: for each chunk, the number of the sync that joined it, from 0; None: none did.
  """

  main: list[int]
  chunks: list[list[int]]
  steps: list[list[Fed]]
  end: int
  cut: bool
  joined: list[int | None]


@dataclasses.dataclass
class _Thread:
  number: int
  phase: Phase
  next_id: int
  position: int
  index: int = 0  # draws so far
  started: bool = True
  grant: int = 0
  body: list[int] = dataclasses.field(default_factory=list)


def interpret(
  next_id: NextId,
  kind_of: Callable[[int], Kind],
  controls: ControlIds,
  *,
  prompt_length: int,
  limit: int,
  limits: Limits | None = None,
  lanes: int = 16,
  fork: str = "eager",
  positions: str = "pred10",
  fixed: int = 64,
  true_lengths: Sequence[int] | None = None,
  ends: bool = True,
  stop_ids: Sequence[int] = (),
) -> Run:
  """Runs one answer.

  Args:
    next_id: draws the id of a thread; called once per running thread and step, and for the first id.
    kind_of: kinds of an id, see grammar.token_kinds; of those that may end an answer, END for the ones that
      end this.
    prompt_length: tokens of the prompt; the first id of the answer has this position.
    limit: ids to draw at most, over all threads.
    lanes: threads that can run at a time.
    fork, positions, fixed: see the design, section 4.
    true_lengths: body lengths of the chunks, for positions="oracle".
    ends: whether the answer may end before its budget does.
    stop_ids: ids of text that end the main thread as well.
  """
  return _Interpreter(next_id, kind_of, controls, limits or Limits(), lanes, fork, positions, fixed,
                      true_lengths or (), ends, frozenset(stop_ids)).run(prompt_length, limit)  # fmt: skip


class _Interpreter:
  def __init__(
    self, next_id, kind_of, controls, limits, lanes, fork, positions, fixed, true_lengths, ends, stop_ids
  ):
    self.next_id, self.kind_of, self.controls = next_id, kind_of, controls
    self.limits, self.lanes, self.fork = limits, lanes, fork
    self.positions, self.fixed, self.true_lengths = positions, fixed, true_lengths
    self.ends, self.stop_ids = ends, stop_ids

  def run(self, prompt_length: int, limit: int) -> Run:
    self.left = limit
    self.main = _Thread(0, Phase.MAIN, -1, prompt_length)
    self.chunks: list[_Thread] = []
    self.round_start = 0
    self.syncs = 0
    self.skip = 0  # positions that the main thread jumps after it has fed its next id
    self.pieces = self.words = 0
    self.result = Run([], [], [], -1, False, [])
    self.draw(self.main)  # the prompt's last token predicts the first id
    while running := self.running():
      # Everything is fed before anything is drawn, as in one step of the model.
      step = [(t, t.next_id, self.feed(t)) for t in running]
      self.result.steps.append([Fed(t.number, fed, at, self.draw(t)) for t, fed, at in step])
    self.result.chunks = [t.body for t in self.chunks]
    return self.result

  def running(self) -> list[_Thread]:
    """The threads of the next step: the main thread first, then chunks by number, as lanes allow."""
    chunks = [t for t in self.chunks if t.started and t.phase == Phase.CHUNK]
    main = []
    if self.main.phase in (Phase.MAIN, Phase.TOPIC):
      main = [self.main]
    elif self.main.phase == Phase.WAIT:
      # The sync can be fed with the last `</async>`: keys are written before anyone attends.
      closing = all(t.next_id == self.controls.close for t in chunks)
      if not chunks or (closing and len(chunks) < self.lanes):
        main = [self.main]
    return (main + chunks)[: self.lanes]

  def feed(self, t: _Thread) -> int:
    """Feeds a thread's next id; returns its position."""
    if t is self.main and t.phase == Phase.WAIT:
      self.join()
    position = t.position
    t.position += 1
    if t is self.main:
      t.position += self.skip
      self.skip = 0
    return position

  def join(self) -> None:
    """The main thread feeds `<sync/>`: from now on it sees the round's chunks."""
    joined = self.chunks[self.round_start :]
    for t in joined:
      self.left += t.grant - len(t.body)
      self.result.joined[t.number - 1] = self.syncs
      if self.positions == "max":
        closing = t.phase == Phase.CHUNK  # feeds `</async>` in this same step, after the main thread
        self.main.position = max(self.main.position, t.position + closing)
    self.syncs += 1
    self.round_start = len(self.chunks)
    self.main.phase = Phase.MAIN

  def draw(self, t: _Thread) -> int:
    """Draws what follows a thread's last id."""
    if t.next_id == self.controls.close:
      t.phase = Phase.ENDED
      return -1  # nothing follows
    drawn = self.next_id(t.number, t.index, allowed_kinds(t.phase, self.facts(t)))
    t.index += 1
    t.next_id = drawn
    (self.main_drew if t is self.main else self.chunk_drew)(t, drawn)
    return drawn

  def facts(self, t: _Thread) -> dict:
    return facts(self.limits, {
      "left": self.left, "ends": self.ends, "opened": len(self.chunks), "round_start": self.round_start,
      "pieces": self.pieces, "words": self.words, "body": len(t.body), "grant": t.grant,
    })  # fmt: skip

  def main_drew(self, t: _Thread, drawn: int) -> None:
    kind = self.kind_of(drawn)
    self.left -= 1
    if t.phase == Phase.MAIN and (kind & Kind.END or drawn in self.stop_ids):
      self.result.end, self.result.cut = drawn, self.left <= 0
      self.end()
      return
    self.result.main.append(drawn)
    if kind & Kind.PROMISE:
      t.phase, self.pieces, self.words = Phase.TOPIC, 0, 0
    elif kind & Kind.SYNC:
      t.phase = Phase.WAIT
      self.fork_round()
    elif kind & Kind.LEN:
      t.phase = Phase.MAIN
      self.open(self.controls.length(drawn))
    elif t.phase == Phase.TOPIC:
      self.words += bool(kind & Kind.WORD) or self.pieces == 0
      self.pieces += 1

  def open(self, promised: int) -> None:
    """The main thread drew the length id that closes a promise."""
    number = len(self.chunks) + 1
    granted = grant(self.limits, promised, self.left, min, max)
    self.left -= granted + 1  # the body, and what closes it
    start = self.main.position + 1
    chunk = _Thread(
      number, Phase.CHUNK, self.controls.open, start, started=self.fork == "eager", grant=granted
    )
    self.chunks.append(chunk)
    self.result.joined.append(None)
    self.skip = {
      "pred10": lambda: promised,
      "oracle": lambda: self.true_lengths[number - 1],
      "fixed": lambda: self.fixed,
      "none": lambda: 0,
      "max": lambda: 0,
    }[self.positions]()

  def chunk_drew(self, t: _Thread, drawn: int) -> None:
    if drawn != self.controls.close:
      t.body.append(drawn)
    elif self.main.phase == Phase.ENDED:
      t.phase = Phase.ENDED  # nobody will see its `</async>`

  def end(self) -> None:
    self.main.phase = Phase.ENDED
    self.fork_round()
    for t in self.chunks:
      if t.next_id == self.controls.close:
        t.phase = Phase.ENDED

  def fork_round(self) -> None:
    for t in self.chunks:
      t.started = True
