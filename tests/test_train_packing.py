"""Packing: every document once per epoch, in rows that fit; the same batches from the same state."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.lang.sequence import NO_TARGET, Target, training_sequence
from pasta_jax.lang.threads import encode_document
from pasta_jax.train.packing import Layout, Loader, State, fill, lay_out, lay_out_all, pack
from pasta_jax.train.rows import Row
from tests.toy import ByteTokenizer

TOKENIZER = ByteTokenizer(marks=True)
SPLIT = Document.of(
  [Text("Two: "), Chunk("cat", 10, "a cat"), Chunk("dog", 10, "a dog"), Sync(), Text(" end")]
)


def rows_of(count, seed=0):
  rng = np.random.default_rng(seed)
  return [
    Row(f"x:{n}", f"prompt {n}", SPLIT if n % 2 else Document.of([Text("x" * int(rng.integers(1, 60)))]))
    for n in range(count)
  ]


def loader_of(count=40, weights=(1.0,), layout=None, **changes):
  values = {"batch": 3, "length": 160, "seed": 5} | changes
  sources = [
    (lay_out_all(rows_of(count, seed=n), TOKENIZER, layout or Layout(), values["length"])[0], weight)
    for n, weight in enumerate(weights)
  ]
  return Loader(sources, **values)


@given(st.lists(st.integers(1, 50), max_size=200))
@settings(max_examples=50, deadline=None)
def test_every_document_lies_in_one_row_and_rows_hold_what_fits(rooms):
  rows = pack(rooms, 50)
  assert sorted(i for row in rows for i in row) == list(range(len(rooms)))
  assert all(0 < sum(rooms[i] for i in row) <= 50 for row in rows)


def test_a_packed_row_holds_each_sequence_as_it_is():
  examples = [lay_out(row, TOKENIZER, Layout()) for row in rows_of(3)]
  batch = fill([examples[:2], examples[2:]], 3, 200)
  at = 0
  for number, example in enumerate(examples[:2], start=1):
    s = example.sequence
    span = slice(at, at + len(s))
    for name in ("ids", "thread", "visible_at", "horizon", "position", "target", "kind", "time", "weight"):
      assert np.array_equal(batch[name][0, span], getattr(s, name)), name
    assert (batch["segment"][0, span] == number).all()
    at += len(s)
  assert (batch["segment"][0, at:] == 0).all()
  assert (batch["target"][0, at:] == NO_TARGET).all()
  assert (batch["weight"][0, at:] == 0).all()
  assert (batch["segment"][2] == 0).all()  # an empty row
  assert {x.dtype for n, x in batch.items() if n != "weight"} == {np.dtype(np.int32)}


def test_a_layout_is_the_training_sequence_of_prompt_and_document():
  row = Row("x:1", "hello", SPLIT)
  for fork, positions in (("eager", "pred10"), ("grouped", "max")):
    got = lay_out(row, TOKENIZER, Layout(fork=fork, positions=positions)).sequence
    threads = encode_document(SPLIT, TOKENIZER.encode, TOKENIZER.controls)
    expected = training_sequence(
      list(b"hello"), threads, TOKENIZER.controls, TOKENIZER.stop_ids[0], fork=fork, positions=positions
    )
    for field in dataclasses.fields(expected):
      assert np.array_equal(getattr(got, field.name), getattr(expected, field.name)), field.name
  assert got.target[got.kind == Target.END].tolist() == [256]


def test_weights_by_class():
  layout = Layout(class_weights=(("mark", 3.0), ("text", 0.5)))
  s = lay_out(Row("x:1", "hello", SPLIT), TOKENIZER, layout).sequence
  assert set(s.weight[s.kind == Target.MARK]) == {3.0}
  assert set(s.weight[s.kind == Target.TEXT]) == {0.5}
  assert set(s.weight[s.kind == Target.LENGTH]) == {1.0}
  assert set(s.weight[s.target == NO_TARGET]) == {0.0}


def test_an_epoch_has_every_document_once_and_another_order_than_the_next():
  loader = loader_of()
  orders = []
  for epoch in range(2):
    seen = []
    while loader.state.epoch == epoch:
      seen.append(loader.next()["ids"])
    assert len(seen) == loader.batches_of(epoch)
    rows = [e.row.where for row in loader.rows_of(epoch) for e in row]
    assert sorted(rows) == sorted(r.where for r in rows_of(40))
    orders.append(rows)
  assert orders[0] != orders[1]


def test_batches_follow_from_the_state_alone():
  one = loader_of()
  batches = [(one.state, one.next()) for _ in range(30)]
  assert one.state.epoch >= 2
  other = loader_of()
  for state, batch in reversed(batches):
    other.state = State(**dataclasses.asdict(state))
    again = other.next()
    assert all(np.array_equal(again[name], batch[name]) for name in batch)
  different = loader_of(seed=6).next()
  assert not np.array_equal(different["ids"], batches[0][1]["ids"])


def test_mixing_weights_are_how_often_an_epoch_has_a_file():
  loader = loader_of(40, weights=(2.0, 0.25, 0.0))
  counts, quarters = [], []
  files = [{id(e) for e in examples} for examples, _ in loader.sources]
  for epoch in range(2):
    chosen = [id(e) for row in loader.rows_of(epoch) for e in row]
    counts.append([sum(c in f for c in chosen) for f in files])
    quarters.append({c for c in chosen if c in files[1]})
  assert counts == [[80, 10, 0]] * 2
  assert quarters[0] != quarters[1]


def test_the_twin_has_the_same_rows_in_the_same_batches_without_marks():
  pasta, twin = loader_of(), loader_of(layout=Layout(twin=True))
  marks = TOKENIZER.controls.all
  for epoch in range(2):
    places = [[[e.row.where for e in row] for row in loader.rows_of(epoch)] for loader in (pasta, twin)]
    assert places[0] == places[1]
  for _ in range(5):
    batch = twin.next()
    assert not np.isin(batch["ids"], marks).any()
    assert not np.isin(batch["target"], marks).any()
    assert not batch["thread"].any()
  example = lay_out(Row("x:1", "hello", SPLIT), TOKENIZER, Layout(twin=True))
  assert TOKENIZER.decode(example.sequence.ids[5:].tolist()) == SPLIT.plain


def test_documents_that_do_not_fit_are_named():
  examples, too_long, bad = lay_out_all(rows_of(4), TOKENIZER, Layout(), 40)
  assert len(examples) + len(too_long) == 4
  assert any(where.startswith("x:1 (") for where in too_long)
  assert not bad


def chunks(count, topic="cat", body="a cat"):
  return [Chunk(topic, 10, body)] * count


@pytest.mark.parametrize(
  ("good", "bad", "message"),
  [
    (chunks(1, body="x" * 384), chunks(1, body="x" * 385), "chunk 1 has 385 tokens, decoding allows 384"),
    (chunks(16), chunks(17), "round 1 has 17 chunks, decoding allows 16"),
    (
      [*chunks(16), Sync(), *chunks(16)],
      [*chunks(16), Sync(), *chunks(15), Sync(), *chunks(2)],
      "the answer has 33 chunks, decoding allows 32",
    ),
  ],
)
@pytest.mark.parametrize("twin", [False, True])
def test_documents_that_the_decoder_cannot_draw_are_bad(good, bad, message, twin):
  rows = [Row(f"x:{n}", "hello", Document.of([Text("So: "), *parts])) for n, parts in enumerate((good, bad))]
  examples, too_long, problems = lay_out_all(rows, TOKENIZER, Layout(twin=twin), 10**6)
  assert [e.row.where for e in examples] == ["x:0"]
  assert (too_long, problems) == ([], {"x:1": f"document: {message}"})


def test_topics_are_cut_where_decoding_ends_them_and_keep_their_room():
  long = Document.of([Text("So: "), *chunks(1, "abcdefgh"), *chunks(1, "123456789 12")])
  short = Document.of([Text("So: "), *chunks(1, "abcdefgh"), *chunks(1, "12345678")])
  rows = [Row(f"x:{n}", "hello", d) for n, d in enumerate((long, short))]
  cut, as_it_is = lay_out_all(rows, TOKENIZER, Layout(), 200)[0]
  assert (cut.cut, as_it_is.cut) == (1, 0)
  for field in dataclasses.fields(cut.sequence):
    assert np.array_equal(getattr(cut.sequence, field.name), getattr(as_it_is.sequence, field.name))
  assert cut.room == as_it_is.room + 4 == len(lay_out(rows[0], TOKENIZER, Layout()).sequence)


def test_no_documents_are_refused():
  with pytest.raises(ValueError, match="no documents"):
    Loader([([], 1.0)], batch=1, length=8, seed=0)
