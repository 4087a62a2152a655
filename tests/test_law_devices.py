"""The law on 8 devices: cache and parameters split over data, fsdp and tensor. Runs in its own process."""

import subprocess
import sys

import pytest

from tests.fake_devices import environment

# Heads that the tensor axis does not divide stay whole, and so do rows that data and fsdp do not.
MESHES = {"llama": "data:2,fsdp:2,tensor:2", "gemma2": "fsdp:2,tensor:4"}


@pytest.mark.devices
def test_the_law_holds_with_data_fsdp_and_tensor_meshes_on_eight_devices():
  done = subprocess.run(
    [sys.executable, __file__], env=environment(8), capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.split() == list(MESHES.values())


def main() -> None:
  import dataclasses

  import jax
  import numpy as np

  from pasta_jax.decode.engine import Engine
  from pasta_jax.model.sharding import make_mesh, param_shardings
  from tests.law import SHORT, compiled_quickly, family_model, law_requests, teacher

  assert jax.device_count() == 8
  for family, axes in MESHES.items():
    # The rows of the embedding are a multiple of what the mesh may split them into, or stay whole.
    model = family_model(family)
    mesh = make_mesh(axes)
    shardings = param_shardings(model.config, mesh)
    params = {name: jax.device_put(x, shardings[name]) for name, x in model.params.items()}
    split = dataclasses.replace(model, params=params)
    with compiled_quickly():
      engine = Engine(
        split, batch_size=4, max_len=128, segment=8, lanes=2, chunks=8, mesh=mesh, keep_logits=True
      )
    cache = engine.programs.new_state().cache.k[0]
    assert len({str(s.index) for s in cache.addressable_shards}) > 1, "the cache is split"
    results = engine.generate(law_requests(model.tokenizer.controls, 2, 20, **SHORT))
    for result in results:
      # The teacher runs on one device.
      np.testing.assert_allclose(result.logits, teacher(model, result), atol=1e-4)
    assert any(len(r.parallel.threads.chunks) > 1 for r in results)
    assert any(model.tokenizer.controls.sync in r.parallel.threads.main for r in results)
    print(",".join(f"{a}:{n}" for a, n in mesh.shape.items() if n > 1))


if __name__ == "__main__":
  main()
