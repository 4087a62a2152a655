"""Annotation through a chat endpoint: Gemini's protocol, the key, and the command as a user runs it."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from pasta_jax.decode.journal import partial_path
from pasta_jax.train.annotate.chat import ChatOptions, EndpointError, read_key
from pasta_jax.train.annotate.run import parse_extra, parse_prices, run
from tests.annotate_runs import check_done, done_rows, options, read, write
from tests.annotate_server import rows_for

KEY = "sk-very-secret-0123456789"


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
