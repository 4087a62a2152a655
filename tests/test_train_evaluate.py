"""Evaluation: losses by class, precision and recall of marks, errors of lengths, counted by hand."""

import numpy as np
import pytest

from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.lang.sequence import NO_TARGET, Target
from pasta_jax.train.evaluate import Tally, eval_batches, evaluate
from pasta_jax.train.packing import Layout, lay_out
from pasta_jax.train.rows import Row
from tests.toy import ByteTokenizer

TOKENIZER = ByteTokenizer(marks=True)
C = TOKENIZER.controls
SPLIT = Document.of(
  [Text("Two: "), Chunk("cat", 10, "a cat"), Chunk("dog", 10, "a dog!"), Sync(), Text(" end")]
)


def examples(count=5):
  return [lay_out(Row(f"x:{n}", f"prompt {n}", SPLIT), TOKENIZER, Layout()) for n in range(count)]


def perfect(batch):
  return {"nll": np.zeros(batch["target"].shape), "best": batch["target"].copy()}


def test_every_held_out_document_is_in_the_batches_once():
  batches = eval_batches(examples(), 2, 150)
  ends = sum((b["kind"] == Target.END).sum() for b in batches)
  assert ends == 5
  assert {b["ids"].shape for b in batches} == {(2, 150)}


def test_a_perfect_model_has_no_loss_and_full_marks():
  metrics = evaluate(eval_batches(examples(), 2, 150), perfect, C)
  assert metrics["loss"] == 0
  for mark in ("promise", "close", "sync"):
    assert metrics[f"precision_{mark}"] == metrics[f"recall_{mark}"] == 1
  assert metrics["length_error"] == 0


def test_losses_are_means_by_class_of_target():
  def run(batch):
    return perfect(batch) | {"nll": np.where(batch["target"] == NO_TARGET, 99.0, batch["kind"])}

  metrics = evaluate(eval_batches(examples(), 2, 150), run, C)
  for target in Target:
    if target != Target.NONE:
      assert metrics[f"loss_{target.name.lower()}"] == target
  kinds = np.concatenate([e.sequence.kind[e.sequence.target != NO_TARGET] for e in examples()])
  assert metrics["loss"] == pytest.approx(kinds.mean())


def test_precision_recall_and_length_errors_count_what_is_likeliest():
  def run(batch):
    best = batch["target"].copy()
    first = np.flatnonzero(best == C.promise)[0]
    best.flat[first] = ord("x")  # one promise is missed
    text = np.flatnonzero((batch["kind"] == Target.TEXT) & (batch["target"] == ord("T")))[:2]
    best.flat[text] = C.promise  # two come where text is
    length = np.flatnonzero(batch["kind"] == Target.LENGTH)[0]
    best.flat[length] = C.length_id(60)  # 10 was promised
    return perfect(batch) | {"best": best}

  batches = eval_batches(examples(), 5, 150)
  metrics = evaluate(batches, run, C)
  assert metrics["recall_promise"] == pytest.approx(9 / 10)
  assert metrics["precision_promise"] == pytest.approx(9 / 11)
  assert metrics["recall_sync"] == 1
  assert metrics["length_error"] == pytest.approx(50 / 10)


def test_the_twin_has_losses_alone():
  twin = [lay_out(e.row, TOKENIZER, Layout(twin=True)) for e in examples()]
  metrics = evaluate(eval_batches(twin, 2, 150), perfect, None)
  assert set(metrics) == {"loss", "loss_text", "loss_end"}


def test_nothing_to_evaluate_is_no_error():
  assert Tally().metrics() == {"loss": 0.0}
