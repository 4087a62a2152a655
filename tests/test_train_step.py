"""A training step: the model of model/transformer.py, sums over sums, only what is trained has a gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pasta_jax.lang.sequence import NO_TARGET
from pasta_jax.model import transformer
from pasta_jax.model.lora import LoraConfig, adapter_table
from pasta_jax.model.params import param_table
from pasta_jax.train.config import REMAT
from pasta_jax.train.forward import stack_table
from pasta_jax.train.packing import fill
from pasta_jax.train.setup import set_up
from pasta_jax.train.step import make_optimizer, make_schedule, mean_gradient
from tests.toy import toy_model
from tests.train_toy import CFG, small, toy, write_rows
from tests.weights_files import CONFIGS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def made(data, cfg=CFG, **changes):
  config = small(data, **changes)
  return set_up(config, toy_model(marks=True, cfg=cfg))


@functools.partial(jax.jit, static_argnums=0)
def forward(cfg, params, ids, position, mask):
  return transformer.forward(cfg, params, ids, position, mask)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3"])
def test_packed_and_scanned_it_is_the_forward_pass_of_each_document_alone(data, family):
  cfg = CONFIGS[family].replace(max_len=2048, sliding_window=8 if family.startswith("gemma") else None)
  model = toy_model(marks=True, cfg=cfg)
  run = set_up(small(data, attention="blockwise" if family == "gemma2" else "auto"), model)
  rows = run.loader.rows_of(0)[:4]
  assert max(len(row) for row in rows) > 1
  batch = fill(rows, 4, 128)
  out = run.program.jit_eval_step(run.frozen, run.state["params"], run.program.place_batch(batch))
  params = toy_model(marks=True, cfg=cfg).params
  for b, row in enumerate(rows):
    for number, example in enumerate(row, start=1):
      s = example.sequence
      pad = 128 - len(s)
      ids, position = (jnp.asarray(np.pad(x, (0, pad)))[None] for x in (s.ids, s.position))
      mask = jnp.asarray(np.pad(s.mask(), ((0, pad), (0, pad))))[None]
      log_p = jax.nn.log_softmax(forward(model.config, params, ids, position, mask)[0, : len(s)])
      expected = np.where(s.target != NO_TARGET, -log_p[np.arange(len(s)), np.maximum(s.target, 0)], 0.0)
      np.testing.assert_allclose(out["nll"][0, b][batch["segment"][b] == number], expected, atol=1e-4)


def one_step(run, batch=None):
  program = run.program
  batch = program.place_batch(batch or run.loader.next())
  return program.jit_train_step(run.frozen, run.state, batch)


def test_parts_rematerialisation_and_paths_change_no_step(data):
  expected = None
  for changes in (
    {"remat": "none"},
    {"remat": "dots", "accumulate": 2},
    {"remat": "attended"},
    {"remat": "full", "accumulate": 4, "logits_tokens": 16, "attention": "blockwise"},
  ):
    state, metrics = one_step(made(data, **changes))
    got = (state["params"], metrics)
    expected = expected or got
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_parts_with_different_numbers_of_targets_weigh_by_their_targets(data):
  """The mean over a batch is that of its tokens, not of its parts' means."""
  run = made(data, accumulate=2)
  batch = run.loader.next()
  batch["weight"][2:, 5:] = 0
  halves = [
    float(one_step(made(data, batch_rows=2), {n: x[part] for n, x in batch.items()})[1]["loss"])
    for part in (slice(0, 2), slice(2, 4))
  ]
  weights = batch["weight"].reshape(2, -1).sum(1)
  _, metrics = one_step(run, batch)
  np.testing.assert_allclose(metrics["loss"], np.dot(halves, weights) / weights.sum(), rtol=1e-5)
  assert abs(float(metrics["loss"]) - np.mean(halves)) > 1e-3


@pytest.mark.parametrize("lora", [True, False])
def test_training_learns(data, lora):
  run = made(data, lora=lora, steps=40, learning_rate=2e-2, lora_rank=4)
  program = run.program
  losses = []
  for _ in range(40):
    run.state, metrics = program.jit_train_step(run.frozen, run.state, program.place_batch(run.loader.next()))
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-5:]) < 0.6 * losses[0]
  assert int(run.state["step"]) == 40


