"""Every kind of file loads into shardings over 8 devices, in its own process; and the flag for meshes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_devices import environment


@pytest.mark.devices
def test_sharded_loads_equal_unsharded_ones_on_eight_devices(tmp_path):
  done = subprocess.run(
    [sys.executable, __file__, tmp_path], env=environment(8), capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.split() == ["gguf", "safetensors", "checkpoint", "gemma", "random", "memory"]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("tensor", "'tensor' is not axis:size, e.g. data:1,tensor:4"),
    ("tensor:", "'tensor:' is not axis:size"),
    ("tensor:two", "'tensor:two' is not axis:size"),
    ("tensor:2,data:1,tensor:4", "'tensor' stands twice"),
    ("tensor:0", "size of 'tensor' must be positive, or -1"),
    ("tensor:-2", "size of 'tensor' must be positive, or -1"),
    ("data:-1,tensor:-1", "only one mesh axis may be -1, got data and tensor"),
    ("tenser:2", "did you mean 'tensor'"),
  ],
)
def test_a_mesh_that_makes_no_sense_is_one_line(text, message):
  from pasta_jax.model.sharding import make_mesh

  with pytest.raises(ValueError, match=message):
    make_mesh(text)


def test_an_axis_of_minus_one_takes_the_devices_that_are_left():
  import jax

  from pasta_jax.model.sharding import MESH_AXES, make_mesh, parse_mesh

  assert parse_mesh("tensor:-1, data:2") == {"data": 2, "fsdp": 1, "tensor": -1}
  count = jax.device_count()
  for axis in MESH_AXES:
    assert dict(make_mesh(f"{axis}:-1").shape) == dict.fromkeys(MESH_AXES, 1) | {axis: count}
  if count > 1:
    assert dict(make_mesh("data:2,tensor:-1").shape) == {"data": 2, "fsdp": 1, "tensor": count // 2}


def main(folder: Path) -> None:
  import jax
  import jax.numpy as jnp
  import numpy as np
  import orbax.checkpoint as ocp

  from pasta_jax.model import gemma_orbax, memory
  from pasta_jax.model.checkpoint import save_checkpoint
  from pasta_jax.model.errors import WeightsError
  from pasta_jax.model.gguf_file import GgufFile
  from pasta_jax.model.gguf_weights import load_gguf
  from pasta_jax.model.params import param_table
  from pasta_jax.model.placing import target_shardings
  from pasta_jax.model.sharding import make_mesh, param_shardings
  from pasta_jax.model.weights import load_model, random_params
  from tests.test_weights_orbax import gemma_tree
  from tests.weights_files import CONFIGS, tiny_params, write_gguf, write_hf

  assert jax.device_count() == 8
  test_an_axis_of_minus_one_takes_the_devices_that_are_left()
  meshes = [
    make_mesh(m) for m in ("tensor:2", "fsdp:4,tensor:2", "data:2,fsdp:2,tensor:2", "tensor:8", "fsdp:8")
  ]

  def check(load, cfg, expected, meshes=meshes):
    whole = load(None)
    assert set(whole) == set(expected)
    for name, value in expected.items():
      np.testing.assert_allclose(whole[name], value, rtol=0, atol=1e-6, err_msg=name)
    for mesh in meshes:
      params = load(mesh)
      for name, sharding in param_shardings(cfg, mesh).items():
        assert params[name].sharding.is_equivalent_to(sharding, params[name].ndim), (name, mesh)
        assert np.array_equal(params[name], whole[name]), (name, mesh)

  for name in ("llama", "gemma3"):
    cfg = CONFIGS[name]
    expected = tiny_params(cfg)
    path = write_gguf(folder / f"{name}.gguf", cfg, expected)

    def from_gguf(mesh, path=path):
      with GgufFile(path) as file:
        return load_gguf(file, mesh=mesh)[1]

    check(from_gguf, cfg, expected)
  print("gguf")

  cfg = CONFIGS["qwen2"]
  expected = tiny_params(cfg)
  hf = str(write_hf(folder / "hf", cfg, expected, shards=2))
  check(lambda mesh: load_model(hf, mesh=mesh).params, cfg, expected)
  print("safetensors")

  # Saved from one mesh, restored into the others.
  saved = load_model(hf, mesh=meshes[1])
  ours = str(save_checkpoint(folder / "ours", saved.config, saved.params))
  check(lambda mesh: load_model(ours, mesh=mesh).params, cfg, expected)
  print("checkpoint")

  cfg = CONFIGS["gemma2"].replace(name="tiny-gemma")
  gemma_orbax.PRESETS = {cfg.name: cfg}
  expected = tiny_params(cfg)
  ocp.PyTreeCheckpointer().save(folder / "gemma", gemma_tree(cfg, expected, nested=False))
  check(lambda mesh: load_model(str(folder / "gemma"), mesh=mesh).params, cfg, expected)
  print("gemma")

  cfg = CONFIGS["qwen3"]
  expected = {n: np.asarray(v) for n, v in random_params(cfg, 3).items()}
  check(lambda mesh: random_params(cfg, 3, mesh=mesh), cfg, expected, meshes[1:3])
  print("random")

  table = param_table(cfg)
  memory.host_bytes_free = lambda: 1000
  with pytest.raises(WeightsError, match="not enough memory foreseen"):
    memory.check_fits("x", table, jnp.float32, target_shardings(cfg, meshes[0]))
  print("memory")


if __name__ == "__main__":
  main(Path(sys.argv[1]))
