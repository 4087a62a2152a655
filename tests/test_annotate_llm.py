"""Annotation through a chat endpoint on loopback that fails in every ordinary way: its rows."""

import json

import pytest

from pasta_jax.lang.parse import parse
from pasta_jax.train.annotate.annotator import Usage
from pasta_jax.train.annotate.chat import EndpointError
from pasta_jax.train.annotate.rows import Keys
from pasta_jax.train.annotate.run import run
from tests.annotate_runs import check_done, limits_of, options, read
from tests.annotate_server import answer_for, marked, rows_for


def test_rows_come_back_marked_in_order_and_are_counted(server, tmp_path):
  server.delay = 0.05
  tags = [f"row {n}" for n in range(12)]
  account = run(options(server, tmp_path, rows_for(tags), concurrency=4, prices=(1.0, 10.0)))
  out = check_done(tmp_path, tags)
  assert out[0]["document"] == marked(answer_for("row 0")).replace('"20"', '"30"')
  assert 2 <= server.most_together <= 4
  assert (account.annotated, account.split, account.chunks, account.syncs) == (12, 12, 24, 12)
  assert (account.usage.requests, account.usage.input_tokens, account.usage.output_tokens) == (12, 1200, 600)
  assert account.cost == pytest.approx((1200 * 1.0 + 600 * 10.0) / 1e6)
  assert not (tmp_path / "rejected.jsonl").read_text()


PASSING = {
  "busy": [(429, {}, {"error": {"message": "slow down"}}), "good"],
  "down": [(500, {}, {"error": "x"}), (503, {}, {}), "good"],
  "gateway": ["html", "good"],
  "cut": ["cut", "good"],
  "closed": ["closed", "good"],
  "slow": ["slow", "good"],
  "garbled": ["not json", "null", "good"],
  "silent": ["no choices", "good"],
  "changed": ["changed", "good"],
  "broken": ["broken", "good"],
  "empty": ["empty", "good"],
  "mended": ["mendable"],
  "spelt": ["spelling"],
  "around": ["around"],
  "plain": ["unmarked"],
  "bare": ["bare"],
}


def test_every_failure_that_passes_is_tried_again(server, tmp_path):
  server.plans = PASSING
  account = run(options(server, tmp_path, rows_for(PASSING), chat={"timeout": 3.0}))
  out = {r["id"]: r for r in check_done(tmp_path, PASSING)}
  for tag, plan in PASSING.items():
    assert server.count(tag) == len(plan), tag
    assert ("<async>" in out[tag]["document"]) == (tag != "plain")
  assert {tag: out[tag].get("repairs") for tag in ("mended", "spelt", "around", "bare")} == {
    "mended": ["unclosed chunk"], "spelt": ["text spelling"], "around": ["text around"], "bare": None,
  }  # fmt: skip
  assert dict(account.retries) == {
    "rate_limited": 1, "server_error": 3, "connection": 2, "timeout": 1, "malformed_reply": 2,
    "no_choices": 1,
  }  # fmt: skip


def test_a_second_question_tells_the_model_what_was_wrong(server, tmp_path):
  server.plans = {"t": ["changed", "good"]}
  run(options(server, tmp_path, rows_for(["t"])))
  first, second = (body["messages"] for *_, body in server.asked)
  assert second[: len(first)] == first
  assert [m["role"] for m in second[len(first) :]] == ["assistant", "user"]
  assert "never take the plane" in second[-2]["content"]
  assert "differs from the answer at its character" in second[-1]["content"]


REJECTED = {
  "text_changed": ["changed"],
  "broken_marks": ["broken"],
  "empty_reply": ["empty"],
  "cut_off": ["length"],
  "refused": ["filter"],
  "bad_request": [(400, {}, {"error": {"message": "this content is too long"}})],
}


def test_what_cannot_be_used_is_rejected_with_a_reason_that_is_counted(server, tmp_path, capsys):
  server.plans = REJECTED
  report = tmp_path / "report.json"
  account = run(options(server, tmp_path, rows_for([*REJECTED, "fine"]), report=str(report)))
  check_done(tmp_path, ["fine"])
  rejected = read(tmp_path / "rejected.jsonl")
  assert {r["id"]: r["reason"] for r in rejected} == {reason: reason for reason in REJECTED}
  assert [r["line"] for r in rejected] == [1, 2, 3, 4, 5, 6]
  assert all(r["answer"] == answer_for(r["id"]) and r["detail"] for r in rejected)
  assert dict(account.reasons) == dict.fromkeys(REJECTED, 1)
  assert json.loads(report.read_text())["reasons"] == dict.fromkeys(REJECTED, 1)
  said = capsys.readouterr().err
  assert "7 rows: 1 annotated, 6 rejected" in said
  assert "1 text_changed" in said
  # Two questions where a second may help, or one with a larger limit; one where it cannot.
  assert {t: server.count(t) for t in REJECTED} == {
    "text_changed": 2, "broken_marks": 2, "empty_reply": 2, "cut_off": 2, "refused": 1, "bad_request": 1,
  }  # fmt: skip


def test_a_reply_that_ended_at_its_limit_is_asked_for_once_more_with_a_larger_one(server, tmp_path, capsys):
  server.plans = {"a": ["length", "changed", "good"]}
  account = run(options(server, tmp_path, rows_for("a")))
  check_done(tmp_path, "a")
  small, *larger = limits_of(server)
  assert small > 512
  assert larger == [4 * small] * 2  # also of the second question
  first, second, _ = (body["messages"] for *_, body in server.asked)
  assert first == second
  assert account.usage == Usage(3, 300, 150)
  assert dict(account.retries) == {"cut_off": 1}
  assert "asked again after: 1 cut_off" in capsys.readouterr().err


