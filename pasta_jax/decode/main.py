"""Answers prompts: `python -m pasta_jax.decode.main --model=smollm2-135m --prompt="..."`."""

import sys

from absl import app, flags

from pasta_jax import runtime

_MODEL = flags.DEFINE_string(
  "model",
  "smollm2-135m",
  "A preset whose weights come as a package (smollm2-135m, gemma3-270m), a path (GGUF file, Hugging Face"
  " folder, checkpoint of ours, Gemma's Orbax folder), hf:owner/name, or random:PRESET.",
)
_PROMPT = flags.DEFINE_string("prompt", "", "One prompt; the answer goes to standard output.")
_SYSTEM = flags.DEFINE_string("system", "", "A system message put before every prompt.")
_PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file", "", 'JSONL rows {"prompt": ...} or {"messages": [...]}; other keys are carried through.'
)
_OUTPUT_FILE = flags.DEFINE_string("output_file", "", "JSONL of answers, in the order of --prompts_file.")
_RESUME = flags.DEFINE_bool("resume", False, "Go on with the rows that an interrupted run left undone.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Prompts decoded at a time.", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Tokens of an answer at most.", lower_bound=1)
_MAX_LEN = flags.DEFINE_integer("max_len", 2048, "Tokens of prompt and answer at most.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from the k likeliest tokens; 0: from all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens that hold this probability.")
_MIN_P = flags.DEFINE_float(
  "min_p", 0.0, "Draw from tokens with this fraction of the best one's probability."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first row; row n takes seed + n.")
_STOP = flags.DEFINE_multi_string("stop", [], "End the answer before this string; may be repeated.")
_CHAT = flags.DEFINE_bool("chat", True, "Put prompts through the model's chat template, if it has one.")
_STREAM = flags.DEFINE_bool("stream", True, "Print the answer to --prompt as it comes.")
_LOGPROBS = flags.DEFINE_bool("logprobs", False, "Write each token's log-probability into the output rows.")
_DTYPE = flags.DEFINE_string("dtype", "auto", "float32, bfloat16, or auto: float32 on CPU, else bfloat16.")
_MESH = flags.DEFINE_string("mesh", "", "Devices to use, e.g. data:1,tensor:4; default: one device.")
_SEGMENT = flags.DEFINE_integer("segment", 16, "Steps between two looks of the host.", lower_bound=1)
_CACHE = flags.DEFINE_string(
  "compilation_cache", runtime.default_cache_folder(), "Folder for compiled programs; empty turns it off."
)


def _run() -> None:
  runtime.use_compilation_cache(_CACHE.value)
  from pasta_jax.decode.launch import Options, run
  from pasta_jax.decode.requests import Sampling

  run(
    Options(
      model=_MODEL.value,
      prompt=_PROMPT.value,
      system=_SYSTEM.value,
      prompts_file=_PROMPTS_FILE.value,
      output_file=_OUTPUT_FILE.value,
      resume=_RESUME.value,
      batch_size=_BATCH_SIZE.value,
      max_new_tokens=_MAX_NEW_TOKENS.value,
      max_len=_MAX_LEN.value,
      sampling=Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MIN_P.value, _SEED.value),
      stop=tuple(_STOP.value),
      chat=_CHAT.value,
      stream=_STREAM.value,
      logprobs=_LOGPROBS.value,
      dtype=_DTYPE.value,
      mesh=_MESH.value,
      segment=_SEGMENT.value,
    )
  )


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  sys.exit(runtime.run_main(_run))


if __name__ == "__main__":
  app.run(main)
