"""Annotation through a chat endpoint: endpoints that are no use, runs that end early, and what rows cost."""

import dataclasses

import pytest

from pasta_jax.decode.journal import OutputError
from pasta_jax.lang.parse import parse
from pasta_jax.train.annotate.annotator import Usage
from pasta_jax.train.annotate.chat import EndpointError
from pasta_jax.train.annotate.run import run
from tests.annotate_runs import check_done, done_rows, limits_of, options, read
from tests.annotate_server import answer_for, rows_for

KEY = "sk-very-secret-0123456789"


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
