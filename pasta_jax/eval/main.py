"""Evaluates a trained model: `python -m pasta_jax.eval.main --suite=stage1 --adapter=... --twin=...`.

A table on standard output, JSON in --json, all answers and a page to read them in --output_dir.
docs/evaluation.md says what each figure means.
"""

import dataclasses
import json
import sys
import time

from absl import app, flags

from pasta_jax import runtime

_SUITES = ("stage1",)

flags.DEFINE_string("suite", "stage1", "What is measured: stage1.")
flags.DEFINE_string("model", "smollm2-135m", "The unmodified instruct model, as in decode.main.")
flags.DEFINE_string(
  "adapter", "pasta", "PASTA's: pasta (comes with the package), an .npz file, or a folder trained in full."
)
flags.DEFINE_string("twin", "twin", "The twin's.")
flags.DEFINE_string(
  "heldout", "data/seed.jsonl", 'Rows {"prompt", "document"}; those that training holds out are asked.'
)
flags.DEFINE_float("holdout", 0.1, "The fraction that training holds out.", lower_bound=0, upper_bound=1)
flags.DEFINE_string(
  "prompts",
  "",
  'A second set of prompts: JSONL of {"prompt"}, {"messages"} or {"turns"} (the first is asked).',
)
flags.DEFINE_integer("num_prompts", 0, "Prompts of each set, a sample; 0: all.", lower_bound=0)
flags.DEFINE_integer("max_new_tokens", 512, "Tokens of an answer at most, marks included.", lower_bound=1)
flags.DEFINE_integer("max_len", 2048, "Tokens of prompt and answer at most.", lower_bound=1)
flags.DEFINE_integer(
  "batch_size", 1, "Prompts answered at a time; times are of one at a time.", lower_bound=1
)
flags.DEFINE_integer("lanes", 8, "Threads of an answer that run at a time.", lower_bound=1)
flags.DEFINE_string("fork", "eager", "As in decode.main: what the adapter was trained with.")
flags.DEFINE_string("positions", "pred10", "As in decode.main: what the adapter was trained with.")
flags.DEFINE_integer("fixed", 64, "Positions that --positions=fixed reserves.", lower_bound=0)
flags.DEFINE_integer("timed", 0, "Prompts of each set that are timed, a sample; 0: all.", lower_bound=0)
flags.DEFINE_integer("repeats", 1, "How often each is timed; the fastest counts.", lower_bound=1)
flags.DEFINE_string(
  "dtype",
  "auto",
  "Of weights: float32, bfloat16, or auto: bfloat16, but float32 on CPUs without AVX512-BF16.",
)
flags.DEFINE_string(
  "output_dir", "runs/eval_stage1", "Answers, one JSONL file per model and set, and answers.html."
)
flags.DEFINE_string("json", "", "Write the figures here.")
flags.DEFINE_bool("resume", False, "Go on with the run in --output_dir.")
flags.DEFINE_string(
  "compilation_cache", runtime.default_cache_folder(), "Folder for compiled programs; empty turns it off."
)


def _run() -> None:
  values = flags.FLAGS.flag_values_dict()
  from pasta_jax.decode.requests import nearest

  if values["suite"] not in _SUITES:
    raise ValueError(f"--{nearest('suite', values['suite'], _SUITES)}")
  runtime.use_compilation_cache(values["compilation_cache"])
  from pasta_jax.eval import suite_stage1
  from pasta_jax.eval.report import check_json_path, check_valid, table
  from pasta_jax.eval.report_figures import to_json
  from pasta_jax.eval.suite_options import Options
  from pasta_jax.eval.suite_store import write_whole
  from pasta_jax.model.bundled import find_adapter

  check_json_path(values["json"], values["output_dir"])
  for name in ("adapter", "twin"):
    values[name] = find_adapter(values[name], values["model"])
  options = Options(**{f.name: values[f.name] for f in dataclasses.fields(Options)})
  started = time.perf_counter()
  figures = suite_stage1.run(options, lambda line: print(line, file=sys.stderr, flush=True))
  print(table(figures))
  print(f"[{time.perf_counter() - started:.0f} s]", file=sys.stderr)
  if values["json"]:
    write_whole(values["json"], json.dumps(to_json(figures), indent=1) + "\n")
  check_valid(figures)  # last: the figures are there in any case


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  app.run(main)
