"""What a launch is asked for: the flags of `decode.main` as one checked dataclass."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from pasta_jax.decode.requests import Request, Sampling, nearest
from pasta_jax.decode.trace_file import check_trace_path
from pasta_jax.lang.grammar import Limits
from pasta_jax.lang.threads import Threads
from pasta_jax.model.adapter import adapter_has_marks
from pasta_jax.model.bundled import find_adapter

DTYPES = ("auto", "float32", "bfloat16")
MODES = ("auto", "sequential", "pasta")
STREAMS = ("text", "lanes", "none")


@dataclasses.dataclass(frozen=True)
class Options:
  """What the flags of `decode.main` say; see their help.

  Raises:
    ValueError: flags that do not go together or are misspelt, with one line for the user.
  """

  model: str
  adapter: str = ""
  prompt: str = ""
  system: str = ""
  prompts_file: str = ""
  output_file: str = ""
  resume: bool = False
  batch_size: int = 1
  max_new_tokens: int = 256
  max_len: int | None = None
  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  stop: tuple[str, ...] = ()
  chat: bool = True
  stream: str = "text"
  logprobs: bool = False
  dtype: str = "auto"
  mesh: str = ""
  segment: int = 16
  mode: str = "auto"
  lanes: int = 8
  fork: str = "eager"
  positions: str = "pred10"
  fixed: int = 64
  limits: Limits = dataclasses.field(default_factory=Limits)
  promise_bias: tuple[float, float] | None = None
  script: str = ""
  trace: str = ""

  def __post_init__(self):
    for name, known in (("dtype", DTYPES), ("mode", MODES), ("stream", STREAMS)):
      if getattr(self, name) not in known:
        raise ValueError(f"--{nearest(name, getattr(self, name), known)}")
    if bool(self.prompt) == bool(self.prompts_file):
      raise ValueError("give one of --prompt and --prompts_file")
    if self.prompts_file and not self.output_file:
      raise ValueError("--prompts_file needs --output_file")
    if self.output_file and not self.prompts_file:
      raise ValueError("--output_file needs --prompts_file")
    if self.prompts_file and self.trace:
      raise ValueError("--trace shows one answer; give --prompt instead of --prompts_file")
    if self.prompts_file and self.stream == "lanes":
      raise ValueError("--stream=lanes shows one answer; give --prompt instead of --prompts_file")
    if self.trace:
      check_trace_path(self.trace)
    self._check_mode()
    # A setting that no request can have is told before a model is loaded.
    Request(
      "x", self.max_new_tokens, self.sampling, self.stop, fork=self.fork, positions=self.positions,
      fixed=self.fixed, promise_bias=self.promise_bias, script=Threads(()) if self.script else None,
    )  # fmt: skip

  def _check_mode(self) -> None:
    if self.mode == "pasta" and self.adapter_file and not self._adapter_marks:
      raise ValueError(
        f"--adapter {self.adapter} was not trained on marks: it answers with --mode=sequential"
      )
    if self.pasta:
      if self.lanes < 2:
        raise ValueError("--mode=pasta needs at least 2 --lanes; --mode=sequential has one")
      return
    for field in dataclasses.fields(self):
      default = field.default_factory() if callable(field.default_factory) else field.default
      if field.name in _PASTA_ONLY and getattr(self, field.name) != default:
        what = "means something in lanes only: with --mode=pasta, or an --adapter trained on marks"
        raise ValueError(f"--{_PASTA_ONLY[field.name]} {what}")

  @property
  def pasta(self) -> bool:
    """Whether answers may have marks."""
    return self.mode == "pasta" or (self.mode == "auto" and self._adapter_marks)

  @functools.cached_property
  def adapter_file(self) -> str:
    """Where the adapter is; empty without one."""
    return find_adapter(self.adapter, self.model)

  @functools.cached_property
  def _adapter_marks(self) -> bool:
    return bool(self.adapter_file) and adapter_has_marks(self.adapter_file)


# Fields that the sequential mode makes no use of, and the flags that set them.
_PASTA_ONLY = {
  "lanes": "lanes",
  "fork": "fork",
  "positions": "positions",
  "fixed": "fixed",
  "promise_bias": "promise_bias",
  "limits": "chunks, --round_chunks, --chunk_tokens or --topic_pieces",
}


def _bias(given: list[str] | None) -> tuple[float, float] | None:
  if given is None:
    return None
  try:
    first, later = map(float, given * 2 if len(given) == 1 else given)
  except ValueError:
    raise ValueError(f"--promise_bias takes one number, or two, got {','.join(given)!r}") from None
  return first, later


def options_of(flags: Mapping[str, Any]) -> Options:
  """The options that flags set; a flag has the name of a field of Options, Sampling or Limits."""

  def those_of(cls: type) -> dict[str, Any]:
    return {f.name: flags[f.name] for f in dataclasses.fields(cls) if f.name in flags}

  chosen = those_of(Options) | {
    "stop": tuple(flags["stop"]),
    "promise_bias": _bias(flags["promise_bias"]),
    "sampling": Sampling(**those_of(Sampling)),
    "limits": Limits(**those_of(Limits)),
  }
  return Options(**chosen)
