"""LoRA: beside the weights or merged, the same model; adapter files round-trip and say what is wrong."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasta_jax.lang.marks import MARKS
from pasta_jax.model import transformer
from pasta_jax.model.adapter import Adapter, load_adapter, quantized, save_adapter, with_adapter
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.lora import LoraConfig, adapted, adapter_table, first_mark, init_adapter, merge
from pasta_jax.model.presets import preset
from tests.toy import toy_model

LORA = LoraConfig(rank=3, alpha=5.0)
IDS = jnp.asarray([[1, 2, 257, 260, 5, 292, 256]])


@functools.partial(jax.jit, static_argnums=0)
def logits(cfg, params):
  size = IDS.shape[1]
  mask = transformer.causal_mask(jnp.asarray([size]), size)
  return transformer.forward(cfg, params, IDS, jnp.arange(size)[None], mask)


def trained(model, lora=LORA, marks=True, seed=0):
  """An adapter as training leaves it: nothing at zero."""
  adapter = init_adapter(model.config, lora, model.params, model.tokenizer.controls if marks else None, seed)
  rng = np.random.default_rng(seed)
  return {n: x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32) for n, x in adapter.items()}


def test_an_untrained_adapter_changes_nothing():
  model = toy_model(marks=True)
  start = first_mark(model.tokenizer.controls)
  adapter = init_adapter(model.config, LORA, model.params, model.tokenizer.controls, 0)
  params = adapted(model.params, adapter, LORA, start)
  np.testing.assert_allclose(logits(model.config, params), logits(model.config, model.params), atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_beside_and_merged_are_one_model_with_the_same_gradients(tied):
  model = toy_model(marks=True, tied_embeddings=tied)
  cfg, start = model.config, first_mark(model.tokenizer.controls)
  adapter = trained(model)
  assert ("head.rows" in adapter) == (not tied)

  def value(form, adapter):
    out = logits(cfg, form(model.params, adapter, LORA, start))
    return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

  (_, a), da = jax.value_and_grad(functools.partial(value, adapted), has_aux=True)(adapter)
  (_, b), db = jax.value_and_grad(functools.partial(value, merged_in_jax), has_aux=True)(adapter)
  np.testing.assert_allclose(a, b, atol=2e-4)
  for name in adapter:
    np.testing.assert_allclose(da[name], db[name], rtol=1e-3, atol=1e-2 * float(jnp.abs(db[name]).max()))
  whole = merge(model.params, adapter, LORA, start)
  np.testing.assert_allclose(logits(cfg, whole), a, atol=2e-4)
  assert not np.allclose(a, logits(cfg, model.params), atol=1e-2)


def merged_in_jax(params, adapter, lora, start):
  out = dict(params)
  for name, value in adapter.items():
    base, _, part = name.rpartition(".")
    if part == "a":
      out[base] = params[base] + lora.scale * jnp.tensordot(adapter[f"{base}.b"], value, axes=1)
    elif part == "rows":
      out[base] = params[base].at[start : start + len(MARKS)].set(value)
  return out


def test_targets_choose_what_is_adapted():
  table = adapter_table(toy_model(marks=True).config, LoraConfig(targets=("q", "down")), marks=False)
  assert {name.split(".", 2)[2] for name in table} == {"q.a", "q.b", "down.a", "down.b"}
  with pytest.raises(ValueError, match="did you mean 'down'"):
    LoraConfig(targets=("dwn",))
  with pytest.raises(ValueError, match="twice"):
    LoraConfig(targets=("q", "q"))
  with pytest.raises(ValueError, match="rank"):
    LoraConfig(rank=0)


def test_a_file_gives_back_what_quantising_leaves(tmp_path):
  model = toy_model(marks=True)
  arrays = trained(model)
  adapter = Adapter(arrays, LORA, True, "toy", {"steps": 3, "note": "ä"})
  path = save_adapter(tmp_path / "a.npz", adapter)
  loaded = load_adapter(path)
  assert (loaded.lora, loaded.marks, loaded.model, loaded.metadata) == (LORA, True, "toy", adapter.metadata)
  for name, value in quantized(arrays).items():
    assert np.array_equal(loaded.arrays[name], value)
    assert np.abs(value - arrays[name]).max() <= np.abs(arrays[name]).max() / 250 + 1e-3
  exact = load_adapter(save_adapter(tmp_path / "b.npz", adapter, quantize=False))
  assert all(np.array_equal(exact.arrays[name], arrays[name]) for name in arrays)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("rank", [16, 32])
def test_a_smollm2_adapter_has_at_most_12_mb(tmp_path, rank):
  lora = LoraConfig(rank=rank)
  table = adapter_table(preset("smollm2-135m"), lora, marks=True)
  arrays = {name: np.ones(spec.shape, np.float32) for name, spec in table.items()}
  path = save_adapter(tmp_path / "a.npz", Adapter(arrays, lora, True, "smollm2-135m"))
  assert path.stat().st_size < 12e6


def test_a_model_with_an_adapter_is_the_merged_one(tmp_path):
  model = toy_model(marks=True)
  arrays = trained(model)
  path = save_adapter(tmp_path / "a.npz", Adapter(arrays, LORA, True, "toy"), quantize=False)
  got = with_adapter(model, path)
  expected = merge(model.params, arrays, LORA, first_mark(model.tokenizer.controls))
  np.testing.assert_allclose(logits(model.config, got.params), logits(model.config, expected), atol=1e-5)
  twin = Adapter(trained(model, marks=False), LORA, False, "toy")
  plain = toy_model()
  assert with_adapter(plain, dataclasses.replace(twin)).tokenizer.controls is None


def test_an_adapter_says_how_readily_its_answers_split(tmp_path):
  model = toy_model(marks=True)
  made = Adapter(trained(model), LORA, True, "toy", {"config": {"promise_bias": [0, -1.5]}})
  path = save_adapter(tmp_path / "a.npz", made)
  assert with_adapter(model, path).promise_bias == (0, -1.5)
  twin = dataclasses.replace(made, arrays=trained(model, marks=False), marks=False)
  assert with_adapter(toy_model(), twin).promise_bias == (0, 0)
  save_adapter(path, dataclasses.replace(made, metadata={"config": {"promise_bias": "less"}}))
  with pytest.raises(WeightsError, match=r"a\.npz: not an adapter, or a damaged one"):
    load_adapter(path)


def test_files_that_are_no_adapters_or_do_not_fit_are_one_line(tmp_path):
  model = toy_model(marks=True)
  path = tmp_path / "a.npz"
  with pytest.raises(WeightsError, match="no such file"):
    load_adapter(path)
  save_adapter(path, Adapter(trained(model), LORA, True, "toy"))
  whole = path.read_bytes()
  for damage in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-40]):
    path.write_bytes(damage)
    with pytest.raises(WeightsError, match=r"a\.npz: not an adapter, or a damaged one") as e:
      load_adapter(path)
    assert "\n" not in str(e.value)
  path.write_bytes(whole)
  with pytest.raises(WeightsError, match=r"has shape .* trained on toy"):
    with_adapter(toy_model(marks=True, d_ff=64), path)
  with pytest.raises(WeightsError, match=r"no place for 'layers\.1"):
    with_adapter(toy_model(marks=True, num_layers=1), path)
  with pytest.raises(WeightsError, match="is missing"):
    with_adapter(toy_model(marks=True, num_layers=3), path)
  with pytest.raises(WeightsError, match="not finite"):
    save_adapter(path, Adapter({"layers.0.q.a": np.full((3, 4), np.nan)}, LORA, False, "toy"))
  assert path.read_bytes() == whole
