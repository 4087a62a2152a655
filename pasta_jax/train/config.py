"""The configuration of a training run: frozen inside, a Python file and flags at the edge.

A file such as configs/stage1_smollm2_135m.py defines `get_config()`: it returns `config_dict(Config(...))`.
With it, `--config=FILE --config.learning_rate=3e-4` changes one field. Names that do not exist fail, with the
nearest right one.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pasta_jax.lang.interpreter import FORKS, POSITIONS
from pasta_jax.model.config import _nearest
from pasta_jax.model.lora import TARGETS, LoraConfig
from pasta_jax.model.sharding import parse_mesh
from pasta_jax.train.attention import PATHS
from pasta_jax.train.loss import CLASSES

SCHEDULES = ("cosine", "linear", "constant")
REMAT = ("none", "attended", "dots", "full")
DTYPES = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Config:
  """One run of stage 1.

  Attributes:
    model: what `load_model` takes.
    data: JSONL files of rows; those that start with "data/" are looked for in the working folder first, then
      beside the package.
    data_weights: how often an epoch has each file's rows, one number per file.
    data_text_weights: factor on the loss of text of each file's rows, one number per file; () for 1.
      What a model wrote itself teaches it marks, and no text.
    data_min_speedup: rows of each file are trained on from this theoretical speedup on, one number per file;
      () or 0 for all. A file may be named twice, to have its fast rows more often.
    unsplit_weight: factor on that for rows whose document has no chunk: they are the minority that teaches
      when not to split.
    holdout: fraction of prompts that are evaluated and never trained on.
    skip_bad_rows: leave bad rows out, instead of refusing the file.
    tighten: chunks begin with their own list markers, headings and spaces, see lang/tighten.py.
    twin: the same rows without marks, in the same batches.
    lora: low-rank updates; false trains all parameters.
    lora_rank, lora_alpha, lora_targets: see model/lora.py.
    adapter: the file of an adapter to go on from, instead of from a new one; "" for none. Of the same rank,
      alpha, targets and model; a twin goes on from a twin, and `{kind}` in the name is pasta or twin. The
      optimiser starts anew.
    learning_rate: the peak.
    schedule: after the warm-up: "cosine" or "linear" to `final_rate` times the peak, or "constant".
    warmup: fraction of the steps.
    final_rate: see schedule.
    cycles: how often warm-up and schedule run, one after the other, in equal parts of the steps.
    weight_decay: AdamW's; not on norms and biases, nor, with LoRA, on the marks' rows.
    adam_b1, adam_b2, adam_eps: AdamW's.
    clip: the gradient's norm is cut to this; 0 turns that off.
    batch_rows: rows of T tokens in a step.
    accumulate: parts that a step is computed in, one after the other.
    length: T, tokens of a packed row.
    epochs: passes over the data.
    steps: steps instead of epochs; 0: as many as the epochs take.
    seed: of the order of the data and of new parameters.
    class_weights: factor on the loss of each class of target.
    promise_bias: what answers of the adapter are decoded with, see decode/requests.py: two numbers, or one
      for both; training makes no use of it.
    fork, positions, fixed: see docs/design.md, section 4.
    attention: path of training attention, see train/attention.py.
    remat: what the backward pass computes again: "none", "attended" (all but linear maps and, on the
      reference path, attention's weights, 5/8 of B x H x T x T per layer, and sums), "dots" (all but linear
      maps), "full".
    logits_tokens: tokens whose logits exist at a time at most, over the whole batch.
    dtype: of the computation, on CPU of its matrix products alone; weights that are trained are float32 in
      any case. "auto": bfloat16, but float32 on CPUs without AVX512-BF16.
    mesh: e.g. "data:2,fsdp:4".
    eval_every: steps between evaluations; 0: at the end only.
    eval_rows: held-out documents of an evaluation at most; 0: all. Of one file the first ones, of several a
      fixed sample spread over all.
    log_every: steps between lines of metrics.
    save_every: steps between checkpoints; 0: at the end only.
    keep: newest checkpoints that are kept, beside that of the lowest held-out loss.
    diverged: stop when the loss exceeds this many times its lowest average; 0: never.
  """

  model: str = "smollm2-135m"
  data: tuple[str, ...] = ("data/seed.jsonl",)
  data_weights: tuple[float, ...] = (1.0,)
  data_text_weights: tuple[float, ...] = ()
  data_min_speedup: tuple[float, ...] = ()
  unsplit_weight: float = 1.0
  holdout: float = 0.1
  skip_bad_rows: bool = False
  tighten: bool = False
  twin: bool = False
  lora: bool = True
  lora_rank: int = 16
  lora_alpha: float = 32.0
  lora_targets: tuple[str, ...] = TARGETS
  adapter: str = ""
  learning_rate: float = 5e-4
  schedule: str = "cosine"
  warmup: float = 0.05
  final_rate: float = 0.05
  cycles: int = 1
  weight_decay: float = 0.0
  adam_b1: float = 0.9
  adam_b2: float = 0.99
  adam_eps: float = 1e-8
  clip: float = 1.0
  batch_rows: int = 4
  accumulate: int = 1
  length: int = 512
  epochs: float = 1.0
  steps: int = 0
  seed: int = 0
  class_weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(CLASSES, 1.0))
  promise_bias: tuple[float, float] = (0.0, 0.0)
  fork: str = "eager"
  positions: str = "pred10"
  fixed: int = 64
  attention: str = "auto"
  remat: str = "full"
  logits_tokens: int = 512
  dtype: str = "auto"
  mesh: str = ""
  eval_every: int = 0
  eval_rows: int = 128
  log_every: int = 10
  save_every: int = 0
  keep: int = 2
  diverged: float = 3.0

  def __post_init__(self):
    if isinstance(self.promise_bias, int | float):
      object.__setattr__(self, "promise_bias", (self.promise_bias,) * 2)
    lists = ("data", "data_weights", "data_text_weights", "data_min_speedup", "lora_targets", "promise_bias")
    for name in lists:
      object.__setattr__(self, name, tuple(getattr(self, name)))
    object.__setattr__(self, "class_weights", dict(self.class_weights))
    self._check()

  def _check(self) -> None:
    def require(good: bool, name: str, what: str) -> None:
      if not good:
        raise ValueError(f"config.{name} must be {what}, got {getattr(self, name)!r}")

    def one_of(name: str, choices: tuple[str, ...]) -> None:
      value = getattr(self, name)
      if value not in choices:
        raise ValueError(f"config.{name} {value!r} is unknown{_nearest(str(value), choices)}")

    one_of("schedule", SCHEDULES)
    one_of("fork", FORKS)
    one_of("positions", POSITIONS)
    one_of("attention", PATHS)
    one_of("remat", REMAT)
    one_of("dtype", DTYPES)
    for name in self.class_weights:
      if name not in CLASSES:
        raise ValueError(f"config.class_weights names {name!r}{_nearest(str(name), CLASSES)}")
    require(bool(self.data), "data", "one file or more")
    require(
      len(self.data_weights) == len(self.data), "data_weights", f"{len(self.data)} numbers, one per file"
    )
    require(min(self.data_weights) >= 0 and max(self.data_weights) > 0, "data_weights", ">= 0, one above 0")
    for name in ("data_text_weights", "data_min_speedup"):
      values = getattr(self, name)
      require(len(values) in (0, len(self.data)), name, f"{len(self.data)} numbers, one per file")
      require(min(values, default=0) >= 0, name, ">= 0")
    require(self.unsplit_weight >= 0, "unsplit_weight", "at least 0")
    require(0 <= self.holdout < 1, "holdout", "in [0, 1)")
    require(self.learning_rate > 0 and math.isfinite(self.learning_rate), "learning_rate", "above 0")
    two = len(self.promise_bias) == 2 and all(math.isfinite(bias) for bias in self.promise_bias)
    require(two, "promise_bias", "two numbers")
    require(
      self.lora or not any(self.promise_bias),
      "promise_bias",
      "(0, 0) where lora is False: an adapter's file holds it",
    )
    require(0 <= self.warmup < 1, "warmup", "in [0, 1)")
    require(0 <= self.final_rate <= 1, "final_rate", "in [0, 1]")
    require(min(self.class_weights.values(), default=1) >= 0, "class_weights", ">= 0")
    for name in (
      "batch_rows",
      "accumulate",
      "length",
      "logits_tokens",
      "log_every",
      "keep",
      "lora_rank",
      "cycles",
    ):
      require(getattr(self, name) >= 1, name, "at least 1")
    for name in (
      "steps",
      "eval_every",
      "eval_rows",
      "save_every",
      "clip",
      "weight_decay",
      "diverged",
      "fixed",
    ):
      require(getattr(self, name) >= 0, name, "at least 0")
    require(self.steps > 0 or self.epochs > 0, "epochs", "above 0, or steps set")
    require(
      self.batch_rows % self.accumulate == 0, "accumulate", f"a divisor of batch_rows {self.batch_rows}"
    )
    require(self.lora or not self.adapter, "adapter", "empty where lora is False")
    if self.lora:
      self.lora_config  # noqa: B018  (checks itself)
    parse_mesh(self.mesh)

  @property
  def adapter_file(self) -> str:
    """`adapter` of this kind of run."""
    return self.adapter.replace("{kind}", "twin" if self.twin else "pasta")

  @property
  def lora_config(self) -> LoraConfig:
    return LoraConfig(self.lora_rank, self.lora_alpha, self.lora_targets)

  @classmethod
  def of(cls, values: Mapping[str, Any]) -> "Config":
    """The configuration of a mapping.

    Raises:
      ValueError: an unknown name, with the nearest right one, or a value that does not fit.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    for name in values:
      if name not in names:
        raise ValueError(f"config has no field {name!r}{_nearest(str(name), names)}")
    try:
      return cls(**values)
    except TypeError as e:
      raise ValueError(f"config: {e}") from None

  def as_dict(self) -> dict[str, Any]:
    """Plain values, as JSON has them."""
    values = dataclasses.asdict(self)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def config_dict(config: Config) -> Any:
  """A `ml_collections.ConfigDict` for flags to change."""
  import ml_collections

  return ml_collections.ConfigDict(dataclasses.asdict(config))
