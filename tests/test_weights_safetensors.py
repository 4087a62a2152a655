"""Hugging Face folders: every family, shards, spellings of config.json, and every way to be off."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pasta_jax.model.config import ModelConfig, RopeScaling
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.hf_config import hf_config
from pasta_jax.model.params import check_params
from pasta_jax.model.presets import preset
from pasta_jax.model.safetensors_weights import load_safetensors
from tests.weights_files import CONFIGS, hf_json, hf_tensors, safetensors_bytes, tiny_params, write_hf


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_of_every_family_gives_its_config_and_weights_back(name, shards, tmp_path):
  cfg = CONFIGS[name]
  expected = tiny_params(cfg)
  got, params = load_safetensors(write_hf(tmp_path / "m", cfg, expected, shards=shards))
  assert got == cfg.replace(name="m")
  for param, value in expected.items():
    assert np.array_equal(params[param], value), param


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_stored_and_asked_types_meet_in_every_pair(stored, dtype, tmp_path):
  cfg = CONFIGS["qwen2"]
  expected = tiny_params(cfg)
  _, params = load_safetensors(write_hf(tmp_path / "m", cfg, expected, dtype=stored), dtype=dtype)
  for param, value in expected.items():
    assert params[param].dtype == dtype
    assert np.array_equal(params[param], value.astype(stored).astype(np.float32).astype(dtype)), param


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_of_a_multimodal_gemma3_the_text_model_loads(prefix, tmp_path):
  cfg = CONFIGS["gemma3"]
  expected = tiny_params(cfg)
  vision = {"vision_tower.embed.weight": np.zeros(3, np.float32)}
  vision["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(3, np.float32)
  config = {"model_type": "gemma3", "text_config": hf_json(cfg), "vision_config": {}}
  folder = write_hf(tmp_path / "m", cfg, expected, prefix=prefix, config=config, extra=vision)
  got, params = load_safetensors(folder)
  assert got == cfg.replace(name="m")
  assert np.array_equal(params["layers.2.mlp_post_norm"], expected["layers.2.mlp_post_norm"])


def config_of(tmp_path, values):
  path = tmp_path / "config.json"
  path.write_text(json.dumps(values))
  return hf_config(path)


def test_published_configs_are_the_presets(tmp_path):
  gemma3_4b = {  # as published: what equals the library's defaults is left out
    "model_type": "gemma3",
    "text_config": {
      "hidden_size": 2560,
      "intermediate_size": 10240,
      "model_type": "gemma3_text",
      "num_hidden_layers": 34,
      "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
      "sliding_window": 1024,
    },
  }
  assert config_of(tmp_path, gemma3_4b).replace(name="gemma3-4b") == preset("gemma3-4b")
  llama = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
    "rope_scaling": {
      "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
      "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
  }  # fmt: skip
  assert config_of(tmp_path, llama).replace(name="llama3.2-1b") == preset("llama3.2-1b")


def test_transformers_5_spells_rope_and_layers_its_own_way(tmp_path):
  values = hf_json(CONFIGS["gemma3"])
  del values["rope_theta"], values["rope_scaling"]
  values["rope_parameters"] = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
  }
  values["layer_types"] = ["sliding_attention"] * 3
  assert config_of(tmp_path, values).replace(name="") == CONFIGS["gemma3"]
  values["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
  assert config_of(tmp_path, values).sliding_pattern == 2
  values["layer_types"] = ["full_attention"] * 3
  assert config_of(tmp_path, values).sliding_window is None
  values["layer_types"] = ["full_attention", "sliding_attention", "sliding_attention"]
  with pytest.raises(WeightsError, match="layer_types has no period"):
    config_of(tmp_path, values)
  llama = hf_json(CONFIGS["llama"]) | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}
  llama["rope_parameters"] |= {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
  llama["rope_parameters"]["original_max_position_embeddings"] = 64
  got = config_of(tmp_path, llama)
  assert (got.rope_theta, got.rope_scaling) == (5e5, RopeScaling("llama3", 8.0, original_max_len=64))


@pytest.mark.parametrize(("name", "tied"), [("gemma", True), ("llama", False), ("qwen2", False)])
def test_a_silent_config_ties_embeddings_as_its_family_does(name, tied, tmp_path):
  values = hf_json(CONFIGS[name])
  del values["tie_word_embeddings"]
  assert config_of(tmp_path, values).tied_embeddings is tied


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
    ({"model_type": ["llama"]}, "model_type .* is not supported"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0, expected a count"),
    ({"hidden_size": 32.5}, "hidden_size is 32.5, expected a count"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected a count that fits the weights"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', expected a positive number"),
    ({"num_key_value_heads": 3}, "not a multiple"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope scaling 'yarn' is not supported"),
    ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
    ({"attention_bias": True}, "attention_bias is not supported"),
    ({"head_dim": 15}, "head_dim must be even"),
  ],
)
def test_a_config_that_does_not_fit_says_why(changes, message, tmp_path):
  with pytest.raises(WeightsError, match=message):
    config_of(tmp_path, hf_json(CONFIGS["llama"]) | changes)


def one_line_error(folder, pattern):
  with pytest.raises(WeightsError, match=pattern) as caught:
    load_safetensors(folder)
  message = str(caught.value)
  assert "\n" not in message
  assert str(folder) in message


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path):
  cfg = CONFIGS["llama"]
  whole = tiny_params(cfg)
  part = {n: v for n, v in whole.items() if n != "head"}
  one_line_error(write_hf(tmp_path / "a", cfg, part), r"tensor 'lm_head\.weight' is missing \(1 of 30")
  more = {"model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros(3, np.float32)}
  one_line_error(write_hf(tmp_path / "b", cfg, whole, extra=more), "lora_A.weight' is unknown")
  wrong = whole | {"layers.2.down": np.zeros((32, 40), np.float32)}
  one_line_error(write_hf(tmp_path / "c", cfg, wrong), r"down_proj\.weight' has shape \(32, 40\), expected")


def test_a_tied_head_that_is_stored_again_and_old_frequencies_are_passed_over(tmp_path):
  cfg = CONFIGS["llama-tied"]
  expected = tiny_params(cfg)
  more = {"lm_head.weight": expected["embed"]}
  more["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
  _, params = load_safetensors(write_hf(tmp_path / "m", cfg, expected, extra=more))
  check_params(cfg, params)


def test_a_bad_index_is_named(tmp_path):
  cfg = CONFIGS["llama"]
  folder = write_hf(tmp_path / "m", cfg, tiny_params(cfg), shards=2)
  index = folder / "model.safetensors.index.json"
  whole = json.loads(index.read_text())["weight_map"]
  name, second = "model.norm.weight", "model-00002-of-00002.safetensors"

  def with_map(changes):
    index.write_text(json.dumps({"weight_map": whole | changes}))

  with_map({name: "../../etc/passwd"})
  one_line_error(folder, r"puts tensor 'model\.norm\.weight' into '\.\./\.\./etc/passwd'")
  with_map({"model.extra.weight": second})
  one_line_error(folder, r"tensor 'model\.extra\.weight' is missing, though")
  with_map({name: next(f for f in sorted(set(whole.values())) if f != whole[name])})
  one_line_error(folder, r"tensor 'model\.norm\.weight' is not where")
  with_map({"x": "model-00003-of-00002.safetensors"})
  one_line_error(folder, "is missing, though model.safetensors.index.json names it")
  index.write_text("{")
  one_line_error(folder, "its JSON cannot be parsed")
  index.unlink()
  one_line_error(folder, "2 .safetensors files, and no model.safetensors.index.json")


def rewritten(folder, change):
  """The folder with its file's header passed through `change`."""
  path = folder / "model.safetensors"
  data = path.read_bytes()
  length = struct.unpack("<Q", data[:8])[0]
  header = change(json.loads(data[8 : 8 + length]))
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
  return folder


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"dtype": "F8_E4M3FNUZ"}, "'model.norm.weight' has the unsupported type 'F8_E4M3FNUZ'"),
    ({"dtype": "I32"}, "'model.norm.weight' has the unsupported type I32; use F32, F16, BF16"),
    ({"shape": [31]}, r"of shape \(31,\) in F32 needs 124 bytes, its offsets are"),
    ({"shape": [-32]}, r"has shape \[-32\] at"),
    ({"data_offsets": [0, 128]}, "overlaps"),
    ({"data_offsets": [1 << 40, (1 << 40) + 128]}, "'model.norm.weight' is truncated: .* bytes are missing"),
    ({"data_offsets": [True, 129]}, "the file is damaged"),
    ({"data_offsets": "0"}, "the file is damaged"),
  ],
)
def test_a_header_entry_that_lies_is_named(change, message, tmp_path):
  cfg = CONFIGS["llama"]
  folder = write_hf(tmp_path / "m", cfg, tiny_params(cfg))

  def edit(header):
    header["model.norm.weight"] |= change
    return header

  one_line_error(rewritten(folder, edit), message)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (b"[1]", "not a safetensors file"),
    (b"{" + b'"a":{' * 5000, "cannot be parsed"),
    (b'{"a": 1, "a": 2}', "'a' stands twice"),
    (b'{"a": 1' + b"0" * 5000 + b"}", "cannot be parsed"),
    (b'{"\xff": 1}', "cannot be parsed"),
    (b'{"a": 1}', "tensor 'a' has no description"),
  ],
)
def test_a_header_that_is_no_table_of_tensors_is_refused(text, message, tmp_path):
  cfg = CONFIGS["llama"]
  folder = write_hf(tmp_path / "m", cfg, tiny_params(cfg))
  one_line_error(rewritten(folder, lambda header: text), message)


