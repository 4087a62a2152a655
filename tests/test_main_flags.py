"""The flags of `decode.main`: help that says what each does, mistakes that name the right one, progress."""

import io
import re
import subprocess
import sys

import pytest
from absl import flags

from pasta_jax.decode.options import options_of
from pasta_jax.decode.progress import Progress
from tests.command_lines import outcomes


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "pasta_jax.decode.main", *arguments],
    capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip


def test_help_lists_every_flag_with_what_it_does():
  import pasta_jax.decode.main as main

  own = [f.name for f in flags.FLAGS.flags_by_module_dict()[main.__name__]]
  wanted = {"model", "prompt", "prompts_file", "output_file", "batch_size", "max_new_tokens", "temperature"}
  wanted |= {"top_k", "top_p", "min_p", "seed", "stream", "dtype", "mesh", "resume", "stop", "logprobs"}
  assert wanted <= set(own)
  out = run("--help").stdout
  for name in own:
    text = re.search(rf"^  --(?:\[no\])?{name}: (.+)$", out, re.MULTILINE)
    assert text, name
    assert len(text.group(1).split()) >= 3, name
  assert "python -m pasta_jax.decode.main --model=smollm2-135m --prompt=" in out


MISTAKES = [
  ("--prmpt=x", "Unknown command line flag 'prmpt'. Did you mean: prompt"),
  ("--batch_size=0", "--batch_size=0: 0 is not a positive integer"),
  ("--temperature=hot", "--temperature=hot: could not convert string to float"),
]


@pytest.fixture(scope="module")
def told():
  """The outcome of every mistake."""
  return outcomes("pasta_jax.decode.main", [[flag] for flag, _ in MISTAKES])


@pytest.mark.parametrize("case", range(len(MISTAKES)), ids=[flag for flag, _ in MISTAKES])
def test_a_misspelt_flag_or_value_is_named_before_anything_is_loaded(told, case):
  out = told[case]
  assert out.status == 1
  assert MISTAKES[case][1] in out.stderr
  assert "Traceback" not in out.stderr


def test_a_misspelt_flag_ends_the_process_with_status_1():
  out = run("--prmpt=x")
  assert out.returncode == 1
  assert "Did you mean: prompt" in out.stderr


@pytest.mark.parametrize("given", [[], ["a"], ["1", "2", "3"]])
def test_a_bias_that_is_none_is_told(given):
  values = {"model": "toy", "prompt": "x", "stop": [], "promise_bias": given}
  with pytest.raises(ValueError, match="--promise_bias takes one number, or two"):
    options_of(values)


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_long_work_shows_its_progress_on_a_terminal_and_is_silent_elsewhere(monkeypatch):
  pytest.importorskip("rich")
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "100")
  for screen, shown in ((Terminal(), True), (io.StringIO(), False)):
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(total=9, done=2) as step:
      step(12.5)
    assert ("3/9" in screen.getvalue()) == shown
    assert ("12.5 tokens/s" in screen.getvalue()) == shown
