"""Annotation through a chat endpoint on loopback that fails in every ordinary way."""

import asyncio
import dataclasses
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("markdown_it")
pytest.importorskip("httpx2")

from pasta_jax.decode.journal import OutputError, partial_path
from pasta_jax.lang.parse import parse
from pasta_jax.train.annotate.annotator import Usage
from pasta_jax.train.annotate.chat import ChatOptions, EndpointError, read_key, retry_after
from pasta_jax.train.annotate.limits import Gate, RateLimit
from pasta_jax.train.annotate.rows import Keys
from pasta_jax.train.annotate.run import RunOptions, parse_extra, parse_prices, run
from tests.annotate_server import answer_for, endpoint, marked, rows_for

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def server():
  with endpoint() as it:
    yield it


def write(path, rows):
  lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
  path.write_bytes(b"\n".join(lines) + b"\n")
  return str(path)


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def options(server, tmp_path, rows, chat=None, **kwargs):
  """Options with short pauses."""
  chat = {"model": "m", "base_url": server.url, "timeout": 5.0, "attempts": 3, "backoff": 0.01} | (chat or {})
  return RunOptions(
    annotator="llm",
    input=write(tmp_path / "in.jsonl", rows),
    output=str(tmp_path / "out.jsonl"),
    rejected=str(tmp_path / "rejected.jsonl"),
    chat=ChatOptions(**chat),
    **kwargs,
  )


def check_done(tmp_path, tags):
  """Every row is there, in order, with its own document."""
  out = read(tmp_path / "out.jsonl")
  assert [r["id"] for r in out] == list(tags)
  for row in out:
    assert parse(row["document"]).plain == answer_for(row["id"])
    assert row["annotator"] == "llm:m"
    assert set(row) - {"repairs"} == {"prompt", "id", "document", "annotator"}
  assert not partial_path(tmp_path / "out.jsonl").exists()
  return out