TINY = ModelConfig(
  "llama", vocab_size=8, num_layers=1, d_model=8, d_ff=8, num_heads=2, num_kv_heads=1, head_dim=4, max_len=64
)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
  folder = write_hf(tmp_path_factory.mktemp("hf"), TINY, tiny_params(TINY))
  return folder, safetensors_bytes(hf_tensors(TINY, tiny_params(TINY), ml_dtypes.bfloat16))


def outcome(folder):
  """The message of the error that loading ends with; "" for a whole model."""
  try:
    cfg, params = load_safetensors(folder)
  except WeightsError as e:
    return str(e)
  check_params(cfg, params)
  return ""


@given(data=st.data())
@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_flipped_bytes_give_one_line_or_a_whole_model(small_folder, data):
  folder, whole = small_folder
  damaged = bytearray(whole)
  for _ in range(data.draw(st.integers(1, 4))):
    top = data.draw(st.sampled_from([16, 1024, len(whole)]))
    damaged[data.draw(st.integers(0, top - 1))] ^= data.draw(st.integers(1, 255))
  (folder / "model.safetensors").write_bytes(damaged)
  assert "\n" not in outcome(folder)


@given(length=st.integers(0, 1 << 13))
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_truncation_is_an_error(small_folder, length):
  folder, whole = small_folder
  (folder / "model.safetensors").write_bytes(whole[: length % len(whole)])
  assert outcome(folder)


@given(data=st.data())
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_flipped_bytes_in_a_config_give_one_line_or_a_whole_model(small_folder, data):
  folder, whole = small_folder
  (folder / "model.safetensors").write_bytes(whole)
  text = json.dumps(hf_json(TINY)).encode()
  damaged = bytearray(text)
  for _ in range(data.draw(st.integers(1, 3))):
    damaged[data.draw(st.integers(0, len(text) - 1))] ^= data.draw(st.integers(1, 255))
  try:
    (folder / "config.json").write_bytes(damaged)
    assert "\n" not in outcome(folder)
  finally:
    (folder / "config.json").write_bytes(text)
