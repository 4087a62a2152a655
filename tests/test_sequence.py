"""Training sequences against a slow, obvious reading of the design's section 4."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_jax.lang.interpreter import FORKS, POSITIONS
from pasta_jax.lang.marks import LENGTHS, MARKS, ControlIds
from pasta_jax.lang.sequence import NEVER, NO_TARGET, Target, threads_of, training_sequence
from pasta_jax.lang.threads import Threads, problems

CONTROLS = ControlIds.of(range(1000, 1000 + len(MARKS)))
END = 999
FIXED = 7

ids = st.lists(st.integers(0, 9), max_size=4)
some_ids = st.lists(st.integers(0, 9), min_size=1, max_size=3)
prompts = st.lists(st.integers(0, 9), min_size=1, max_size=5)
# ("text", ids) | ("chunk", topic, length, body) | ("sync",)
texts = st.tuples(st.just("text"), ids)
chunks = st.tuples(
  st.just("chunk"),
  some_ids,
  st.sampled_from(LENGTHS[:3]),
  st.lists(st.integers(0, 9), min_size=1, max_size=25),
)


@st.composite
def scripts(draw):
  """The parts of a document; a sync only where a chunk was opened since the last one."""
  parts, opened = [], False
  for part in draw(st.lists(texts | chunks | st.just(("sync",)), max_size=9)):
    if part[0] == "sync" and not opened:
      continue
    opened = part[0] == "chunk" or (opened and part[0] != "sync")
    parts.append(part)
  return parts


def threads(script) -> Threads:
  main: list[int] = []
  bodies = []
  for part in script:
    if part[0] == "text":
      main += part[1]
    elif part[0] == "sync":
      main.append(CONTROLS.sync)
    else:
      main += [CONTROLS.promise, *part[1], CONTROLS.length_id(part[2])]
      bodies.append(tuple(part[3]))
  return Threads(tuple(main), tuple(bodies))


class Slow:
  """The sequence of a script, token by token.

  Attributes:
    tokens: (id, thread, position, target, kind) each.
    closes: of each chunk, the time of the id that closes its promise.
    before: of each chunk, the time of the last main id before the round's bodies.
    joins: of each chunk, the time of the sync that joins it, or None.
  """

  def __init__(self, prompt, script, scheme: str, lengths=None):
    self.tokens: list[list[int]] = []
    self.closes: list[int] = []
    self.before: list[int] = []
    self.joins: list[int | None] = []
    self.last_main = -1
    self.round: list[tuple[int, int, list[int]]] = []  # chunk, first position, body
    self.position = 0
    for i in prompt:
      self.main(i, Target.NONE)
    for part in script:
      if part[0] == "text":
        for i in part[1]:
          self.main(i, Target.TEXT)
      elif part[0] == "chunk":
        self.main(CONTROLS.promise, Target.MARK)
        for i in part[1]:
          self.main(i, Target.TOPIC)
        self.main(CONTROLS.length_id(part[2]), Target.LENGTH)
        self.closes.append(self.last_main)
        self.round.append((len(self.closes), self.position, part[3]))
        true = lengths[len(self.closes) - 1] if lengths else len(part[3])
        self.position += {"pred10": part[2], "oracle": true, "fixed": FIXED, "none": 0, "max": 0}[scheme]
      else:
        longest = max(first + 1 + len(body) + 1 for _, first, body in self.round)
        joined = len(self.round)
        self.bodies()
        if scheme == "max":
          self.position = max(self.position, longest)
        self.main(CONTROLS.sync, Target.MARK)
        self.joins += [self.last_main] * joined
    open_chunks = len(self.round)
    self.bodies()
    self.joins += [None] * open_chunks
    self.tokens[self.last_main][3:] = [END, Target.END]
    for t in self.tokens[: len(prompt) - 1]:
      t[3:] = [NO_TARGET, Target.NONE]

  def main(self, i: int, kind: int) -> None:
    if self.last_main >= 0:
      self.tokens[self.last_main][3:] = [i, kind]
    self.last_main = len(self.tokens)
    self.tokens.append([i, 0, self.position, NO_TARGET, Target.NONE])
    self.position += 1

  def bodies(self) -> None:
    """The chunks of the round, one after the other."""
    for chunk, first, body in self.round:
      row = [CONTROLS.open, *body, CONTROLS.close]
      targets = [*body, CONTROLS.close, NO_TARGET]
      kinds = [Target.TEXT] * len(body) + [Target.MARK, Target.NONE]
      for n, i in enumerate(row):
        self.tokens.append([i, chunk, first + n, targets[n], kinds[n]])
      self.before.append(self.last_main)
    self.round = []

  def sees(self, q: int, k: int, fork: str) -> bool:
    q_chunk, k_chunk = self.tokens[q][1], self.tokens[k][1]
    if k > q:
      return False
    if q_chunk == k_chunk:
      return True
    if not q_chunk:  # the main thread sees a chunk from its sync on
      join = self.joins[k_chunk - 1]
      return join is not None and q >= join
    # A chunk sees what the main thread saw when its promise closed, or when the round was forked.
    horizon = (self.closes if fork == "eager" else self.before)[q_chunk - 1]
    if not k_chunk:
      return k <= horizon
    join = self.joins[k_chunk - 1]
    return join is not None and join <= horizon


cases = st.fixed_dictionaries({"fork": st.sampled_from(FORKS), "positions": st.sampled_from(POSITIONS)})


@settings(max_examples=300, deadline=None)
@given(prompts, scripts(), cases)
def test_every_token_is_where_the_design_puts_it(prompt, script, case):
  sequence = training_sequence(prompt, threads(script), CONTROLS, END, fixed=FIXED, **case)
  slow = Slow(prompt, script, case["positions"])
  got = zip(sequence.ids, sequence.thread, sequence.position, sequence.target, sequence.kind)
  assert [list(map(int, row)) for row in got] == slow.tokens
  assert sequence.weight.tolist() == [float(t[3] != NO_TARGET) for t in slow.tokens]
  assert sequence.prompt == len(prompt)
  assert len(sequence) == len(slow.tokens)
  dtypes = {
    f: getattr(sequence, f).dtype.name for f in ("ids", "thread", "visible_at", "horizon", "position")
  }
  assert set(dtypes.values()) == {"int32"}


@settings(max_examples=150, deadline=None)
@given(prompts, scripts(), st.sampled_from(FORKS))
def test_who_sees_whom_is_what_the_design_says(prompt, script, fork):
  sequence = training_sequence(prompt, threads(script), CONTROLS, END, fork=fork)
  slow = Slow(prompt, script, "pred10")
  n = len(sequence)
  assert sequence.mask().tolist() == [[slow.sees(q, k, fork) for k in range(n)] for q in range(n)]


@settings(max_examples=150, deadline=None)
@given(prompts, scripts(), st.sampled_from(FORKS))
def test_the_three_integers_are_those_of_the_table(prompt, script, fork):
  sequence = training_sequence(prompt, threads(script), CONTROLS, END, fork=fork)
  slow = Slow(prompt, script, "pred10")
  for time, token in enumerate(slow.tokens):
    chunk = token[1] - 1
    if chunk < 0:
      expected = (time, time)
    else:
      join = slow.joins[chunk]
      expected = (NEVER if join is None else join, (slow.closes if fork == "eager" else slow.before)[chunk])
    assert (sequence.visible_at[time], sequence.horizon[time]) == expected


@settings(max_examples=150, deadline=None)
@given(prompts, scripts(), cases)
def test_a_sequence_says_its_document(prompt, script, case):
  document = threads(script)
  assert not problems(document, CONTROLS)
  sequence = training_sequence(prompt, document, CONTROLS, END, **case)
  assert threads_of(sequence) == (tuple(prompt), document)


@settings(max_examples=100, deadline=None)
@given(prompts, scripts(), st.data())
def test_oracle_positions_take_lengths_that_are_given(prompt, script, data):
  document = threads(script)
  lengths = [data.draw(st.integers(1, 40)) for _ in document.chunks]
  sequence = training_sequence(prompt, document, CONTROLS, END, positions="oracle", true_lengths=lengths)
  slow = Slow(prompt, script, "oracle", lengths)
  assert sequence.position.tolist() == [t[2] for t in slow.tokens]


def test_a_small_document_is_laid_out_as_in_the_drawing():
  document = threads(
    [("text", [1, 2]), ("chunk", [3], 20, [4, 5]), ("chunk", [6], 30, [7]), ("sync",), ("text", [8])]
  )
  sequence = training_sequence([0], document, CONTROLS, END)
  promise, start, close, sync = CONTROLS.promise, CONTROLS.open, CONTROLS.close, CONTROLS.sync
  len20, len30 = CONTROLS.length_id(20), CONTROLS.length_id(30)
  assert sequence.ids.tolist() == [
    0, 1, 2, promise, 3, len20, promise, 6, len30, start, 4, 5, close, start, 7, close, sync, 8,
  ]  # fmt: skip
  assert sequence.thread.tolist() == [0] * 9 + [1] * 4 + [2] * 3 + [0] * 2
  assert sequence.position.tolist() == [*range(6), 26, 27, 28, 6, 7, 8, 9, 29, 30, 31, 59, 60]
  assert sequence.target.tolist() == [
    1, 2, promise, 3, len20, promise, 6, len30, sync, 4, 5, close, -1, 7, close, -1, 8, END,
  ]  # fmt: skip
  assert sequence.visible_at.tolist() == [*range(9), *[16] * 7, 16, 17]
  assert sequence.horizon.tolist() == [*range(9), *[5] * 4, *[8] * 3, 16, 17]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"prompt": []}, "a prompt of at least one id"),
    ({"fork": "late"}, "fork must be eager or grouped, got 'late'"),
    ({"positions": "pred"}, "positions must be one of pred10, oracle, fixed, none, max; got 'pred'"),
    ({"threads": Threads((1,), ((2,),))}, "0 promises, but 1 chunks"),
    ({"positions": "oracle", "true_lengths": []}, "0 true lengths for 1 chunks"),
  ],
)
def test_what_cannot_be_laid_out_is_refused(change, message):
  given = {"prompt": [1], "threads": threads([("chunk", [1], 10, [2])]), "controls": CONTROLS, "end_id": END}
  with pytest.raises(ValueError, match=message):
    training_sequence(**{**given, **change})
