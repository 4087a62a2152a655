"""The annotator against llama.cpp's own server with SmolLM2: a real endpoint, and a small model.

Runs where `llama_cpp.server` is installed: in this environment, or in the one whose Python is named by
PASTA_LLAMA_PYTHON.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

pytest.importorskip("markdown_it")
pytest.importorskip("httpx2")

from pasta_jax.lang.parse import parse
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.packages import packaged_gguf
from pasta_jax.train.annotate.annotator import REASONS
from pasta_jax.train.annotate.chat import ChatOptions
from pasta_jax.train.annotate.run import RunOptions, run

PYTHON = os.environ.get("PASTA_LLAMA_PYTHON", sys.executable)

ROWS = [
  ("Name a fruit.", "An apple."),
  ("What is rain?", "Rain is water that falls from clouds in drops."),
  ("Two pets?", "Two pets:\n\n- **Cat.** It sleeps all day.\n- **Fish.** It needs a tank and some food."),
  ("What is 2 + 2?", "2 + 2 = 4."),
  ("Say hello.", "Hello! How can I help you today?"),
]  # fmt: skip


@pytest.fixture
def llama_server(tmp_path):
  if subprocess.run([PYTHON, "-c", "import llama_cpp.server"], capture_output=True).returncode:
    pytest.skip("llama_cpp.server is not installed; name a Python that has it with PASTA_LLAMA_PYTHON")
  try:
    model = packaged_gguf("smollm2-135m")
  except WeightsError as e:
    pytest.skip(str(e))
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  command = [PYTHON, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), "--n_ctx", "4096"]
  # One thread: threads that wait for each other are slow where others use the cores.
  command += ["--n_threads", "1", "--n_threads_batch", "1"]
  with open(tmp_path / "server.log", "wb") as log:
    process = subprocess.Popen(command, stdout=log, stderr=log)
  url = f"http://127.0.0.1:{port}/v1"
  try:
    until = time.monotonic() + 120
    while True:
      try:
        urllib.request.urlopen(f"{url}/models", timeout=5).read()
        break
      except OSError:
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        assert time.monotonic() < until
        time.sleep(0.5)
    yield url
  finally:
    process.terminate()
    process.wait(30)


@pytest.mark.real
def test_rows_go_through_a_real_server_and_each_gets_a_verdict(llama_server, tmp_path):
  (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in ROWS))
  chat = ChatOptions(model="smollm2", base_url=llama_server, timeout=600.0, attempts=2)
  account = run(
    RunOptions(
      annotator="llm",
      input=str(tmp_path / "in.jsonl"),
      output=str(tmp_path / "out.jsonl"),
      rejected=str(tmp_path / "rejected.jsonl"),
      chat=chat,
      asks=1,
      max_reply_tokens=48,
      concurrency=1,
    )
  )
  assert account.usage.requests == len(ROWS)
  assert account.usage.input_tokens > 1000 * len(ROWS)  # the language and its demonstrations each time
  assert 0 < account.usage.output_tokens <= 48 * len(ROWS)
  assert account.annotated + sum(account.reasons.values()) == len(ROWS)
  assert set(account.reasons) <= {"text_changed", "broken_marks", "cut_off", "empty_reply"} <= set(REASONS)
  answers = dict(ROWS)
  for line in (tmp_path / "out.jsonl").read_text().splitlines():
    row = json.loads(line)
    assert parse(row["document"]).plain == answers[row["prompt"]]
