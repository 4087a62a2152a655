"""Forward, prefill and one-lane decoding on 8 devices compute what they do on one. Runs in its own process.

Lanes on several devices: tests/test_law_devices.py.
"""

import subprocess
import sys

import pytest

from tests.fake_devices import environment


@pytest.mark.devices
def test_sharded_models_compute_what_unsharded_ones_do_on_eight_devices():
  done = subprocess.run(
    [sys.executable, __file__], env=environment(8), capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.split() == ["forward", "sequential"]


def main() -> None:
  import jax
  import numpy as np

  from pasta_jax.decode.engine import Engine
  from pasta_jax.decode.requests import Request, Sampling
  from pasta_jax.model.cache import cache_shardings
  from pasta_jax.model.sharding import make_mesh, named_sharding, param_shardings
  from pasta_jax.model.weights import LoadedModel
  from tests.test_models import TOLERANCE, logits_of
  from tests.toy import teacher_logits, toy_model
  from tests.weights_files import CONFIGS

  assert jax.device_count() == 8

  def placed(params, cfg, mesh):
    shardings = param_shardings(cfg, mesh)
    return {name: jax.device_put(value, shardings[name]) for name, value in params.items()}

  # Rows (4) and key heads (2) that a mesh axis divides, or does not.
  for name, meshes in (
    ("gemma3", ("tensor:2", "fsdp:4,tensor:2", "data:2,fsdp:2,tensor:2")),
    ("qwen2", ("data:2,tensor:4",)),
  ):
    model = toy_model(cfg=CONFIGS[name], num_layers=2, sliding_pattern=2)
    cfg = model.config
    ids = np.random.default_rng(1).integers(0, 256, (4, 24)).astype(np.int32)
    lengths = np.asarray((24, 9, 1, 17))
    live = np.arange(24)[None] < lengths[:, None]
    expected = np.asarray(jax.jit(logits_of, static_argnums=0)(cfg, model.params, ids, lengths))[live]
    for axes in meshes:
      mesh = make_mesh(axes)
      rows = jax.device_put(ids, named_sharding(("batch", None), ids.shape, mesh))
      got = jax.jit(logits_of, static_argnums=0)(cfg, placed(model.params, cfg, mesh), rows, lengths)
      assert len(got.sharding.device_set) == mesh.size
      np.testing.assert_allclose(np.asarray(got)[live], expected, rtol=0, atol=TOLERANCE, err_msg=axes)
  print("forward")

  # Logits are held against one forward of one device.
  rng = np.random.default_rng(2)
  model = toy_model(cfg=CONFIGS["gemma2"], num_layers=2)
  requests = [
    Request(
      [int(i) for i in rng.integers(0, 256, n)],
      max_new_tokens=20,
      sampling=Sampling(temperature=float(n % 2), seed=n),
    )
    for n in (1, 70, 12, 33, 5, 90)
  ]
  cfg, mesh = model.config, make_mesh("fsdp:2,tensor:4")
  sharded = LoadedModel(cfg, placed(model.params, cfg, mesh), model.tokenizer)
  engine = Engine(sharded, batch_size=4, max_len=128, segment=8, mesh=mesh, keep_logits=True)
  k = engine.programs.new_state().cache.k[0]
  assert k.sharding.is_equivalent_to(cache_shardings(cfg, mesh, 4).k[0], k.ndim)
  results = engine.generate(requests)
  for result in results:
    prompt = list(result.request.prompt)
    expected = teacher_logits(model, prompt + list(result.ids))[len(prompt) - 1 : -1]
    np.testing.assert_allclose(result.logits, expected, rtol=0, atol=TOLERANCE)
    if not result.request.sampling.temperature:
      assert list(expected.argmax(-1)) == list(result.ids)
  print("sequential")


if __name__ == "__main__":
  main()
