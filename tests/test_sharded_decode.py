"""On 8 devices, forward, prefill and decoding compute what they compute on one. Runs in its own process."""

import os
import subprocess
import sys

import pytest

FLAG = "--xla_force_host_platform_device_count=8"


@pytest.mark.devices
def test_sharded_models_compute_what_unsharded_ones_do_on_eight_devices():
  env = os.environ | {"XLA_FLAGS": FLAG, "JAX_PLATFORMS": "cpu"}
  env["PYTHONPATH"] = os.pathsep.join(sys.path)
  done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.split() == ["forward", "sequential", "parallel"]


def main() -> None:
  import jax
  import numpy as np

  from pasta_jax.decode.engine import Engine
  from pasta_jax.decode.requests import Request, Sampling
  from pasta_jax.model.cache import cache_shardings
  from pasta_jax.model.sharding import make_mesh, named_sharding, param_shardings
  from pasta_jax.model.weights import LoadedModel
  from tests.test_law import law_requests, split_model
  from tests.test_models import TOLERANCE, logits_of
  from tests.toy import toy_model
  from tests.weights_files import CONFIGS

  assert jax.device_count() == 8
  one, all_ways = make_mesh(""), make_mesh("data:2,fsdp:2,tensor:2")

  def placed(params, cfg, mesh):
    shardings = param_shardings(cfg, mesh)
    return {name: jax.device_put(value, shardings[name]) for name, value in params.items()}

  # Four rows over all of `data` and `fsdp`, and key heads (2) that `tensor` divides, or does not.
  for name in ("gemma3", "qwen2"):
    model = toy_model(cfg=CONFIGS[name], num_layers=2, sliding_pattern=2)
    cfg = model.config
    ids = np.random.default_rng(1).integers(0, 256, (4, 24)).astype(np.int32)
    lengths = np.asarray((24, 9, 1, 17))
    live = np.arange(24)[None] < lengths[:, None]
    expected = np.asarray(jax.jit(logits_of, static_argnums=0)(cfg, model.params, ids, lengths))[live]
    for axes in ("tensor:2", "fsdp:4,tensor:2", "data:4", "tensor:8", "data:2,fsdp:2,tensor:2"):
      mesh = make_mesh(axes)
      rows = jax.device_put(ids, named_sharding(("batch", None), ids.shape, mesh))
      got = jax.jit(logits_of, static_argnums=0)(cfg, placed(model.params, cfg, mesh), rows, lengths)
      assert len(got.sharding.device_set) == mesh.size
      np.testing.assert_allclose(np.asarray(got)[live], expected, rtol=0, atol=TOLERANCE, err_msg=axes)
  print("forward")

  def same(model, mesh, requests, **sizes):
    """Runs requests on one device and on a mesh; ids, reasons and logits must agree."""
    cfg = model.config
    expected = Engine(model, mesh=one, keep_logits=True, **sizes).generate(requests)
    sharded = LoadedModel(cfg, placed(model.params, cfg, mesh), model.tokenizer)
    engine = Engine(sharded, mesh=mesh, keep_logits=True, **sizes)
    cache = engine.programs.new_state().cache
    want = cache_shardings(cfg, mesh, sizes["batch_size"])
    assert cache.k[0].sharding.is_equivalent_to(want.k[0], 4)
    assert not cache.k[0].is_fully_replicated
    for a, b in zip(expected, engine.generate(requests), strict=True):
      assert (a.ids, a.finish_reason, a.text) == (b.ids, b.finish_reason, b.text)
      np.testing.assert_allclose(b.logits, a.logits, rtol=0, atol=TOLERANCE)
    return expected

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
  for axes in ("data:2,fsdp:2,tensor:2", "tensor:4"):
    same(model, make_mesh(axes), requests, batch_size=4, max_len=128, segment=8)
  print("sequential")

  model = split_model(CONFIGS["gemma3"], num_layers=2, sliding_pattern=2)
  requests = law_requests(model.tokenizer.controls, 1, 8)
  expected = same(model, all_ways, requests, batch_size=4, max_len=320, segment=8, lanes=4, chunks=8)
  assert max(len(r.parallel.threads.chunks) for r in expected) > 2
  print("parallel")


if __name__ == "__main__":
  main()
