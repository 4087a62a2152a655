"""The launch script for Cloud TPU VMs, with a stand-in for gcloud; and what `make demo` passes on."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"

GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$LOG"
for argument in "$@"; do
  case $argument in --command=*) cd "$HOME" && bash -c "${argument#--command=}" ;; esac
done
"""


@pytest.fixture
def launch(tmp_path):
  """Runs the script in a home of its own; returns the process and what gcloud was called with."""
  tools, home = tmp_path / "bin", tmp_path / "home"
  tools.mkdir()
  (home / "pasta_jax" / ".venv" / "bin").mkdir(parents=True)
  (home / "pasta_jax" / ".venv" / "bin" / "activate").write_text("")
  (tools / "gcloud").write_text(GCLOUD)
  (tools / "gcloud").chmod(0o755)
  log = tmp_path / "log"

  def run(*arguments: str, **environment: str):
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "HOME": str(home), "LOG": str(log)} | environment
    out = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=env, timeout=60)
    return out, log.read_text().splitlines() if log.exists() else []

  return run


def test_the_command_runs_on_all_workers_with_its_arguments_as_given(launch):
  out, calls = launch("my-tpu", "us-west4-a", "printf", "%s|", "two words", "$HOME", SETUP="0")
  assert out.returncode == 0, out.stderr
  assert out.stdout == "two words|$HOME|"
  assert len(calls) == 1
  assert calls[0].startswith("compute tpus tpu-vm ssh my-tpu --zone=us-west4-a --worker=all ")


def test_a_command_that_fails_fails_the_launch(launch):
  assert launch("my-tpu", "us-west4-a", "false", SETUP="0")[0].returncode == 1


def test_a_dry_run_calls_nothing_and_shows_what_it_would_call(launch):
  out, calls = launch("my-tpu", "us-west4-a", "echo", "hello", DRY_RUN="1", SETUP="0")
  assert out.returncode == 0
  assert out.stdout.startswith("gcloud compute tpus tpu-vm ssh my-tpu")
  assert calls == []


def test_missing_arguments_get_one_line(launch):
  out, calls = launch("my-tpu")
  assert out.returncode == 2
  assert out.stderr.startswith("usage: launch/tpu_vm.sh NAME ZONE COMMAND")
  assert len(out.stderr.splitlines()) == 1
  assert calls == []


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("where", ["argument", "environment"])
def test_make_demo_passes_the_prompt_on_as_it_was_given(where, tmp_path):
  python = tmp_path / "bin" / "python"
  python.parent.mkdir()
  python.write_text('#!/bin/sh\nfor a in "$@"; do printf "%s\\n" "$a"; done\n')
  python.chmod(0o755)
  for done in (".made", ".demo"):
    (tmp_path / done).write_text("")
  prompt = """say "hi" to 'all' for $5, `touch touched` $(HOME) \\ # and $$"""
  given = [f"PROMPT={prompt}"] if where == "argument" else []
  out = subprocess.run(
    ["make", "--silent", "demo", f"VENV={tmp_path}", f"PYTHON={sys.executable}", *given],
    env=os.environ | ({} if given else {"PROMPT": prompt}),
    cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
  )  # fmt: skip
  assert out.returncode == 0, out.stderr
  assert out.stdout.splitlines() == ["-m", "pasta_jax.eval.demo", f"--prompt={prompt}"]
