"""Operations of a step as XLA counts them, and what devices can do."""

import itertools
import types

import jax
import jax.numpy as jnp
import pytest

from pasta_jax.model import transformer
from pasta_jax.model.lora import LoraConfig, adapted, adapter_table
from pasta_jax.model.params import abstract_params, num_params
from pasta_jax.train import flops
from pasta_jax.train.flops import peak_flops, step_flops
from tests.toy import TOY

CFG = TOY.replace(vocab_size=512, d_model=128, d_ff=256, num_heads=4, num_kv_heads=2, head_dim=32)
T = 64


def counted(cfg, lora: LoraConfig | None) -> float:
  """Operations per token of a gradient in XLA's own count, which has the masked half of attention too."""
  frozen = dict(abstract_params(cfg, jnp.float32))
  trained = frozen
  if lora:
    table = adapter_table(cfg, lora, False)
    trained = {n: jax.ShapeDtypeStruct(s.shape, jnp.float32) for n, s in table.items()}

  def loss(trained, frozen, ids):
    params = adapted(frozen, trained, lora, None) if lora else trained
    mask = transformer.causal_mask(jnp.array([T]), T)
    return transformer.forward(cfg, params, ids, jnp.arange(T)[None], mask).sum()

  ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
  return jax.jit(jax.grad(loss)).lower(trained, frozen, ids).cost_analysis()["flops"] / T


def test_a_step_takes_what_its_matrix_products_take():
  attention = 6.0 * T * CFG.num_heads * CFG.head_dim * CFG.num_layers  # the half that is masked
  for cfg in (CFG.replace(tied_embeddings=True), CFG.replace(tied_embeddings=False)):
    expected = step_flops(cfg, num_params(cfg), T) + attention
    assert counted(cfg, None) == pytest.approx(expected, rel=0.1)


def test_frozen_weights_take_a_third_less():
  lora = LoraConfig(4, 8.0)
  trained = sum(s.size for s in adapter_table(CFG, lora, False).values())
  full, part = (step_flops(CFG, count, T) for count in (num_params(CFG), trained))
  assert part < 0.75 * full
  attention = 6.0 * T * CFG.num_heads * CFG.head_dim * CFG.num_layers
  assert counted(CFG, lora) == pytest.approx(part + attention, rel=0.12)


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("TPU v5 lite", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
  ],
)
def test_the_peak_of_a_known_device_is_its_data_sheets(kind, peak):
  assert peak_flops(types.SimpleNamespace(device_kind=kind, platform="x"), "bfloat16") == peak


def test_any_other_peak_is_measured_and_a_hosts_devices_share_it(monkeypatch):
  ticks = itertools.count()
  monkeypatch.setattr(flops.time, "perf_counter", lambda: float(next(ticks)))  # a product takes a second
  monkeypatch.setattr(jax, "local_device_count", lambda: 4)
  assert peak_flops(jax.devices("cpu")[0], "float32") == 2 * 1024**3 / 4
