"""The flags of `python -m pasta_jax.train.annotate`, and the options that they make."""

import dataclasses
from typing import Any

from absl import flags

from pasta_jax.train.annotate.chat import ChatOptions
from pasta_jax.train.annotate.rows import Keys
from pasta_jax.train.annotate.rules import style
from pasta_jax.train.annotate.run import RunOptions, parse_extra, parse_prices

_ANNOTATOR = flags.DEFINE_string("annotator", "", "rules, or llm: a model behind a chat endpoint.")
_INPUT = flags.DEFINE_string("input", "", "JSONL rows with a prompt and an answer; may be .gz.")
_OUTPUT = flags.DEFINE_string(
  "output", "", "JSONL rows with a prompt and a document, in the order of --input."
)
_REJECTED = flags.DEFINE_string("rejected", "", "JSONL of rejected rows with line, reason and detail.")
_REPORT = flags.DEFINE_string("report", "", "The account as a JSON file.")
_RESUME = flags.DEFINE_bool("resume", False, "Go on with the rows that an interrupted run left undone.")
_PROMPT_KEY = flags.DEFINE_string("prompt_key", "", "Key of the prompt; default: the usual ones.")
_ANSWER_KEY = flags.DEFINE_string("answer_key", "", "Key of the answer; default: the usual ones.")
_CONTEXT_KEY = flags.DEFINE_string("context_key", "", "Key of a text that belongs to the prompt.")
# -- rules
_STYLE = flags.DEFINE_string("style", "pasta", "pasta, or apar: heads on the main thread, no joins.")
_HEADS = flags.DEFINE_string("heads", None, "chunk or main: where the head of a part goes.")
_JOINS = flags.DEFINE_string("joins", None, "back or never: a sync before a text that looks back.")
_PARAGRAPHS = flags.DEFINE_string("paragraphs", None, "labelled, all or none: which become chunks.")
_STEPS = flags.DEFINE_string("steps", None, "keep or split: parts that build on each other.")
_SECTIONS = flags.DEFINE_string("sections", None, "best, whole or within: what a section is cut into.")
# -- llm
_PROVIDER = flags.DEFINE_string("provider", "openai", "The endpoint's protocol: openai or gemini.")
_BASE_URL = flags.DEFINE_string("base_url", "", "Where the endpoint is, e.g. http://localhost:8000/v1.")
_MODEL = flags.DEFINE_string("model", "", "The endpoint's name of the model.")
_KEY_ENV = flags.DEFINE_string("key_env", "", "Environment variable that holds the key; empty sends none.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of sampling.")
_EXTRA = flags.DEFINE_string(
  "extra", "{}", "JSON merged into each request, also within objects; null removes."
)
_ASKS = flags.DEFINE_integer("asks", 2, "Questions for one answer.", lower_bound=1)
_MAX_REPLY = flags.DEFINE_integer(
  "max_reply_tokens", 0, "0: by the answer's length; 4 times for a reply cut off.", lower_bound=0
)
_CONCURRENCY = flags.DEFINE_integer("concurrency", 8, "Rows under way at a time.", lower_bound=1)
_RPM = flags.DEFINE_integer("requests_per_minute", 0, "At most; 0: no limit.", lower_bound=0)
_TPM = flags.DEFINE_integer("tokens_per_minute", 0, "At most; 0: no limit.", lower_bound=0)
_TIMEOUT = flags.DEFINE_float("timeout", 120.0, "Seconds for a whole reply.", lower_bound=0.001)
_ATTEMPTS = flags.DEFINE_integer("attempts", 6, "Attempts for one question.", lower_bound=1)
_BACKOFF = flags.DEFINE_float("backoff", 1.0, "Seconds before the second; then doubled.", lower_bound=0.0)
_MAX_WAIT = flags.DEFINE_float("max_wait", 60.0, "Seconds between attempts at most.", lower_bound=0.0)
_MAX_FAILURES = flags.DEFINE_integer("max_failures", 10, "Failed rows in a row that end it.", lower_bound=1)
_GIVE_UP = flags.DEFINE_bool("give_up", False, "Count rows without a usable reply as rejected.")
_PRICES = flags.DEFINE_list("prices", None, "Of a million input and output tokens, e.g. 0.15,0.60.")


def options_from_flags() -> RunOptions:
  """Raises ValueError for flags that cannot be."""
  if not _INPUT.value or not _OUTPUT.value:
    raise ValueError("give --input and --output")
  chosen = {
    "heads": _HEADS,
    "joins": _JOINS,
    "paragraphs": _PARAGRAPHS,
    "steps": _STEPS,
    "sections": _SECTIONS,
  }
  rules: dict[str, Any] = {name: flag.value for name, flag in chosen.items() if flag.value is not None}
  chat = (
    ChatOptions(
      model=_MODEL.value,
      provider=_PROVIDER.value,
      base_url=_BASE_URL.value,
      key_env=_KEY_ENV.value,
      temperature=_TEMPERATURE.value,
      timeout=_TIMEOUT.value,
      attempts=_ATTEMPTS.value,
      backoff=_BACKOFF.value,
      max_wait=_MAX_WAIT.value,
      requests_per_minute=_RPM.value,
      tokens_per_minute=_TPM.value,
      extra=parse_extra(_EXTRA.value),
    )
    if _ANNOTATOR.value == "llm"
    else None
  )
  return RunOptions(
    annotator=_ANNOTATOR.value,
    input=_INPUT.value,
    output=_OUTPUT.value,
    keys=Keys(_PROMPT_KEY.value, _ANSWER_KEY.value, _CONTEXT_KEY.value),
    rules=dataclasses.replace(style(_STYLE.value), **rules),
    chat=chat,
    asks=_ASKS.value,
    max_reply_tokens=_MAX_REPLY.value,
    concurrency=_CONCURRENCY.value,
    max_failures=_MAX_FAILURES.value,
    give_up=_GIVE_UP.value,
    resume=_RESUME.value,
    rejected=_REJECTED.value,
    report=_REPORT.value,
    prices=parse_prices(_PRICES.value),
  )