def products(run):
  """Shapes of the results of all matrix products of a step."""
  program = run.program
  jaxpr = jax.make_jaxpr(program.train_step)(run.frozen, run.state, program.place_batch(run.loader.next()))
  shapes = []

  def visit(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "dot_general":
        shapes.append(tuple(eqn.outvars[0].aval.shape))
      for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
        if hasattr(value, "jaxpr"):
          visit(value.jaxpr)
        elif hasattr(value, "eqns"):
          visit(value)

  visit(jaxpr.jaxpr)
  return shapes


def test_rematerialisation_repeats_the_products_that_it_does_not_keep(data):
  attention, others = {}, {}
  for remat in REMAT:
    batched = [len(shape) == 4 for shape in products(made(data, remat=remat, lora=False))]
    attention[remat], others[remat] = sum(batched), len(batched) - sum(batched)
  assert attention["none"] == attention["attended"] < attention["dots"] == attention["full"]
  assert others["none"] == others["attended"] == others["dots"] < others["full"]


def test_frozen_weights_cost_no_gradient(data):
  cfg = CFG.replace(d_ff=56)
  weights = {(56, 32), (32, 56)}
  table = toy_model(marks=True, cfg=cfg).config.vocab_size
  lora, full = (products(made(data, cfg=cfg, lora=lora)) for lora in (True, False))
  assert weights & set(full)
  assert not weights & set(lora)
  assert (table, 32) in full
  assert (table, 32) not in lora
  assert (36, 32) in lora  # the marks' rows


def test_the_twin_trains_no_rows_of_marks_and_frozen_weights_stay(data):
  run = made(data, twin=True)
  assert not [name for name in run.state["params"] if name.endswith(".rows")]
  before = {name: np.asarray(x) for name, x in run.frozen.items()}
  one_step(run)
  assert all(np.array_equal(run.frozen[name], before[name]) for name in before)


def test_what_is_trained_is_float32_whatever_the_computation(data):
  for lora in (True, False):
    run = made(data, dtype="bfloat16", lora=lora)
    state, metrics = one_step(run)
    assert {x.dtype for x in jax.tree.leaves(state["params"])} == {np.dtype(np.float32)}
    assert {x.dtype for x in jax.tree.leaves(state["opt"])} <= {np.dtype(np.float32), np.dtype(np.int32)}
    assert np.isfinite(metrics["loss"])
    assert (
      jax.eval_shape(run.program.weights, run.frozen, state["params"])["final_norm"].dtype == jnp.bfloat16
    )


def test_schedules():
  config = small("x", learning_rate=1.0, warmup=0.1, final_rate=0.1)
  cosine, linear, constant = (
    np.array([make_schedule(dataclasses.replace(config, schedule=s), 100)(n) for n in range(101)])
    for s in ("cosine", "linear", "constant")
  )
  for rates in (cosine, linear, constant):
    assert 0 < rates[0] < 0.2
    assert np.argmax(rates) == 10
    assert rates.max() == 1
  np.testing.assert_allclose([cosine[-1], linear[-1], constant[-1]], [0.1, 0.1, 1.0], atol=1e-6)
  np.testing.assert_allclose(linear[55], 0.55, atol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_cycle_is_a_run_of_its_own(schedule):
  """So that a run of more cycles goes on from the checkpoints of one with fewer."""
  config = small("x", learning_rate=1.0, warmup=0.1, final_rate=0.1, schedule=schedule)
  once = make_schedule(config, 20)
  thrice = make_schedule(dataclasses.replace(config, cycles=3), 60)
  want = [float(once(n)) for n in range(20)] * 3
  assert [float(thrice(n)) for n in range(60)] == want


@pytest.mark.parametrize("lora", [True, False])
def test_weight_decay_spares_norms_biases_and_the_marks_rows(lora):
  cfg = CONFIGS["qwen2"].replace(qk_norm=True, post_norms=True)
  table = adapter_table(cfg, LoraConfig(2, 4.0), True) if lora else param_table(cfg)
  params = {name: np.ones(s.shape, np.float32) for name, s in stack_table(table).items()}
  config = small("x", learning_rate=0.5, schedule="constant", warmup=0.0, weight_decay=0.1)
  optimizer = make_optimizer(config, 10)
  zeros = jax.tree.map(np.zeros_like, params)
  updates = jax.jit(lambda p: optimizer.update(zeros, optimizer.init(p), p)[0])(params)
  decayed = {name for name, x in updates.items() if np.all(x)}
  assert all(not np.any(x) for name, x in updates.items() if name not in decayed)
  maps = {f"layers.{n}" for n in ("q", "k", "v", "o", "gate", "up", "down")}
  assert decayed == ({f"{n}.{x}" for n in maps for x in "ab"} if lora else {*maps, "embed"})
  np.testing.assert_allclose(updates[min(decayed)], -0.05, rtol=1e-6)


@pytest.mark.parametrize("clip", [2.0, 0.0])
@pytest.mark.parametrize("scale", [10.0, 0.1, 0.0])
def test_the_norm_of_the_mean_gradient_is_cut_as_optax_does(clip, scale):
  weight = 4.0
  mean = {"q": jnp.full((3, 4), 0.6 * scale / 12**0.5), "final_norm": jnp.full(5, 0.8 * scale / 5**0.5)}
  summed = jax.tree.map(lambda g: g * weight, mean)
  cut, norm = jax.jit(mean_gradient, static_argnums=2)(summed, jnp.float32(weight), clip)
  np.testing.assert_allclose(norm, scale, rtol=1e-6)
  expected = optax.clip_by_global_norm(clip).update(mean, optax.EmptyState())[0] if clip else mean
  for name, x in cut.items():
    np.testing.assert_allclose(x, expected[name], rtol=1e-6)


def test_a_step_gives_adam_the_cut_gradient_and_tells_its_norm_before(data):
  norms, moments = [], []
  for clip in (0.0, 0.25):
    run = made(data, clip=clip, accumulate=2)
    batch = run.program.place_batch(run.loader.next())
    state, metrics = run.program.jit_train_step(run.frozen, run.state, batch)
    norms.append(float(metrics["gradient_norm"]))
    moments.append(optax.tree_utils.tree_get(state["opt"], "mu"))
  assert norms[0] == pytest.approx(norms[1], rel=1e-6)
  assert norms[0] > 0.25
  for moment, norm in zip(moments, (norms[0], 0.25), strict=True):
    assert float(optax.global_norm(moment)) == pytest.approx((1 - 0.9) * norm, rel=1e-5)


def test_a_batch_that_does_not_divide_over_the_mesh_and_other_misfits_are_refused(data):
  with pytest.raises(ValueError, match="exceeds the 64 positions"):
    made(data, cfg=CFG.replace(max_len=64))
  with pytest.raises(ValueError, match="has no tokenizer"):
    set_up(small(data), dataclasses.replace(toy(), tokenizer=None))
  with pytest.raises(ValueError, match=r"fits into config\.length 16"):
    made(data, length=16)
