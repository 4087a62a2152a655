"""Token form: there and back, what breaks it, its figures, and the one grammar table."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_jax.decode import interpreter as device
from pasta_jax.lang import grammar, interpreter, parse
from pasta_jax.lang import threads as threads_module
from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.lang.grammar import RULES, Kind, Limits, Phase, allowed_unbounded, token_kinds
from pasta_jax.lang.interpreter import FORKS, interpret
from pasta_jax.lang.marks import LENGTHS, MARKS, ControlIds, rounded
from pasta_jax.lang.stats import critical_path, document_stats, schedule
from pasta_jax.lang.threads import Threads, decode_threads, encode_document, problems
from pasta_jax.lang.words import CONTROLS, END_ID, Words
from tests.documents import documents

C = CONTROLS
W = END_ID + 1  # any word
LEN = C.lens[1]


@settings(max_examples=150, deadline=None)
@given(documents())
def test_a_document_is_encoded_and_decoded(document):
  words = Words()
  threads = encode_document(document, words.encode, C, recompute_lengths=False)
  assert not problems(threads, C)
  assert decode_threads(threads, words.decode, C) == document


def test_lengths_are_recomputed_for_the_tokenizer():
  document = Document.of([Chunk("a", 320, "w " * 34), Text(" "), Chunk("b", 10, "w " * 999)])
  threads = encode_document(document, Words().encode, C)
  assert [C.length(i) for i in threads.main if i in C.lens] == [40, 320]


@pytest.mark.parametrize(
  ("tokens", "length"), [(0, 10), (1, 10), (10, 10), (11, 20), (320, 320), (10**9, 320)]
)
def test_lengths_are_rounded_up_to_tens_within_bounds(tokens, length):
  assert rounded(tokens) == length
  assert C.length(C.length_id(tokens)) == length


def test_control_ids_are_checked():
  assert C.all == tuple(range(len(MARKS)))
  assert [C.length(i) for i in C.lens] == list(LENGTHS)
  with pytest.raises(ValueError, match="expected 36 control ids, got 3"):
    ControlIds.of([1, 2, 3])
  with pytest.raises(ValueError, match="distinct"):
    ControlIds.of([1] * len(MARKS))


@pytest.mark.parametrize(
  ("threads", "message"),
  [
    (Threads((W, C.sync)), "main id 1: a sync, but no chunk was opened since the last one"),
    (Threads((C.promise, LEN), ((W,),)), "main id 1: a promise without a topic"),
    (Threads((C.promise, W, C.sync, LEN), ((W,),)), "main id 2: a mark inside a promise"),
    (Threads((C.promise, C.open, W, LEN), ((W,),)), "main id 1: a mark inside a promise"),
    (Threads((LEN,)), "main id 0: a mark that cannot stand here"),
    (Threads((W, C.open)), "main id 1: a mark that cannot stand here"),
    (Threads((C.close,)), "main id 0: a mark that cannot stand here"),
    (Threads((C.promise, W)), "the main thread ends inside a promise"),
    (Threads((C.promise, W, LEN)), "1 promises, but 0 chunks"),
    (Threads((C.promise, W, LEN), ((),)), "chunk 1 is empty"),
    (Threads((C.promise, W, LEN), ((W, C.close),)), "chunk 1: a mark inside its body"),
  ],
)
def test_ids_that_are_no_document_are_told(threads, message):
  assert problems(threads, C) == [message]
  with pytest.raises(ValueError, match=message):
    decode_threads(threads, Words().decode, C)


def test_all_problems_of_ids_are_found():
  threads = Threads((C.sync, C.close, C.promise, LEN, C.promise, W), ((),))
  assert len(problems(threads, C)) == 5


# --- Figures.


def scripted(threads: Threads, fork: str):
  """Steps that the reference interpreter takes to say a document, with a lane for every thread."""
  rows = {0: [*threads.main, END_ID], **{k: [*b, C.close] for k, b in enumerate(threads.chunks, start=1)}}
  kinds = np.full(END_ID + 1000, Kind.TEXT | Kind.TOPIC | Kind.WORD, np.uint16)
  kinds[END_ID] = Kind.END
  for i, kind in (
    (C.promise, Kind.PROMISE),
    (C.close, Kind.CLOSE),
    (C.sync, Kind.SYNC),
    (list(C.lens), Kind.LEN),
  ):
    kinds[i] = kind
  return interpret(
    lambda thread, index, _: rows[thread][index],
    lambda i: Kind(int(kinds[i])),
    C,
    prompt_length=1,
    limit=10**6,
    lanes=len(rows),
    fork=fork,
  )


@settings(max_examples=150, deadline=None)
@given(documents(), st.sampled_from(FORKS))
def test_every_id_is_fed_in_the_step_that_the_schedule_says(document, fork):
  threads = encode_document(document, Words().encode, C)
  steps = schedule(threads, C, fork)
  expected = {0: list(steps.main)}
  for k, (start, body) in enumerate(zip(steps.chunks, threads.chunks), start=1):
    expected[k] = list(range(start, start + len(body) + 2))
  run = scripted(threads, fork)
  fed: dict[int, list[int]] = {k: [] for k in expected}
  for n, step in enumerate(run.steps, start=1):
    for lane in step:
      fed[lane.thread].append(n)
  last = max(steps.main, default=0)
  for k, when in expected.items():
    # What closes a chunk after the main thread's end need not be fed.
    assert fed[k] == (when[:-1] if k and when[-1] > last else when)
  assert critical_path(threads, C, fork) == len(run.steps)


def test_figures_of_a_document():
  chunks = [Chunk("by train", 20, "w " * 12), Chunk("by plane", 10, "w " * 4)]
  document = Document.of([Text("Two ways "), *chunks, Sync(), Text("So take it")])
  words = Words()
  threads = encode_document(document, words.encode, C)
  plain = len(words.encode(document.plain))
  stats = document_stats(threads, C, plain)
  # Two ways <promise> by train <len>, then 12 words and </async> beside <sync/>, then three more.
  assert stats.critical_path == 6 + 13 + 3
  assert (stats.chunks, stats.rounds, stats.body_ids, stats.main_ids) == (2, 1, 16, 2 + 4 + 4 + 1 + 3)
  assert stats.mark_ids == 2 * (4 + 2) + 1
  assert (stats.marks, stats.tokens_per_mark) == (7, 13 / 7)
  assert stats.position_error == (20 - 12, 10 - 4)
  assert stats.plain_tokens == 21
  assert stats.theoretical_speedup == 21 / 22
  assert document_stats(threads, C, plain, "grouped").critical_path == 10 + 14 + 3
  assert document_stats(Threads(()), C, 0).theoretical_speedup == 1.0


# --- The table.


def test_validators_and_interpreters_read_one_table(monkeypatch):
  assert device.RULES is grammar.RULES
  assert interpreter.allowed_kinds is grammar.allowed_kinds
  assert parse.allowed_unbounded is threads_module.allowed_unbounded is grammar.allowed_unbounded
  # Without its rule for syncs, the table has all of them refuse one.
  text, ids = parse.parse, Threads((C.promise, W, LEN, C.sync), ((W,),))
  annotated = '<promise topic="a" tokens="10"/><async>x</async><sync/>'
  assert text(annotated)
  assert not problems(ids, C)
  monkeypatch.setattr(grammar, "RULES", tuple(r for r in RULES if r.kind != Kind.SYNC))
  allowed_unbounded.cache_clear()
  try:
    with pytest.raises(parse.ParseError, match="found '<sync/>'"):
      text(annotated)
    assert problems(ids, C)
    assert not grammar.allowed_kinds(Phase.MAIN, dict.fromkeys(FACTS, True)) & Kind.SYNC
  finally:
    monkeypatch.undo()
    allowed_unbounded.cache_clear()


FACTS = {r.when for r in RULES}


def test_every_fact_of_the_table_is_computed():
  state = dict.fromkeys(("left", "opened", "round_start", "pieces", "words", "body", "grant"), 1) | {
    "ends": True
  }
  assert grammar.facts(Limits(), state).keys() == FACTS


@pytest.mark.parametrize(
  ("phase", "opened", "begun", "kinds"),
  [
    (Phase.MAIN, False, False, Kind.TEXT | Kind.END | Kind.PROMISE),
    (Phase.MAIN, True, False, Kind.TEXT | Kind.END | Kind.PROMISE | Kind.SYNC),
    (Phase.TOPIC, True, False, Kind.TOPIC | Kind.WORD),
    (Phase.TOPIC, False, True, Kind.TOPIC | Kind.WORD | Kind.LEN),
    (Phase.CHUNK, True, False, Kind.TEXT),
    (Phase.CHUNK, True, True, Kind.TEXT | Kind.CLOSE),
    (Phase.WAIT, True, True, Kind(0)),
    (Phase.ENDED, True, True, Kind(0)),
  ],
)
def test_what_may_be_drawn_in_a_phase(phase, opened, begun, kinds):
  assert allowed_unbounded(phase, opened, begun) == kinds


def test_kinds_of_ids_follow_what_they_say():
  pieces = [b"a", b" a", b" ", b"\n", b"a b", "é".encode(), b"\xc3", b"", b"<s>", b"</s>"]
  controls = ControlIds.of(range(10, 10 + len(MARKS)))
  kinds = token_kinds(
    10 + len(MARKS), lambda i: pieces[i] if i < 10 else b"", controls, stop_ids=[9], special_ids=[8, 9]
  )
  word, piece = Kind.TEXT | Kind.WORD, Kind.TEXT | Kind.TOPIC
  assert kinds[:10].tolist() == [
    piece,
    word,
    Kind.TEXT,
    Kind.TEXT,
    Kind.TEXT,
    piece,
    Kind.TEXT,
    0,
    Kind.OTHER,
    Kind.END,
  ]
  assert kinds[controls.open] == 0
  assert [kinds[i] for i in (controls.promise, controls.close, controls.sync)] == [
    Kind.PROMISE,
    Kind.CLOSE,
    Kind.SYNC,
  ]
  assert set(kinds[list(controls.lens)]) == {Kind.LEN}


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_limits_are_whole_numbers_from_one(value):
  with pytest.raises(ValueError, match="chunks must be an integer >= 1"):
    Limits(chunks=value)
