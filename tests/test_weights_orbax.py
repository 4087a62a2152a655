"""Orbax: our own checkpoints, atomic and in any sharding, and Gemma's official ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pasta_jax.model import checkpoint, gemma_orbax
from pasta_jax.model.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint, tokenizer_folder
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.gemma_orbax import find_gemma_orbax, load_gemma_orbax
from pasta_jax.model.weights import load_model
from tests.weights_files import CONFIGS, tiny_params


class NamedTokenizer:
  def save(self, folder):
    (Path(folder) / "name.txt").write_text("a tokenizer")


class FailingTokenizer:
  def save(self, folder):
    raise OSError(28, "No space left on device")


def on_device(params):
  return {name: jnp.asarray(value) for name, value in params.items()}


def assert_equal(params, expected):
  assert set(params) == set(expected)
  for name, value in expected.items():
    assert np.array_equal(params[name], value), name


@pytest.mark.parametrize("name", ["gemma3", "qwen2", "llama"])
def test_a_checkpoint_gives_back_what_was_saved(name, tmp_path):
  cfg = CONFIGS[name].replace(name="mine")
  expected = tiny_params(cfg)
  folder = save_checkpoint(tmp_path / "c", cfg, on_device(expected), NamedTokenizer())
  got, params = load_checkpoint(folder)
  assert got == cfg
  assert_equal(params, expected)
  assert (tokenizer_folder(folder) / "name.txt").read_text() == "a tokenizer"
  assert sorted(os.listdir(tmp_path)) == ["c"]


def test_a_checkpoint_loads_in_another_dtype_and_through_the_front_door(tmp_path):
  cfg = CONFIGS["llama"]
  folder = save_checkpoint(tmp_path / "c", cfg, on_device(tiny_params(cfg)))
  model = load_model(str(folder), dtype=jnp.bfloat16)
  assert {p.dtype for p in model.params.values()} == {jnp.dtype(jnp.bfloat16)}
  assert model.tokenizer is None


def test_an_existing_folder_is_kept_unless_told_otherwise(tmp_path):
  cfg = CONFIGS["llama"]
  old, new = tiny_params(cfg, 1), tiny_params(cfg, 2)
  save_checkpoint(tmp_path / "c", cfg, on_device(old))
  with pytest.raises(WeightsError, match=r"c: exists already; choose another folder, or overwrite=True"):
    save_checkpoint(tmp_path / "c", cfg, on_device(new))
  assert_equal(load_checkpoint(tmp_path / "c")[1], old)
  save_checkpoint(tmp_path / "c", cfg, on_device(new), overwrite=True)
  assert_equal(load_checkpoint(tmp_path / "c")[1], new)
  assert os.listdir(tmp_path) == ["c"]


def test_params_that_do_not_fit_are_not_saved(tmp_path):
  cfg = CONFIGS["llama"]
  params = on_device(tiny_params(cfg))
  params["head"] = params["head"][:, :3]
  with pytest.raises(WeightsError, match=r"not saved: parameter 'head' has shape \(64, 3\)"):
    save_checkpoint(tmp_path / "c", cfg, params)
  assert os.listdir(tmp_path) == []


def test_a_failure_while_saving_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
  cfg = CONFIGS["llama"]
  old = tiny_params(cfg, 1)
  save_checkpoint(tmp_path / "c", cfg, on_device(old))
  with pytest.raises(WeightsError, match=r"c: cannot be written: .*No space left on device"):
    save_checkpoint(tmp_path / "c", cfg, on_device(tiny_params(cfg, 2)), FailingTokenizer(), overwrite=True)
  assert os.listdir(tmp_path) == ["c"]
  assert_equal(load_checkpoint(tmp_path / "c")[1], old)


def test_when_the_last_rename_fails_the_old_checkpoint_is_back(tmp_path, monkeypatch):
  cfg = CONFIGS["llama"]
  old = tiny_params(cfg, 1)
  save_checkpoint(tmp_path / "c", cfg, on_device(old))
  rename = os.rename

  def failing(src, dst):
    if str(src).endswith(".writing"):
      raise OSError(5, "Input/output error")
    rename(src, dst)

  monkeypatch.setattr(checkpoint.os, "rename", failing)
  with pytest.raises(WeightsError, match="Input/output error"):
    save_checkpoint(tmp_path / "c", cfg, on_device(tiny_params(cfg, 2)), overwrite=True)
  assert os.listdir(tmp_path) == ["c"]
  assert_equal(load_checkpoint(tmp_path / "c")[1], old)


def test_a_run_killed_between_the_renames_leaves_the_old_checkpoint_readable(tmp_path):
  cfg = CONFIGS["llama"]
  old, new = tiny_params(cfg, 1), tiny_params(cfg, 2)
  folder = save_checkpoint(tmp_path / "c", cfg, on_device(old))
  folder.rename(tmp_path / ".c.replaced")
  (tmp_path / ".c.writing").mkdir()
  assert is_checkpoint(folder)
  assert_equal(load_model(str(folder)).params, old)
  with pytest.raises(WeightsError, match="exists already"):
    save_checkpoint(folder, cfg, on_device(new))
  save_checkpoint(folder, cfg, on_device(new), overwrite=True)
  assert_equal(load_checkpoint(folder)[1], new)
  assert os.listdir(tmp_path) == ["c"]


def script(text, **options):
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"} | options
  return [sys.executable, "-c", textwrap.dedent(text)], env


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
  # A limit on the size of files stands in for a full disk.
  command, env = script(
    """
    import resource, signal, sys
    import jax.numpy as jnp
    from pasta_jax.model.checkpoint import save_checkpoint
    from pasta_jax.model.errors import WeightsError
    from tests.weights_files import CONFIGS, tiny_params
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    cfg = CONFIGS["llama"].replace(d_ff=4096)
    params = {n: jnp.asarray(v) for n, v in tiny_params(cfg).items()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
      save_checkpoint(sys.argv[1], cfg, params)
    except WeightsError as e:
      print(e)
    """
  )
  done = subprocess.run([*command, tmp_path / "c"], env=env, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr
  assert done.stdout.count("\n") == 1
  assert "c: cannot be written: " in done.stdout
  assert os.listdir(tmp_path) == []


def test_killed_at_any_moment_the_folder_is_a_whole_checkpoint(tmp_path):
  command, env = script(
    """
    import sys
    import jax.numpy as jnp
    from pasta_jax.model.checkpoint import save_checkpoint
    from tests.weights_files import CONFIGS, tiny_params
    cfg = CONFIGS["llama"]
    for seed in range(10_000):
      params = {n: jnp.asarray(v) for n, v in tiny_params(cfg, seed).items()}
      save_checkpoint(sys.argv[1], cfg, params, overwrite=True)
      print(seed, flush=True)
    """
  )
  cfg = CONFIGS["llama"]
  for kill in range(3):
    writer = subprocess.Popen([*command, tmp_path / "c"], env=env, stdout=subprocess.PIPE, text=True)
    last = int(writer.stdout.readline())
    time.sleep(0.05 + 0.037 * kill)
    writer.send_signal(signal.SIGKILL)
    last = max([last, *map(int, writer.stdout.read().split())])
    writer.wait()
    _, params = load_checkpoint(tmp_path / "c")
    seeds = [s for s in (last, last + 1) if np.array_equal(params["embed"], tiny_params(cfg, s)["embed"])]
    assert len(seeds) == 1
    assert_equal(params, tiny_params(cfg, seeds[0]))


def test_damaged_checkpoints_are_one_line(tmp_path):
  cfg = CONFIGS["llama"]
  folder = save_checkpoint(tmp_path / "c", cfg, on_device(tiny_params(cfg)))

  def error(pattern):
    with pytest.raises(WeightsError, match=pattern) as caught:
      load_checkpoint(folder)
    assert "\n" not in str(caught.value)

  text = (folder / "config.json").read_text()
  (folder / "config.json").write_text(text.replace('"d_ff": 48', '"d_ff": 40'))
  error(r"tensor 'layers\.0\.gate' has shape \(48, 32\), expected \(40, 32\)")
  (folder / "config.json").write_text(text.replace('"num_layers": 3', '"num_layers": 2'))
  error(r"tensor 'layers\.2\.\w+' is unknown")
  (folder / "config.json").write_text(text.replace('"num_layers": 3', '"num_layers": 4'))
  error(r"tensor 'layers\.3\.attn_norm' is missing \(9 of 39")
  (folder / "config.json").write_text(text.replace('"d_ff"', '"d_fff"'))
  error(r"config\.json: model config has an unknown field 'd_fff'; did you mean 'd_ff'")
  (folder / "config.json").write_text(text[:40])
  error("config.json: model config is not JSON")
  (folder / "config.json").write_text(text)
  for file in (folder / "params").rglob("d/*"):
    file.write_bytes(file.read_bytes()[:100])
  error("is not a whole Orbax checkpoint: OUT_OF_RANGE")
  shutil.rmtree(folder / "params")
  error("is not a whole Orbax checkpoint")


def gemma_tree(cfg, params, *, nested, padding=5):
  """The official checkpoint's tree of a model's parameters."""
  table = np.concatenate([params["embed"], np.zeros((padding, cfg.d_model), np.float32)])
  flat = {"transformer/embedder": {"input_embedding": table}}
  flat["transformer/final_norm"] = {"scale": params["final_norm"]}
  for i in range(cfg.num_layers):
    at, p = (
      f"transformer/layer_{i}/",
      {n[len(f"layers.{i}.") :]: v for n, v in params.items() if f"layers.{i}." in n},
    )
    q, k, v = (np.swapaxes(p[n], 1, 2) for n in "qkv")
    if cfg.num_heads == cfg.num_kv_heads:
      flat[at + "attn/qkv_einsum"] = {"w": np.stack([q, k, v])}
    else:
      flat[at + "attn/q_einsum"] = {"w": q}
      flat[at + "attn/kv_einsum"] = {"w": np.stack([k, v])}
    flat[at + "attn/attn_vec_einsum"] = {"w": np.transpose(p["o"], (1, 2, 0))}
    gating = np.stack([p["gate"], p["up"]])
    flat[at + "mlp/gating_einsum"] = {"w": np.swapaxes(gating, 1, 2) if cfg.family == "gemma" else gating}
    flat[at + "mlp/linear"] = {"w": p["down"].T}
    flat[at + "pre_attention_norm"] = {"scale": p["attn_norm"]}
    flat[at + "pre_ffw_norm"] = {"scale": p["mlp_norm"]}
    if cfg.post_norms:
      flat[at + "post_attention_norm"] = {"scale": p["attn_post_norm"]}
      flat[at + "post_ffw_norm"] = {"scale": p["mlp_post_norm"]}
    if cfg.qk_norm:
      flat[at + "attn/_query_norm"] = {"scale": p["q_norm"]}
      flat[at + "attn/_key_norm"] = {"scale": p["k_norm"]}
  if not nested:
    return flat
  tree = {}
  for path, leaf in flat.items():
    *parts, last = path.split("/")
    node = tree
    for part in parts:
      node = node.setdefault(part, {})
    node[last] = leaf
  return tree


GEMMAS = {
  "gemma": CONFIGS["gemma"],
  "gemma-mha": CONFIGS["gemma"].replace(num_kv_heads=4),
  "gemma-square": CONFIGS["gemma"].replace(d_ff=32),
  "gemma2": CONFIGS["gemma2"],
  "gemma3": CONFIGS["gemma3"],
  "gemma3-square": CONFIGS["gemma3"].replace(d_ff=32),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", GEMMAS)
def test_an_official_gemma_checkpoint_gives_its_weights_back(name, nested, tmp_path, monkeypatch):
  cfg = GEMMAS[name].replace(name="tiny-gemma")
  monkeypatch.setattr(gemma_orbax, "PRESETS", {cfg.name: cfg})
  expected = tiny_params(cfg)
  folder = tmp_path / "archive" / "2b-it"
  ocp.PyTreeCheckpointer().save(folder, gemma_tree(cfg, expected, nested=nested))
  got, params = load_gemma_orbax(find_gemma_orbax(tmp_path / "archive"))
  assert got == cfg
  assert_equal(params, expected)


def test_of_a_multimodal_gemma_checkpoint_in_bfloat16_the_text_model_loads(tmp_path, monkeypatch):
  cfg = CONFIGS["gemma3"].replace(name="tiny-gemma", vocab_size=70)
  monkeypatch.setattr(gemma_orbax, "PRESETS", {cfg.name: cfg})
  expected = tiny_params(cfg.replace(vocab_size=64))
  tree = gemma_tree(cfg, expected, nested=False, padding=0)
  tree["transformer/embedder"] |= {"mm_input_projection": {"w": np.zeros((4, 4), np.float32)}}
  tree["SigLiPFromPatches_0/siglip_encoder/embedding"] = {"kernel": np.zeros(4, np.float32)}
  ocp.PyTreeCheckpointer().save(tmp_path / "c", jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree))
  model = load_model(str(tmp_path / "c"))
  assert model.config == cfg.replace(vocab_size=64)  # as many rows as the file has
  assert_equal(model.params, expected)


def test_an_official_checkpoint_that_is_off_is_one_line(tmp_path, monkeypatch):
  cfg = CONFIGS["gemma2"].replace(name="tiny-gemma")
  tree = gemma_tree(cfg, tiny_params(cfg), nested=False)
  ocp.PyTreeCheckpointer().save(tmp_path / "a", tree)
  with pytest.raises(
    WeightsError, match="no published Gemma has these shapes: gemma2 of 3 layers, d_model 32"
  ):
    load_model(str(tmp_path / "a"))
  monkeypatch.setattr(gemma_orbax, "PRESETS", {cfg.name: cfg})
  wrong = tree | {"transformer/layer_1/mlp/linear": {"w": np.zeros((3, 3), np.float32)}}
  ocp.PyTreeCheckpointer().save(tmp_path / "b", wrong)
  with pytest.raises(
    WeightsError, match=r"layer_1/mlp/linear/w' has shape \(3, 3\), which does not give down"
  ):
    load_model(str(tmp_path / "b"))
  del wrong["transformer/layer_1/mlp/linear"]
  ocp.PyTreeCheckpointer().save(tmp_path / "d", wrong)
  with pytest.raises(WeightsError, match=r"tensor 'layer_1/mlp/linear' is missing \(1 of"):
    load_model(str(tmp_path / "d"))
  ocp.PyTreeCheckpointer().save(tmp_path / "e", tree | {"opt_state": {"mu": np.zeros(3)}})
  with pytest.raises(WeightsError, match="tensor 'opt_state/mu' is unknown"):
    load_model(str(tmp_path / "e"))
  ocp.PyTreeCheckpointer().save(tmp_path / "f", {"step": np.zeros(3)})
  with pytest.raises(WeightsError, match="not an official Gemma checkpoint"):
    load_model(str(tmp_path / "f"))
  assert json.loads((tmp_path / "a" / "_METADATA").read_text())