@pytest.mark.parametrize(
  "given",
  [
    {"max_reply_tokens": 40},
    {"chat": {"extra": {"max_tokens": 40}}},
    {"chat": {"extra": {"max_tokens": None, "max_completion_tokens": 40}}},
  ],
)
def test_a_reply_that_ended_at_the_users_own_limit_is_not_asked_for_again(server, tmp_path, given):
  server.plans = {"a": ["length", "good"]}
  account = run(options(server, tmp_path, rows_for("a"), **given))
  assert dict(account.reasons) == {"cut_off": 1}
  assert len(server.asked) == 1


def test_an_endpoint_that_refuses_the_larger_limit_leaves_rows_cut_off_and_the_run_goes_on(server, tmp_path):
  tags = [f"r{n}" for n in range(4)]
  server.plans = {t: ["length", (400, {}, {"error": {"message": "max_tokens is too large"}})] for t in tags}
  account = run(options(server, tmp_path, rows_for([*tags, "fine"]), concurrency=1, max_failures=2))
  assert dict(account.reasons) == {"cut_off": 4}
  assert account.usage == Usage(5, 500, 250)
  check_done(tmp_path, ["fine"])


def test_what_a_cut_off_reply_took_is_counted_though_the_larger_limit_got_no_reply(server, tmp_path):
  server.plans = {"a": ["length", "html"]}
  account = run(options(server, tmp_path, rows_for("a"), chat={"attempts": 1}, give_up=True))
  assert dict(account.reasons) == {"unanswered": 1}
  assert account.usage == Usage(1, 100, 50)


def test_bad_rows_are_reported_with_their_lines_and_the_rest_goes_on(server, tmp_path, capsys):
  good = rows_for(["a", "b"])
  bad = [
    b"{not json", b"\xff", b"[1]", {"prompt": "p"}, {"answer": "a"}, {"prompt": 7, "answer": "a"},
    {"prompt": "p", "answer": " \n"}, {"prompt": " ", "answer": "a"}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": "x"}]}, {"prompt": "p", "answer": "\ud800"},
  ]  # fmt: skip
  account = run(options(server, tmp_path, [good[0], *bad, b"", good[1]]))
  check_done(tmp_path, ["a", "b"])
  assert account.reasons["bad_row"] == len(bad)
  said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("line ")]
  assert [line.split(":")[0] for line in said] == [f"line {n}" for n in range(2, 2 + len(bad))]


def test_rows_come_in_the_shapes_that_data_sets_have(server, tmp_path):
  answer = answer_for("x")
  rows = [
    {"instruction": "Do [x]", "context": "Here.", "response": answer, "n": 1},
    {"messages": [{"role": "user", "content": "Do [x]"}, {"role": "assistant", "content": answer}], "n": 2},
    {"question": "Do [x]", "answer": answer.replace("\n", "\r\n") + "\n"},
    {"prompt": "Do [x]", "document": marked(answer)},
  ]
  run(options(server, tmp_path, rows))
  out = read(tmp_path / "out.jsonl")
  assert [parse(r["document"]).plain for r in out] == [answer] * 4
  assert out[0]["prompt"] == "Do [x]\n\nHere."
  assert out[1]["messages"] == [{"role": "user", "content": "Do [x]"}]
  assert [set(r) for r in out[:2]] == [
    {"prompt", "document", "annotator", "n"}, {"messages", "document", "annotator", "n"},
  ]  # fmt: skip
  (tmp_path / "out.jsonl").unlink()
  run(options(server, tmp_path, [{"p": "Do [x]", "a": answer}], keys=Keys("p", "a")))
  assert read(tmp_path / "out.jsonl")[0]["prompt"] == "Do [x]"


HALF = "\ud83d"  # the first half of an emoji, as files have it that were cut by UTF-16 units


def test_half_a_surrogate_pair_makes_a_bad_row_and_is_carried_along_in_other_keys(server, tmp_path, capsys):
  answer = answer_for("x")
  turns = [{"role": "user", "content": f"Do [x] {HALF}"}, {"role": "assistant", "content": answer}]
  bad = [
    {"prompt": f"Do [x] {HALF}", "answer": answer},
    {"prompt": "Do [x]", "context": HALF, "answer": answer},
    {"messages": turns},
    {"messages": [{"role": "system", "content": "Be short."}, *turns]},
  ]
  good = [row | {"note": HALF, f"key {HALF}": [HALF]} for row in rows_for(["fine", "cut off", "later"])]
  server.plans = {"cut off": ["length"], "later": ["html"]}
  with pytest.raises(EndpointError, match="1 of 7 rows have no verdict"):
    run(options(server, tmp_path, [*bad, *good]))
  server.plans = {"cut off": ["length"]}
  account = run(options(server, tmp_path, [*bad, *good], resume=True))
  assert dict(account.reasons) == {"bad_row": 4, "cut_off": 1}
  assert "line 1: the prompt has an unpaired surrogate at character 7" in capsys.readouterr().err
  out, rejected = read(tmp_path / "out.jsonl"), read(tmp_path / "rejected.jsonl")
  assert [r["line"] for r in rejected] == [1, 2, 3, 4, 6]
  assert [r["id"] for r in out] == ["fine", "later"]
  assert all(r["note"] == HALF and r[f"key {HALF}"] == [HALF] for r in [*out, rejected[-1]])
  assert {t for _, t, *_ in server.asked} == {"fine", "cut off", "later"}


def test_half_a_surrogate_pair_in_a_reply_is_sent_back_as_a_replacement_character(server, tmp_path):
  server.plans = {"a": ["half a pair", "good"]}
  run(options(server, tmp_path, rows_for("a")))
  check_done(tmp_path, "a")
  assert server.asked[1][-1]["messages"][-2]["content"].endswith("So take the \ufffd.")
