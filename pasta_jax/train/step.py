"""One optimiser step: forward, loss and gradient in parts of a batch, sums over sums, AdamW.

`Program` holds everything that is compiled; its functions are pure and take

    frozen   parameters that do not change, stacked (see forward.py), in the dtype of the computation: all of
           the model's with LoRA, else none
    state    {"step": int32, "params": what is trained, stacked, float32, "opt": the optimiser's}
    batch    arrays AxBxT: A parts of B rows, see packing.fill
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pasta_jax.lang.sequence import NO_TARGET
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.dtypes import resolve_dtype
from pasta_jax.model.layers import LINEAR
from pasta_jax.model.lora import LoraConfig, adapted, adapter_table
from pasta_jax.model.params import ParamSpec, param_table
from pasta_jax.model.sharding import named_sharding, partition_spec, replicated
from pasta_jax.train.attention import Tokens, attention_of
from pasta_jax.train.attention_reference import ATTENDED
from pasta_jax.train.config import Config
from pasta_jax.train.forward import hidden_states, stack_table
from pasta_jax.train.loss import class_sums, cross_entropy
from pasta_jax.train.packing import BATCH_NAMES, Batch

State = dict[str, Any]


def make_schedule(config: Config, steps: int) -> optax.Schedule:
  """The learning rate of each step of a run; with cycles, warm restarts (SGDR, arXiv 1608.03983)."""
  if config.cycles > 1:
    once = dataclasses.replace(config, cycles=1)
    ends = [round(steps * (n + 1) / config.cycles) for n in range(config.cycles)]
    parts = [make_schedule(once, end - start) for start, end in zip([0, *ends], ends)]
    return optax.join_schedules(parts, ends[:-1])
  warmup = round(config.warmup * steps)
  peak, last = config.learning_rate, config.learning_rate * config.final_rate
  rest = max(steps - warmup, 1)
  if config.schedule == "cosine":
    after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_rate)
  elif config.schedule == "linear":
    after = optax.linear_schedule(peak, last, rest)
  else:
    after = optax.constant_schedule(peak)
  if not warmup:
    return after
  # The first step takes a rate above zero.
  rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
  """AdamW, for a gradient whose norm has been cut."""

  def decays(params: Mapping[str, Any]) -> dict[str, bool]:
    spared = (".rows", "_bias", "_norm")  # what is stacked over layers has an axis more than it is
    return {name: not name.endswith(spared) for name in params}

  adamw = optax.adamw(
    make_schedule(config, steps),
    b1=config.adam_b1,
    b2=config.adam_b2,
    eps=config.adam_eps,
    weight_decay=config.weight_decay,
    mask=decays,
  )
  # In the place of optax.clip_by_global_norm, whose state is as empty: checkpoints keep their form.
  return optax.chain(optax.identity(), adamw) if config.clip else adamw


def mean_gradient(gradient: Any, weight: jax.Array, clip: float) -> tuple[Any, jax.Array]:
  """A sum's gradient divided by its weight, its norm then cut to `clip`; and the norm before that.

  Both are one factor: with optax.clip_by_global_norm, which chooses between two gradients, AdamW's pass over
  all parameters takes longer on CPU (docs/performance.md).

  Args:
    clip: 0 for none.
  """
  norm = optax.global_norm(gradient) / weight
  factor = (jnp.minimum(1.0, clip / norm) if clip else 1.0) / weight
  return jax.tree.map(lambda g: g * factor, gradient), norm


@dataclasses.dataclass(frozen=True)
class Program:
  """The functions of a run.

  Attributes:
    config: of the run.
    model: of the model, with rows for the marks.
    vocab: ids that exist.
    first_mark: the first control id; None where marks are not trained (the twin).
    steps: of the whole run.
    mesh: where it runs.
  """

  config: Config
  model: ModelConfig
  vocab: int
  first_mark: int | None
  steps: int
  mesh: Mesh

  @property
  def lora(self) -> LoraConfig | None:
    return self.config.lora_config if self.config.lora else None

  @property
  def compute_dtype(self) -> Any:
    """Of weights in a step."""
    return resolve_dtype(self.config.dtype, self.mesh.devices.flat[0].platform)

  @property
  def activation_dtype(self) -> Any:
    """A CPU has bfloat16 for matrix products alone."""
    on_cpu = self.mesh.devices.flat[0].platform == "cpu"
    return jnp.dtype(jnp.float32) if on_cpu else self.compute_dtype

  @functools.cached_property
  def optimizer(self) -> optax.GradientTransformation:
    return make_optimizer(self.config, self.steps)

  @functools.cached_property
  def schedule(self) -> optax.Schedule:
    return make_schedule(self.config, self.steps)

  # Where everything lies.

  @property
  def trained(self) -> dict[str, ParamSpec]:
    """What is trained, stacked over layers."""
    if self.lora is None:
      return stack_table(param_table(self.model))
    return stack_table(adapter_table(self.model, self.lora, self.first_mark is not None))

  @property
  def frozen(self) -> dict[str, ParamSpec]:
    """What is not, stacked."""
    return {} if self.lora is None else stack_table(param_table(self.model))

  def shardings(self, table: Mapping[str, ParamSpec]) -> dict[str, NamedSharding]:
    return {n: named_sharding(s.axes, s.shape, self.mesh) for n, s in table.items()}

  def abstract_state(self) -> State:
    """Shapes and shardings of the state."""
    shardings = self.shardings(self.trained)
    params = {
      n: jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=shardings[n]) for n, s in self.trained.items()
    }
    whole = replicated(self.mesh)
    opt = optax.tree_utils.tree_map_params(
      self.optimizer,
      lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
      jax.eval_shape(self.optimizer.init, params),
      params,
      transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
    )
    return {"step": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole), "params": params, "opt": opt}

  def state_shardings(self) -> Any:
    return jax.tree.map(lambda x: x.sharding, self.abstract_state())

  def batch_sharding(self) -> NamedSharding:
    """Of AxBxT."""
    shape = (self.config.accumulate, self.config.batch_rows // self.config.accumulate, self.config.length)
    return NamedSharding(self.mesh, partition_spec((None, "batch", None), shape, self.mesh))

  def place_batch(self, batch: Batch) -> dict[str, jax.Array]:
    """A host's batch, BxT, on the devices, AxBxT. In a run of several processes each has the whole batch."""
    parts, length = self.config.accumulate, self.config.length
    sharding = self.batch_sharding()

    def put(x: np.ndarray) -> jax.Array:
      cut = x.reshape(parts, -1, length)
      return jax.make_array_from_callback(cut.shape, sharding, lambda index: cut[index])

    return {name: put(x) for name, x in batch.items()}

  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what `place_batch` gives."""
    parts = self.config.accumulate
    shape = (parts, self.config.batch_rows // parts, self.config.length)
    dtypes = {name: jnp.float32 if name == "weight" else jnp.int32 for name in BATCH_NAMES}
    return {n: jax.ShapeDtypeStruct(shape, d, sharding=self.batch_sharding()) for n, d in dtypes.items()}

  def replicate(self, tree: Any) -> Any:
    """Arrays whole on every device, so that every process can read them."""
    return jax.jit(lambda x: x, out_shardings=replicated(self.mesh))(tree)

  # The functions.

  def new_state(self, params: Mapping[str, jax.Array]) -> State:
    """The state before the first step. `params`, stacked, are taken over, and must not be used again."""

    def init(params):
      return {"step": jnp.zeros((), jnp.int32), "params": params, "opt": self.optimizer.init(params)}

    return jax.jit(init, out_shardings=self.state_shardings(), donate_argnums=0)(dict(params))

  def weights(self, frozen: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """What a forward pass takes, in the dtype of the computation."""
    if self.lora is None:
      return {n: p.astype(self.compute_dtype) for n, p in params.items()}
    return adapted(frozen, params, self.lora, self.first_mark)

  def _hidden(self, weights: Mapping[str, Any], part: Mapping[str, jax.Array]) -> jax.Array:
    tokens = Tokens(*(part[name] for name in Tokens._fields))
    attention = attention_of(self.model, tokens, self.config.attention)
    rows = P(partition_spec(("batch",), part["ids"].shape[:1], self.mesh)[0], None, None)
    sharding = NamedSharding(self.mesh, rows)

    def wrap(layer):
      def run(x, xs):
        # Rows stay where their data is, whatever the parameters' shardings suggest.
        return layer(jax.lax.with_sharding_constraint(x, sharding), xs)

      return _remat(self.config.remat, run)

    on_one_cpu = self.mesh.size == 1 and self.mesh.devices.flat[0].platform == "cpu"
    return hidden_states(
      self.model, weights, part["ids"], part["position"], attention, wrap, self.activation_dtype, on_one_cpu
    )

  def _sums(
    self, frozen: Any, params: Any, part: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, Any]]:
    weights = self.weights(frozen, params)
    hidden = self._hidden(weights, part)
    table = weights["embed" if self.model.tied_embeddings else "head"]
    shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
    total, per_token = cross_entropy(
      self.model, self.vocab, self.config.logits_tokens, table, hidden, part["target"], part["weight"], shards
    )
    return total, per_token

  def train_step(self, frozen: Any, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
    """One step.

    Returns:
      The state, and metrics, scalars float32: loss (weighted mean, nats), gradient_norm, tokens (fed, without
      padding), and per class the sums of `loss.class_sums`.
    """

    def sums(params, part):
      total, per_token = self._sums(frozen, params, part)
      aux = class_sums(per_token["nll"], part["kind"], part["weight"] > 0)
      aux["tokens"] = (part["segment"] > 0).sum().astype(jnp.float32)
      return total, aux

    def add(carry, part):
      (total, aux), gradient = jax.value_and_grad(sums, has_aux=True)(state["params"], part)
      return jax.tree.map(jnp.add, carry, (total, aux, gradient)), None

    first = jax.tree.map(lambda x: x[0], batch)
    if self.config.accumulate == 1:
      (total, aux), gradient = jax.value_and_grad(sums, has_aux=True)(state["params"], first)
    else:
      shapes = jax.eval_shape(
        lambda p, x: jax.value_and_grad(sums, has_aux=True)(p, x), state["params"], first
      )
      (total, aux), gradient = shapes
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (total, aux, gradient))
      (total, aux, gradient), _ = jax.lax.scan(add, zeros, batch)
    weight = jnp.maximum(batch["weight"].sum(), 1e-6)
    with jax.named_scope("optimizer"):
      gradient, norm = mean_gradient(gradient, weight, self.config.clip)
      updates, opt = self.optimizer.update(gradient, state["opt"], state["params"])
      params = optax.apply_updates(state["params"], updates)
    metrics = aux | {"loss": total / weight, "gradient_norm": norm}
    return {"step": state["step"] + 1, "params": params, "opt": opt}, metrics

  def eval_step(self, frozen: Any, params: Any, batch: Any) -> dict[str, jax.Array]:
    """Of each token, teacher-forced: `nll` float32 and `best` int32, the likeliest id; AxBxT."""

    def one(part):
      weight = (part["target"] != NO_TARGET).astype(jnp.float32)
      return self._sums(frozen, params, part | {"weight": weight})[1]

    return jax.lax.map(one, batch)

  @functools.cached_property
  def jit_train_step(self) -> Any:
    return jax.jit(
      self.train_step, donate_argnums=1, out_shardings=(self.state_shardings(), replicated(self.mesh))
    )

  @functools.cached_property
  def jit_eval_step(self) -> Any:
    return jax.jit(self.eval_step, out_shardings=replicated(self.mesh))


def _remat(policy: str, layer: Any) -> Any:
  kept = {"attended": (LINEAR, ATTENDED), "dots": (LINEAR,), "full": ()}
  if policy == "none":
    return layer
  saveable = jax.checkpoint_policies.save_only_these_names(*kept[policy])
  return jax.checkpoint(layer, policy=saveable, prevent_cse=False)  # a scan keeps the passes apart
