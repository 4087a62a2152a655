"""Annotation through a chat endpoint: pauses between attempts, and limits of requests and tokens."""

import asyncio
import itertools
import time

import pytest

from pasta_jax.train.annotate.chat import EndpointError, retry_after
from pasta_jax.train.annotate.limits import Gate, RateLimit
from pasta_jax.train.annotate.run import run
from tests.annotate_runs import check_done, options
from tests.annotate_server import rows_for


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