def done_rows(tmp_path):
  """The ids in the journal of an interrupted run."""
  lines = partial_path(tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
  return {json.loads(line)["output"]["output"]["id"] for line in lines[1:] if line.endswith("\n")}


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


def limits_of(server):
  """The limit of each request's reply."""
  return [body["max_tokens"] for *_, body in server.asked]


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


# -- pauses and limits


def test_retry_after_holds_every_row(server, tmp_path):
  server.plans = {"a": [(429, {"Retry-After": "1"}, {}), "good"], "b": ["good"], "c": ["good"]}
  run(options(server, tmp_path, rows_for("abc"), concurrency=1, chat={"backoff": 0.0}))
  times = [t for t, *_ in server.asked]
  assert times[1] - times[0] >= 0.95
  assert times[-1] - times[1] < 0.9


@pytest.fixture
def short_minutes(monkeypatch):
  """Limits hold in windows of 0.6 s."""
  monkeypatch.setattr(RateLimit.__init__, "__defaults__", (0.6,))


def test_retry_after_holds_rows_that_wait_in_a_limit_already(server, tmp_path, short_minutes):
  server.plans = {"a": [(429, {"retry-after-ms": "1000"}, {}), "good"]}
  chat = {"requests_per_minute": 2, "backoff": 0.0}
  run(options(server, tmp_path, rows_for("abcd"), concurrency=4, chat=chat))
  check_done(tmp_path, "abcd")
  first, _, *others = (t for t, *_ in server.asked)
  assert len(others) == 3
  assert all(t - first >= 0.95 for t in others)


def test_retry_after_of_a_row_that_is_not_tried_again_holds_the_others(server, tmp_path):
  server.plans = {"a": [(429, {"retry-after-ms": "600"}, {})]}
  with pytest.raises(EndpointError, match="1 of 2 rows have no verdict"):
    run(options(server, tmp_path, rows_for("ab"), concurrency=1, chat={"attempts": 1}))
  (first, *_), (second, *_) = server.asked
  assert second - first >= 0.55


def test_rows_that_wait_for_tokens_hold_no_place_among_the_requests(
  server, tmp_path, short_minutes, monkeypatch
):
  wait, times = Gate.wait, []  # when requests are let through: how long they travel is the machine's affair

  async def timed(self, tokens):
    entry = await wait(self, tokens)
    times.append(time.monotonic())
    return entry

  monkeypatch.setattr(Gate, "wait", timed)
  small = rows_for("abcdef")
  big = {"prompt": "How to travel? [big]", "answer": "word " * 20_000, "id": "big"}
  server.plans = {r["id"]: ["bare"] for r in (big, *small)}  # no counts, so that the estimates stay
  chat = {"requests_per_minute": 3, "tokens_per_minute": 30_000}
  run(options(server, tmp_path, [big, *small], concurrency=7, chat=chat))
  assert len(times) == len(server.asked) == 7
  assert all(later - earlier >= 0.4 for earlier, later in zip(times, times[3:]))


def test_an_endpoint_that_asks_to_wait_too_long_is_not_waited_for(server, tmp_path):
  server.plans = {"a": [(429, {"Retry-After": "3600"}, {})]}
  started = time.monotonic()
  with pytest.raises(EndpointError, match=r"1 of 1 rows have no verdict \(1 rate_limited\)"):
    run(options(server, tmp_path, rows_for("a")))
  assert time.monotonic() - started < 5
  assert server.count("a") == 1


def test_pauses_between_attempts_grow(server, tmp_path):
  server.plans = {"a": [(500, {}, {}), (500, {}, {}), (500, {}, {}), "good"]}
  run(options(server, tmp_path, rows_for("a"), chat={"backoff": 0.1, "attempts": 4}))
  times = [t for t, *_ in server.asked]
  pauses = [b - a for a, b in itertools.pairwise(times)]
  for n, pause in enumerate(pauses):
    assert 0.05 * 2**n <= pause <= 0.15 * 2**n + 0.4


def test_retry_after_is_read_in_every_form():
  assert retry_after({"retry-after": "7"}) == 7
  assert retry_after({"retry-after": "1", "retry-after-ms": "250"}) == 0.25
  later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
  assert 25 < retry_after({"retry-after": later}) <= 30
  assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
  assert retry_after({"retry-after": "soon"}) == retry_after({}) == retry_after({"retry-after": "-5"}) == 0


def test_rate_limits_hold_in_every_window():
  async def times(gate, costs):
    passed = []

    async def one(cost):
      await gate.wait(cost)
      passed.append((time.monotonic(), cost))

    await asyncio.gather(*(one(c) for c in costs))
    return passed

  for requests, tokens, costs in (
    (3, 0, [1] * 8),
    (0, 100, [60, 30, 50, 20, 500, 10]),
    (3, 100, [500, 10, 10, 10, 10, 60, 60]),
  ):
    gate = Gate(RateLimit(requests, period=0.3), RateLimit(tokens, period=0.3))
    passed = asyncio.run(times(gate, costs))
    assert [c for _, c in passed] == costs  # first come, first served
    for start, _ in passed:
      inside = [c for t, c in passed if start <= t < start + 0.2]  # 0.1 s to come from the gate to the clock
      assert not requests or len(inside) <= requests
      assert not tokens or sum(inside) <= tokens or len(inside) == 1
  unlimited = asyncio.run(times(Gate(RateLimit(0), RateLimit(0)), [1000] * 50))
  assert unlimited[-1][0] - unlimited[0][0] < 0.2


def test_a_settled_cost_makes_room():
  async def check():
    gate = Gate(RateLimit(0), RateLimit(100, period=30.0))
    entry = await gate.wait(100)
    gate.tokens.settle(entry, 10)
    await asyncio.wait_for(gate.wait(90), 1)

  asyncio.run(check())


# -- endpoints that are no use


@pytest.mark.parametrize(
  ("step", "says"),
  [
    (
      (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
      r"refuses the key \(TEST_KEY\)",
    ),
    ((403, {}, {}), "refuses the key"),
    ((400, {}, {"error": {"message": "bad", "details": [{"reason": "API_KEY_INVALID"}]}}), "refuses the key"),
    (
      (404, {}, {"error": {"message": "no such model"}}),
      "check --base_url, --provider and --model: HTTP 404",
    ),
    ((302, {"Location": "/login"}, {}), "check --base_url"),
    ((402, {}, {}), "quota is spent"),
    ((429, {}, {"error": {"message": "pay", "code": "insufficient_quota"}}), "quota is spent: HTTP 429: pay"),
  ],
)
def test_an_endpoint_that_will_never_answer_ends_the_run_at_once(server, tmp_path, monkeypatch, step, says):
  monkeypatch.setenv("TEST_KEY", KEY)
  tags = [f"r{n}" for n in range(20)]
  server.plans = {tags[2]: [step]}
  with pytest.raises(EndpointError, match=says) as e:
    run(options(server, tmp_path, rows_for(tags), concurrency=2, chat={"key_env": "TEST_KEY"}))
  assert "go on with --resume" in str(e.value)
  assert KEY not in str(e.value)
  assert len(server.asked) < 8
  assert not (tmp_path / "out.jsonl").exists()
  server.plans = {}
  done = done_rows(tmp_path)
  assert done
  run(options(server, tmp_path, rows_for(tags), resume=True, chat={"key_env": "TEST_KEY"}))
  check_done(tmp_path, tags)
  assert all(server.count(t) == 1 for t in done)


def test_rows_that_fail_one_after_the_other_end_the_run(server, tmp_path):
  tags = [f"r{n}" for n in range(30)]
  server.plans = {t: ["html"] for t in tags}
  with pytest.raises(EndpointError, match="4 rows in a row got no usable reply, the last one server_error"):
    run(options(server, tmp_path, rows_for(tags), concurrency=1, max_failures=4, chat={"attempts": 1}))
  assert len(server.asked) == 4


def test_nobody_listening_is_said_in_one_line(server, tmp_path):
  server.server_close()
  with pytest.raises(EndpointError, match=r"1 of 1 rows have no verdict \(1 connection\)"):
    run(options(server, tmp_path, rows_for("a")))


def test_rows_without_a_verdict_wait_for_resume_or_are_given_up(server, tmp_path):
  server.plans = {"b": ["cut"]}
  with pytest.raises(EndpointError, match=r"1 of 3 rows have no verdict \(1 connection\).*--give_up"):
    run(options(server, tmp_path, rows_for("abc")))
  assert not (tmp_path / "out.jsonl").exists()
  account = run(options(server, tmp_path, rows_for("abc"), resume=True, give_up=True))
  check_done(tmp_path, "ac")
  assert dict(account.reasons) == {"unanswered": 1}
  assert account.usage.requests == 2  # of both runs
  assert (server.count("a"), server.count("b"), server.count("c")) == (1, 6, 1)


def test_an_interrupted_run_goes_on_with_the_same_settings_only(server, tmp_path):
  server.plans = {"b": ["cut"]}
  with pytest.raises(EndpointError):
    run(options(server, tmp_path, rows_for("ab")))
  with pytest.raises(OutputError, match="--resume"):
    run(options(server, tmp_path, rows_for("ab")))
  with pytest.raises(OutputError, match="another model"):
    run(options(server, tmp_path, rows_for("ab"), resume=True, chat={"model": "other"}))
  with pytest.raises(OutputError, match="another max_reply_tokens; use the same flags"):
    run(options(server, tmp_path, rows_for("ab"), resume=True, max_reply_tokens=4096))


def test_rows_that_were_cut_off_can_be_annotated_from_the_file_of_rejected_ones(server, tmp_path):
  server.plans = {"a": ["length"]}
  run(options(server, tmp_path, rows_for("a")))
  rejected = read(tmp_path / "rejected.jsonl")
  assert [r["reason"] for r in rejected] == ["cut_off"]
  server.plans = {}
  (tmp_path / "out.jsonl").unlink()
  run(options(server, tmp_path, rejected, max_reply_tokens=4096))
  (row,) = read(tmp_path / "out.jsonl")
  assert parse(row["document"]).plain == answer_for("a")
  assert limits_of(server)[-1] == 4096


# -- what it costs


def test_replies_without_an_answer_are_paid_for_too(server, tmp_path):
  server.plans = {"a": ["no choices", "cut", "no choices", "good"], "b": ["no choices"] * 2 + ["length"]}
  account = run(options(server, tmp_path, rows_for("ab"), prices=(1.0, 10.0), chat={"attempts": 4}))
  assert (account.annotated, account.reasons["cut_off"]) == (1, 1)
  assert account.usage == Usage(7, 700, 350)
  assert account.cost == pytest.approx(7 * (100 * 1.0 + 50 * 10.0) / 1e6)


def test_what_a_row_took_is_counted_though_it_fails_and_is_asked_again(server, tmp_path, capsys):
  server.plans = {"a": ["changed", "html", "no choices", "changed", "closed", "changed", "good"]}
  given = options(server, tmp_path, rows_for("a"), chat={"attempts": 1})
  for replies in (1, 2, 3):
    with pytest.raises(EndpointError, match="1 of 1 rows have no verdict"):
      run(dataclasses.replace(given, resume=replies > 1))
    says = f"{replies} replies, {100 * replies} input and {50 * replies} output tokens"
    assert says in capsys.readouterr().err
  assert run(dataclasses.replace(given, resume=True)).usage == Usage(5, 500, 250)
  check_done(tmp_path, "a")


def test_what_a_row_took_is_counted_though_it_is_given_up_or_refused(server, tmp_path):
  server.plans = {"a": ["changed", "html"], "b": ["changed", (400, {}, {})]}
  given = options(server, tmp_path, rows_for("ab"), chat={"attempts": 1}, give_up=True)
  account = run(given)
  assert dict(account.reasons) == {"unanswered": 1, "bad_request": 1}
  assert account.usage == Usage(2, 200, 100)


def test_what_rows_took_is_counted_though_the_run_ends_while_they_wait(server, tmp_path, capsys):
  server.plans = {"a": ["changed", (500, {}, {}), (401, {}, {})], "b": ["changed", "slow"]}
  with pytest.raises(EndpointError, match="refuses the key"):
    run(options(server, tmp_path, rows_for("ab"), chat={"backoff": 1.0}))
  assert (server.count("a"), server.count("b")) == (3, 2)
  assert "2 replies, 200 input and 100 output tokens" in capsys.readouterr().err
  server.plans = {}
  assert run(options(server, tmp_path, rows_for("ab"), resume=True)).usage == Usage(4, 400, 200)
  check_done(tmp_path, "ab")


# -- Gemini's own protocol


def test_gemini_is_asked_in_its_own_protocol(server, tmp_path, monkeypatch):
  monkeypatch.setenv("TEST_KEY", KEY)
  server.plans = {
    "cut": ["length"],
    "blocked": ["blocked"],
    "unsafe": ["filter"],
    "none": ["no choices", "good"],
  }
  tags = ["fine", "cut", "blocked", "unsafe", "none"]
  chat = {"provider": "gemini", "model": "gemini-x", "key_env": "TEST_KEY"}
  account = run(options(server, tmp_path, rows_for(tags), chat=chat))
  assert [r["id"] for r in read(tmp_path / "out.jsonl")] == ["fine", "none"]
  assert dict(account.reasons) == {"cut_off": 1, "refused": 2}
  assert account.usage.output_tokens == 50 * account.usage.requests
  for _, _, path, headers, body in server.asked:
    assert path == "/v1/models/gemini-x:generateContent"  # no key in it
    assert {k.lower(): v for k, v in headers.items()}["x-goog-api-key"] == KEY
    assert "authorization" not in {k.lower() for k in headers}
    assert body["systemInstruction"]["parts"][0]["text"]
    assert {c["role"] for c in body["contents"]} == {"user", "model"}
    assert body["generationConfig"]["maxOutputTokens"] > 512


def test_extras_within_an_object_leave_the_rest_of_it(server, tmp_path):
  extra = {"generationConfig": {"thinkingConfig": {"thinkingBudget": 0}, "temperature": None}}
  run(options(server, tmp_path, rows_for("a"), chat={"provider": "gemini", "extra": extra}))
  config = server.asked[0][-1]["generationConfig"]
  assert config.pop("maxOutputTokens") > 512
  assert config == {"thinkingConfig": {"thinkingBudget": 0}}


# -- the key


def test_the_key_is_sent_and_is_in_no_log_error_or_file(server, tmp_path, monkeypatch, capsys, caplog):
  monkeypatch.setenv("TEST_KEY", KEY)
  caplog.set_level(logging.DEBUG)
  server.plans = {
    "echo": [(500, {}, {"error": {"message": f"you sent {KEY}"}})],
    "told": [(400, {}, {"error": {"message": f"not with {KEY}"}})],
    "said": [(200, {}, {"choices": [{"message": {"content": f"{KEY} is not a valid key"}}]})],
  }
  tags = ["good", *server.plans]
  with pytest.raises(EndpointError) as e:
    run(options(server, tmp_path, rows_for(tags), chat={"key_env": "TEST_KEY"}))
  everything = [partial_path(tmp_path / "out.jsonl").read_text()]
  given = options(server, tmp_path, rows_for(tags), resume=True, give_up=True,
                  chat={"key_env": "TEST_KEY"}, report=str(tmp_path / "report.json"))  # fmt: skip
  run(given)
  assert {h["Authorization"] for *_, h, _ in server.asked} == {f"Bearer {KEY}"}
  details = {r["id"]: r["detail"] for r in read(tmp_path / "rejected.jsonl")}
  assert "not with [key]" in details["told"]
  assert "'[key] is not a valid key'" in details["said"]
  assert server.count("said") == 2
  said = capsys.readouterr()
  everything += [said.out, said.err, caplog.text, str(e.value), repr(given)]
  everything += [json.dumps(body) for *_, body in server.asked]
  everything += [p.read_text() for p in tmp_path.iterdir()]
  assert len(everything) >= 10 + len(server.asked)
  assert not any(KEY[:12] in text for text in everything)


def test_a_key_that_is_a_word_of_the_answer_stays_in_the_reply(server, tmp_path, monkeypatch):
  monkeypatch.setenv("TEST_KEY", "train")
  run(options(server, tmp_path, rows_for("a"), chat={"key_env": "TEST_KEY"}))
  check_done(tmp_path, "a")
  assert server.count("a") == 1


def test_a_key_that_cannot_be_one_is_refused_without_showing_it(monkeypatch):
  assert read_key("") is None
  with pytest.raises(EndpointError, match="NO_SUCH_KEY is not set"):
    read_key("NO_SUCH_KEY")
  with pytest.raises(EndpointError, match="takes the name of an environment variable") as e:
    read_key(KEY)
  assert KEY not in str(e.value)
  monkeypatch.setenv("TEST_KEY", KEY + "\nX-Header: 1")
  with pytest.raises(EndpointError, match="TEST_KEY holds characters that no key has") as e:
    read_key("TEST_KEY")
  assert KEY not in str(e.value)


# -- as a user runs it


def command(server, tmp_path, *flags):
  return [
    sys.executable, "-m", "pasta_jax.train.annotate", "--annotator=llm", f"--base_url={server.url}",
    "--model=m", f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}", *flags,
  ]  # fmt: skip


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_loses_nothing_and_repeats_nothing(server, tmp_path, sign, code):
  tags = [f"r{n}" for n in range(40)]
  write(tmp_path / "in.jsonl", rows_for(tags))
  server.delay = 0.1
  flags = ["--concurrency=2", "--key_env=TEST_KEY", "--timeout=30"]
  env = os.environ | {"TEST_KEY": KEY, "JAX_PLATFORMS": "cpu"}
  process = subprocess.Popen(command(server, tmp_path, *flags), stderr=subprocess.PIPE, text=True, env=env)
  until = time.monotonic() + 60
  while len(server.asked) < 12 and time.monotonic() < until:
    time.sleep(0.02)
  process.send_signal(sign)
  _, said = process.communicate(timeout=30)
  assert process.returncode == code
  assert KEY not in said
  assert "Traceback" not in said
  assert sign == signal.SIGKILL or "rows are kept in" in said
  assert not (tmp_path / "out.jsonl").exists()
  done = done_rows(tmp_path)
  assert 8 <= len(done) < 40
  assert KEY not in partial_path(tmp_path / "out.jsonl").read_text()

  asked = len(server.asked)
  server.delay = 0.0
  again = subprocess.run(
    command(server, tmp_path, *flags, "--resume"), capture_output=True, text=True, env=env, timeout=120
  )
  assert again.returncode == 0, again.stderr
  check_done(tmp_path, tags)
  assert sorted(t for _, t, *_ in server.asked[asked:]) == sorted(set(tags) - done)
  assert again.stderr.splitlines()[0] == "40 rows: 40 annotated, 0 rejected"


WRONG = {
  "--annotator must be one of rules, llm": ["--annotator=rule"],
  "needs --model": ["--annotator=llm"],
  "--provider must be one of openai, gemini": ["--annotator=llm", "--model=m", "--provider=x"],
  "--base_url must begin with http": ["--annotator=llm", "--model=m", "--base_url=localhost"],
  "--style must be one of pasta, apar": ["--annotator=rules", "--style=x"],
  "--sections must be one of": ["--annotator=rules", "--sections=x"],
  "--input none.jsonl: no such file": ["--annotator=rules", "--input=none.jsonl"],
  "there is no such folder": ["--annotator=rules", "--report=no/such/folder"],
}

# Flags can be defined once in a process, so that one process of its own takes all wrong command lines.
MANY = """
import json, sys
from absl import flags
from pasta_jax.train.annotate import __main__
for given in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  flags.FLAGS(["annotate", *given])
  try:
    __main__.main(["annotate"])
  except SystemExit as e:
    print("code", e.code, file=sys.stderr)
"""


def test_wrong_flags_are_answered_in_one_line(tmp_path):
  write(tmp_path / "in.jsonl", rows_for("a"))
  paths = [f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
  given = json.dumps([paths + wrong for wrong in WRONG.values()])
  said = subprocess.run([sys.executable, "-c", MANY, given], capture_output=True, text=True, timeout=120)
  assert said.returncode == 0, said.stderr
  lines = said.stderr.splitlines()
  assert len(lines) == 2 * len(WRONG)
  for says, line, code in zip(WRONG, lines[::2], lines[1::2]):
    assert line.startswith("error: ")
    assert says in line
    assert code == "code 1"


def test_prices_and_extras_are_checked():
  assert parse_prices(["0.15", "0.6"]) == (0.15, 0.6)
  assert parse_prices(None) is None
  for bad in (["1"], ["a", "b"], ["1", "2", "3"]):
    with pytest.raises(ValueError, match="--prices takes two numbers"):
      parse_prices(bad)
  assert parse_extra('{"seed": 1}') == {"seed": 1}
  for bad in ("[1]", "{"):
    with pytest.raises(ValueError, match="--extra"):
      parse_extra(bad)
  for bad in ('{"user": "\\ud800"}', '{"top_p": NaN}'):
    with pytest.raises(ValueError, match="--model and --extra must be what a request"):
      ChatOptions("m", extra=parse_extra(bad))


def test_extras_are_merged_into_each_request(server, tmp_path):
  extra = {"seed": 1, "max_tokens": None, "max_completion_tokens": 99}
  run(options(server, tmp_path, rows_for("a"), chat={"extra": extra}))
  body = server.asked[0][-1]
  assert (body["seed"], body["max_completion_tokens"]) == (1, 99)
  assert "max_tokens" not in body
