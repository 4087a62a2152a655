"""Figures from rows, their intervals, the table, and what the documentation says of their keys."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pasta_jax.eval.report import check_json_path, check_valid, table
from pasta_jax.eval.report_estimate import Estimate, estimate, geometric_mean, mean, ratio
from pasta_jax.eval.report_figures import set_figures, to_json
from pasta_jax.eval.suite_sets import Item, PromptSet
from pasta_jax.lang.parse import parse
from tests.scripted import DOCUMENT

DOC = Path(__file__).parent.parent / "docs" / "evaluation.md"


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
  rng = np.random.default_rng(1)
  hits = 0
  for _ in range(200):
    e = estimate(mean, rng.normal(3, 2, 50))
    assert e.low < e.value < e.high
    hits += e.low <= 3 <= e.high
  assert 180 <= hits <= 199


def test_estimates_of_known_columns():
  assert estimate(mean, [True, False, True, True]).value == 0.75
  assert estimate(geometric_mean, [1.0, 4.0]).value == pytest.approx(2)
  assert estimate(ratio, [1, 9], [2, 2]).value == 2.5
  same = estimate(mean, [0.5] * 7)
  assert (same.value, same.low, same.high, same.n) == (0.5, 0.5, 0.5, 7)
  assert estimate(mean, [1, 2, 5]) == estimate(mean, [1, 2, 5])


def test_what_cannot_be_told_is_null_and_resamples_without_it_do_not_count():
  assert estimate(mean, []) == Estimate(None)
  assert estimate(ratio, [0, 0], [0, 0]) == Estimate(None, n=2)
  assert estimate(mean, [3.0]) == Estimate(3.0, n=1)
  few = estimate(ratio, [30.0, 0, 0], [3, 0, 0])  # two of three answers have no chunk
  assert (few.value, few.low, few.high) == (10, 10, 10)


def row(chunks=0, plain=100, path=100, errors=(), reason="stop", problems=(), loops=False):
  return {
    "chunks": chunks, "rounds": min(chunks, 1), "plain_tokens": plain, "tokens": plain + 9,
    "critical_path": path, "theoretical_speedup": plain / path if path else 1.0,
    "position_error": list(errors), "finish_reason": reason, "problems": list(problems), "loops": loops,
    "repeated_grams": plain // 10, "grams": max(plain - 3, 0),
  }  # fmt: skip


def seconds(pasta, same, twin):
  pair = {"pasta": pasta, "same_text": same, "twin": twin}
  return {k: {"seconds": s + 1, "decode_seconds": s} for k, s in pair.items() if s}


@pytest.fixture(scope="module")
def figures():
  split, plain = parse(DOCUMENT), parse("No marks.")
  prompts = PromptSet(
    "held_out", "rows.jsonl", tuple(Item(str(n), "Q", d) for n, d in enumerate([split, split, plain, plain]))
  )
  answers = {
    "pasta": [
      row(3, 120, 40, (10, -20, 3)),
      row(),
      row(1, 80, 80, (11,), "length"),
      row(plain=0, path=0, problems=["broken"]),
    ],
    "twin": [row(), row(loops=True), row(), row()],
    "base": [row(), row(), row(), row()],
  }
  costs = [{"nll": 100.0 + n, "tokens": 50} for n in range(4)]
  times = {0: seconds(2, 4, 3), 1: seconds(5, 5, 5), 2: seconds(4, 2, 0)}
  return set_figures(
    prompts, answers, dict.fromkeys(("pasta", "twin", "base"), costs),
    {"pasta": [{"nll": 51.0, "tokens": 48}] * 4, "twin": [{"nll": 50.0, "tokens": 50}] * 4}, times,
  )  # fmt: skip


def test_figures_of_a_set_are_what_their_words_say(figures):
  p = figures["pasta"]
  assert (figures["prompts"], figures["reference_splits"]) == (4, 2)
  assert p["valid"].value == 0.75
  assert p["split"].value == 0.5
  assert p["split_where_reference_splits"].value == 0.5
  assert p["split_where_reference_does_not"].value == 0.5
  assert (p["chunks"].value, p["chunks_where_split"].value) == (1, 2)
  assert (p["rounds"].value, p["rounds_where_split"].value) == (0.5, 1)
  error = p["position_error"]
  assert (error["mean"].value, error["absolute"].value) == (1, 11)
  assert error["within_10"].value == 0.5
  assert p["plain_tokens"].value == 75
  assert p["repetition"].value == pytest.approx(30 / (117 + 97 + 77))
  assert p["log_likelihood"].value == pytest.approx(-406 / 200)
  assert p["finish_reasons"] == {"length": 1, "stop": 3}
  assert figures["twin"]["loops"].value == 0.25
  assert figures["text_loss"]["pasta_over_twin"].value == pytest.approx(51 / 48)
  assert figures["text_loss"]["pasta_over_twin_same_text"].value == pytest.approx(1.02)


def test_speedups_are_geometric_means_over_the_prompts_that_they_name(figures):
  s = figures["speed"]
  assert s["timed"] == 3
  assert s["theoretical"]["all"].value == pytest.approx(3 ** (1 / 3))  # 3, 1, 1; an empty answer has none
  assert s["theoretical"]["where_split"].value == pytest.approx(3**0.5)
  assert s["theoretical"]["where_reference_splits"].value == pytest.approx(3**0.5)
  assert s["realised"]["where_reference_splits"].value == pytest.approx(2**0.5)
  assert s["realised"]["where_split"].value == pytest.approx(1)
  assert s["realised_of_theoretical"]["where_split"].value == pytest.approx((2 / 3 * 0.5) ** 0.5)
  assert s["twin_seconds"]["all"].value == pytest.approx((4 / 3) ** 0.5)
  assert s["twin_seconds"]["all"].n == 2


def whole(figures):
  settings = {
    "model": "m",
    "adapter": "a",
    "twin": "t",
    "max_new_tokens": 9,
    "lanes": 8,
    "positions": "pred10",
  }
  settings["fork"] = "eager"
  top = {"suite": "stage1", "version": 1, "settings": settings, "device": "cpu x 1", "cores": 2}
  return top | {"dtype": "float32", "sets": {"held_out": figures}}


def test_the_table_tells_every_figure_beside_its_name(figures):
  text = table(whole(figures))
  lines = {re.split(r"  +", line.strip())[0]: line for line in text.splitlines()}
  assert "held_out: 4 prompts, 2 of their references split" in lines
  assert lines["documents valid"].split()[2:4] == ["75.0", "%"]
  assert "1.41x" in lines["realised speedup, same text"]
  assert "1.0625" in lines["PASTA over twin"]
  assert "1.0200" in lines["the same, of whole texts"]
  assert "1 length, 3 stop" in lines["ended by"]
  assert max(map(len, text.splitlines())) <= 120


def test_documents_that_are_not_valid_end_the_program_with_a_line(figures):
  with pytest.raises(ValueError, match=r"25\.0 % of held_out are not"):
    check_valid(whole(figures))
  good = {**figures, "pasta": {**figures["pasta"], "valid": Estimate(1.0)}}
  check_valid(whole(good))


def test_a_set_without_references_or_chunks_has_a_table_too():
  prompts = PromptSet("more", "m.jsonl", (Item("1", "Q"), Item("2", "Q")))
  rows = {who: [row(), row()] for who in ("pasta", "twin", "base")}
  costs = {who: [{"nll": 1.0, "tokens": 1}] * 2 for who in rows}
  figures = set_figures(prompts, rows, costs, {}, {})
  assert "reference_splits" not in figures
  assert "text_loss" not in figures
  assert figures["pasta"]["position_error"]["mean"].value is None
  text = table(whole(figures))
  assert "where the reference splits" not in text
  json.dumps(to_json(whole(figures)), allow_nan=False)


def keys_of(value):
  if isinstance(value, dict):
    for key, inner in value.items():
      yield key
      yield from keys_of(inner)


def test_every_key_of_the_json_is_documented(figures):
  named = set(re.findall(r"`(\w+)`", DOC.read_text()))
  found = set(keys_of(to_json(whole(figures)))) - set(whole(figures)["settings"])
  assert found - named == set()


def test_a_json_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path):
  check_json_path("")
  check_json_path(str(tmp_path / "out.json"))
  check_json_path(str(tmp_path / "folder" / "out.json"), str(tmp_path / "folder"))
  with pytest.raises(ValueError, match="is a folder"):
    check_json_path(str(tmp_path))
  with pytest.raises(ValueError, match="make it first"):
    check_json_path(str(tmp_path / "no" / "out.json"))
