"""Answers prompts: `python -m pasta_jax.decode.main --model=smollm2-135m --prompt="..."`."""

import sys

from absl import app, flags

from pasta_jax import runtime


class _Stream(flags.ArgumentParser):
  """Takes --stream and --nostream besides --stream=VALUE."""

  syntactic_help = "text, lanes or none"

  def parse(self, argument: str) -> str:
    return {"true": "text", "false": "none"}.get(argument, argument)


flags.DEFINE_string(
  "model",
  "smollm2-135m",
  "A preset whose weights come as a package (smollm2-135m, gemma3-270m), a path (GGUF file, Hugging Face"
  " folder, checkpoint of ours, Gemma's Orbax folder), hf:owner/name, or random:PRESET (random weights of"
  " any preset, to measure: the prompt's bytes are its ids, and the answer is ids).",
)
flags.DEFINE_string(
  "adapter",
  "",
  "What fine-tuning changed: pasta or twin, which come with the package for smollm2-135m (the twin has"
  " learned the same answers without marks), or an .npz file that train.main wrote.",
)
flags.DEFINE_string("prompt", "", "One prompt; the answer goes to standard output.")
flags.DEFINE_string("system", "", "A system message put before every prompt.")
flags.DEFINE_string(
  "prompts_file", "", 'JSONL rows {"prompt": ...} or {"messages": [...]}; other keys are carried through.'
)
flags.DEFINE_string("output_file", "", "JSONL of answers, in the order of --prompts_file.")
flags.DEFINE_bool("resume", False, "Go on with the rows that an interrupted run left undone.")
flags.DEFINE_integer("batch_size", 1, "Prompts decoded at a time.", lower_bound=1)
flags.DEFINE_integer("max_new_tokens", 256, "Tokens of an answer at most, marks included.", lower_bound=1)
flags.DEFINE_integer(
  "max_len", None, "Tokens of prompt and answer at most; 2048, or the model's positions if these are fewer.",
  lower_bound=1,
)  # fmt: skip
flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token.")
flags.DEFINE_integer("top_k", 0, "Draw from the k likeliest tokens; 0: from all.")
flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens that hold this probability.")
flags.DEFINE_float("min_p", 0.0, "Draw from tokens with this fraction of the best one's probability.")
flags.DEFINE_integer("seed", 0, "Seed of the first row; row n takes seed + n.")
flags.DEFINE_multi_string("stop", [], "End the answer before this string; may be repeated.")
flags.DEFINE_bool("chat", True, "Put prompts through the model's chat template, if it has one.")
flags.DEFINE(
  _Stream(), "stream", "text", boolean=True,
  help="How the answer to --prompt is shown: text as it comes, in reading order; lanes, a live view of the"
  " chunks side by side (needs rich and a terminal, else text); none, the whole answer at its end.",
)  # fmt: skip
flags.DEFINE_bool("logprobs", False, "Write each token's log-probability into the output rows.")
flags.DEFINE_string(
  "dtype",
  "auto",
  "Of weights: float32, bfloat16, or auto: float32 on CPU, else bfloat16.",
)
flags.DEFINE_string("mesh", "", "Devices to use, e.g. data:1,tensor:4; default: one device.")
flags.DEFINE_integer("segment", 16, "Steps between two looks of the host.", lower_bound=1)
flags.DEFINE_string(
  "mode",
  "auto",
  "pasta: the answer may split into parallel lanes; sequential; auto: pasta where --adapter was trained on"
  " marks, else sequential.",
)
flags.DEFINE_integer("lanes", 8, "Threads of an answer that run at a time.", lower_bound=1)
flags.DEFINE_string("fork", "eager", "A chunk starts when its promise closes (eager) or its round is promised"
                    " (grouped).")  # fmt: skip
flags.DEFINE_string(
  "positions", "pred10", "What a promise reserves: pred10 (its length), fixed, none, max, oracle (scripted)."
)
flags.DEFINE_integer("fixed", 64, "Positions that --positions=fixed reserves.", lower_bound=0)
flags.DEFINE_integer("chunks", 32, "Chunks of an answer at most.", lower_bound=1)
flags.DEFINE_integer("round_chunks", 16, "Chunks between two syncs at most.", lower_bound=1)
flags.DEFINE_integer("chunk_tokens", 384, "Tokens of a chunk at most.", lower_bound=1)
flags.DEFINE_integer("topic_pieces", 8, "Tokens of a topic at most.", lower_bound=1)
flags.DEFINE_list(
  "promise_bias",
  None,
  "Added to a promise's logit as long as the answer has no chunk: below 0 fewer answers split, above 0 more."
  " One number, or two: for the first token, and for later ones. Default: what --adapter says, else 0.",
)
flags.DEFINE_string(
  "script", "", "Take the answer's tokens from a document; the model computes every step in full. A file in"
  " PASTA-LANG for --prompt; for --prompts_file the rows' key that holds it, e.g. document.",
)  # fmt: skip
flags.DEFINE_string("trace", "", "Write how the answer to --prompt was decoded: a .html page or .json.")
flags.DEFINE_string(
  "compilation_cache", runtime.default_cache_folder(), "Folder for compiled programs; empty turns it off."
)


def _run() -> None:
  runtime.use_compilation_cache(flags.FLAGS.compilation_cache)
  from pasta_jax.decode.launch import run
  from pasta_jax.decode.options import options_of

  run(options_of(flags.FLAGS.flag_values_dict()))


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  app.run(main)
