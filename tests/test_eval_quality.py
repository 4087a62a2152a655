"""What is measured of single answers: repetition, loops, validity, log-likelihood."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pasta_jax.eval import quality_likelihood
from pasta_jax.eval.quality import loops, repeated_grams, validity_problems
from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.lang.parse import parse
from pasta_jax.lang.sequence import Target, training_sequence
from pasta_jax.lang.threads import Threads, encode_document
from tests.scripted import DOCUMENT
from tests.toy import teacher_logits, toy_model


def test_repeated_grams_count_those_that_stood_before():
  assert repeated_grams([1, 2, 3, 4, 5]) == (0, 2)
  assert repeated_grams([1, 2, 3, 4, 1, 2, 3, 4]) == (1, 5)
  assert repeated_grams([7] * 10) == (6, 7)
  assert repeated_grams([1, 2, 3]) == (0, 0)


@given(st.lists(st.integers(0, 3), max_size=40))
def test_repeated_grams_are_a_share_of_all(ids):
  repeated, grams = repeated_grams(ids)
  assert grams == max(len(ids) - 3, 0)
  assert 0 <= repeated <= max(grams - 1, 0)


def test_a_run_that_stands_four_times_in_a_row_is_a_loop():
  head = list(range(100, 130))
  run = list(range(6))
  assert loops(head + run * 4 + [99], "")
  assert not loops(head + run * 3 + [99], "")
  assert loops([1] * 24, "")
  assert not loops([1] * 23, "")  # a rule of dashes, say
  assert not loops(list(range(500)), "")
  assert not loops([], "")


@given(st.integers(1, 64), st.integers(0, 20), st.integers(0, 20))
def test_loops_are_found_at_every_period_wherever_they_stand(period, before, after):
  head, tail = list(range(1000, 1000 + before)), list(range(2000, 2000 + after))
  run = list(range(period))
  times = max(4, -(-24 // period))
  assert loops(head + run * times + tail, "")
  assert not loops(head + run * 3 + run[:-1] + tail, "") or period == 1


def test_lines_that_differ_in_their_numbers_alone_are_a_loop():
  line = "**Eat fresh fruit daily**"
  text = f"Tips:\n1. {line}\n2. {line}\n3. {line}\n"
  assert loops([], text)
  assert loops([], text.replace("2. ", "- "))
  assert not loops([], f"1. {line}\n2. {line}\n3. Drink a lot of water")
  assert not loops([], "- yes\n- yes\n- yes\n- yes")  # short lines may well be the same


CONTROLS = toy_model(marks=True).tokenizer.controls


def ids_of(document):
  return encode_document(document, lambda text: list(text.encode()), CONTROLS)


def test_a_document_is_valid():
  document = parse(DOCUMENT.replace("\x1b", ""))
  assert validity_problems(document, ids_of(document), CONTROLS) == []


def test_what_makes_a_document_invalid_is_told():
  good = Document.of([Text("a "), Chunk("one", 10, "body"), Sync(), Text(" b")])
  ids = ids_of(good)
  found = validity_problems(good, dataclasses.replace(ids, chunks=()), CONTROLS)
  assert "promises, but 0 chunks" in found[0]
  assert "0 chunks were decoded, the document has 1" in found[1]
  long = Document.of([Chunk("far too many words", 10, "x")])
  assert "a topic has 1 to 3 words" in validity_problems(long, ids_of(long), CONTROLS)[0]
  twice = Document((Text("a"), Text("b")))
  assert any("reads back" in p for p in validity_problems(twice, Threads((97, 98)), CONTROLS))
  lonely = Document.of([Text("a"), Sync()])
  assert validity_problems(lonely, Threads((97, CONTROLS.sync)), CONTROLS)


@pytest.fixture(scope="module")
def model():
  return toy_model(marks=True, num_layers=1)


def expected(model, ids, start):
  logits = teacher_logits(model, ids)[start - 1 : -1].astype(np.float64)
  logits = logits[:, : model.tokenizer.vocab_size]
  chosen = logits[np.arange(len(logits)), ids[start:]]
  return float((np.log(np.exp(logits).sum(-1)) - chosen).sum())


def test_nats_of_plain_answers_are_those_of_one_causal_forward(model):
  texts = ["short", "a longer answer with more in it", "x", "z" * 140]
  prompts = ["Why?", "Tell me.", "What is it?", "p"]
  sequences = [
    quality_likelihood.plain_sequence(model.tokenizer, p, t) for p, t in zip(prompts, texts, strict=True)
  ]
  got = {i: (nll, tokens) for i, nll, tokens in quality_likelihood.text_nll(model, sequences)}
  assert sorted(got) == [0, 1, 2, 3]
  for i, (p, t) in enumerate(zip(prompts, texts, strict=True)):
    nll, tokens = got[i]
    assert tokens == len(t)
    assert nll == pytest.approx(expected(model, list((p + t).encode()), len(p)), rel=1e-5)


def test_an_answer_costs_the_same_in_any_batch(model, monkeypatch):
  rng = np.random.default_rng(0)
  texts = ["".join(map(chr, rng.integers(97, 122, n))) for n in (5, 30, 100, 180)]
  sequences = [quality_likelihood.plain_sequence(model.tokenizer, "Q", t) for t in texts]
  together = {i: nll for i, nll, _ in quality_likelihood.text_nll(model, sequences)}
  monkeypatch.setattr(quality_likelihood, "TOKENS", 256)
  apart = {i: nll for i, nll, _ in quality_likelihood.text_nll(model, sequences)}
  assert together == pytest.approx(apart, rel=1e-5)


def test_marks_topics_and_the_end_do_not_count(model):
  document = parse(DOCUMENT)
  ids = ids_of(document)
  sequence = training_sequence(list(b"Q"), ids, CONTROLS, 256)
  ((_, _, tokens),) = quality_likelihood.text_nll(model, [sequence])
  assert tokens == int((sequence.kind == Target.TEXT).sum()) == len(document.plain.encode())
