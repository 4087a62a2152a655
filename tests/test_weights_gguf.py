"""GGUF files: every type, every architecture, and every way in which a file can be off."""

import struct
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pasta_jax.model.config import ModelConfig, RopeScaling
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.gguf_file import GgufFile
from pasta_jax.model.gguf_weights import TYPES, load_gguf
from pasta_jax.model.params import check_params
from pasta_jax.model.weights import load_model
from tests.weights_files import CONFIGS, tiny_params, write_gguf

gguf = pytest.importorskip("gguf")

WIDE = ModelConfig(
  "llama", vocab_size=6, num_layers=1, d_model=256, d_ff=256, num_heads=2, num_kv_heads=1, head_dim=128,
  max_len=64,
)  # fmt: skip


def load(path, **options):
  with GgufFile(path) as file:
    return load_gguf(file, **options)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_of_every_architecture_gives_its_config_and_weights_back(name, tmp_path):
  cfg = CONFIGS[name]
  expected = tiny_params(cfg)
  got, params = load(write_gguf(tmp_path / "m.gguf", cfg, expected))
  assert got.replace(name="") == cfg
  for param, value in expected.items():
    # 1 + w in float32 loses the last bits of a small w.
    tolerance = 1e-6 if cfg.norm_offset and param.endswith("norm") else 0
    np.testing.assert_allclose(params[param], value, rtol=0, atol=tolerance, err_msg=param)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_weights_load_in_bfloat16(name, tmp_path):
  cfg = CONFIGS[name]
  expected = tiny_params(cfg)
  _, params = load(write_gguf(tmp_path / "m.gguf", cfg, expected), dtype=ml_dtypes.bfloat16)
  assert {str(p.dtype) for p in params.values()} == {"bfloat16"}
  assert np.array_equal(np.asarray(params["layers.1.k"], np.float32), expected["layers.1.k"])


@pytest.mark.parametrize(
  ("kind", "step"),
  [("F32", 0), ("F16", 0), ("BF16", 0), ("Q8_0", 127), ("Q4_0", 7), ("Q4_1", 7), ("Q5_0", 15), ("Q5_1", 15)],
)
def test_a_quantised_tensor_comes_back_within_a_step(kind, step, tmp_path):
  expected = tiny_params(WIDE, seed=1)
  names = ["embed", "layers.0.q", "layers.0.o", "layers.0.down"]
  path = write_gguf(tmp_path / "m.gguf", WIDE, expected, types=dict.fromkeys(names, kind))
  _, params = load(path)
  for name in names:
    want = expected[name].reshape(-1, 32)
    # A step is the block's greatest magnitude over `step`; the types with an offset are finer than that.
    bound = np.abs(want).max(-1, keepdims=True) / step * 1.01 if step else 0.0
    assert np.all(np.abs(np.asarray(params[name]).reshape(-1, 32) - want) <= bound), name
  assert np.array_equal(params["layers.0.up"], expected["layers.0.up"])


def half(raw):
  return float(np.frombuffer(bytes(raw), np.float16)[0])


def scale_and_min(scales, j):
  if j < 4:
    return scales[j] & 63, scales[j + 4] & 63
  return (scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4), (scales[j + 4] >> 4) | (scales[j] >> 6 << 4)


def decode_q4_k(block, high=None):
  """ggml's description of Q4_K, one value at a time; `high` adds Q5_K's fifth bits."""
  d, dmin, scales = half(block[:2]), half(block[2:4]), block[4:16]
  quants = block[16 + (len(high) if high else 0) :]
  values = []
  for j in range(8):
    scale, minimum = scale_and_min(scales, j)
    for i in range(32):
      byte = quants[j // 2 * 32 + i]
      q = byte >> 4 if j % 2 else byte & 15
      if high:
        q += 16 * (high[i] >> j & 1)
      values.append(d * scale * q - dmin * minimum)
  return values


def decode_q5_k(block):
  return decode_q4_k(block, high=block[16:48])


def decode_q6_k(block):
  low, high, scales = block[:128], block[128:192], np.frombuffer(bytes(block[192:208]), np.int8)
  d, values = half(block[208:210]), [0.0] * 256
  for part in range(2):
    for i in range(32):
      for quarter in range(4):
        byte = low[part * 64 + i + 32 * (quarter % 2)]
        q = (byte >> 4 if quarter > 1 else byte & 15) | (high[part * 32 + i] >> 2 * quarter & 3) << 4
        scale = float(scales[part * 8 + i // 16 + 2 * quarter])
        values[part * 128 + quarter * 32 + i] = d * scale * (q - 32)
  return values


@pytest.mark.parametrize(
  ("kind", "size", "halves", "decode"),
  [
    ("Q4_K", 144, (0, 2), decode_q4_k),
    ("Q5_K", 176, (0, 2), decode_q5_k),
    ("Q6_K", 210, (208,), decode_q6_k),
  ],
)
def test_k_quants_decode_as_ggml_describes_them(kind, size, halves, decode, tmp_path):
  rng = np.random.default_rng(3)
  blocks = rng.integers(0, 256, (6, size), np.uint8)
  for at in halves:  # scales that are finite
    blocks[:, at : at + 2] = rng.normal(size=(6, 1)).astype(np.float16).view(np.uint8)
  path = write_gguf(
    tmp_path / "m.gguf", WIDE, tiny_params(WIDE), types={"embed": kind}, raw={"embed": blocks}
  )
  _, params = load(path)
  expected = [decode([int(b) for b in block]) for block in blocks]
  np.testing.assert_allclose(params["embed"], expected, rtol=1e-5, atol=1e-5)


def test_the_types_named_as_supported_are_those_tested():
  assert set(TYPES) == {
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K",
  }  # fmt: skip


def test_rope_divisors_that_are_no_llama3_scaling_are_refused(tmp_path):
  cfg = CONFIGS["llama-tied"].replace(rope_scaling=None)
  odd = np.linspace(1, 5, cfg.head_dim // 2).astype(np.float32)
  path = write_gguf(tmp_path / "m.gguf", cfg, tiny_params(cfg), extra={"rope_freqs.weight": odd})
  with pytest.raises(WeightsError, match=r"m\.gguf: tensor 'rope_freqs\.weight' is not a llama3 scaling"):
    load(path)
  ones = np.ones(cfg.head_dim // 2, np.float32)
  got, _ = load(write_gguf(tmp_path / "m.gguf", cfg, tiny_params(cfg), extra={"rope_freqs.weight": ones}))
  assert got.rope_scaling is None
  scaled = RopeScaling("llama3", 32.0)
  got, _ = load(write_gguf(tmp_path / "m.gguf", cfg.replace(rope_scaling=scaled), tiny_params(cfg)))
  assert got.rope_scaling == scaled


def one_line_error(path, pattern):
  with pytest.raises(WeightsError, match=pattern) as caught:
    load(path)
  message = str(caught.value)
  assert "\n" not in message
  assert str(path) in message


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path):
  cfg = CONFIGS["llama"]
  whole = tiny_params(cfg)
  path = tmp_path / "m.gguf"
  part = {n: v for n, v in whole.items() if n != "layers.1.up"}
  one_line_error(write_gguf(path, cfg, part), r"tensor 'blk\.1\.ffn_up\.weight' is missing \(1 of 30")
  more = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
  one_line_error(write_gguf(path, cfg, whole, extra=more), r"tensor 'blk\.0\.attn_sinks\.weight' is unknown")
  wrong = whole | {"layers.2.down": np.zeros((32, 40), np.float32)}
  one_line_error(write_gguf(path, cfg, wrong), r"ffn_down\.weight' has shape \(32, 40\), expected \(32, 48\)")


def test_unsupported_types_architectures_and_features_are_named(tmp_path):
  path = tmp_path / "m.gguf"
  raw = {"embed": np.zeros((6, 84), np.uint8)}
  write_gguf(path, WIDE, tiny_params(WIDE), types={"embed": "Q2_K"}, raw=raw)
  one_line_error(path, r"'token_embd\.weight' has the unsupported type Q2_K; use a file in F32")
  write_gguf(path, WIDE, tiny_params(WIDE))
  data = path.read_bytes()
  path.write_bytes(data.replace(b"llama", b"mamba"))
  one_line_error(path, "architecture 'mamba' is not supported")
  path.write_bytes(data.replace(b"llama.attention.key_length", b"llama.attention.key_lengtx", 1))
  assert load(path)[0].head_dim == 128  # D / H
  path.write_bytes(data.replace(b"llama.block_count", b"llama.block_counx"))
  one_line_error(path, r"metadata key 'llama\.block_count' is missing")


def test_files_that_are_no_gguf_or_are_cut_are_refused(tmp_path):
  path = tmp_path / "m.gguf"
  one_line_error(path, "cannot be opened: No such file")
  path.write_bytes(b"<!doctype html>" * 10)
  one_line_error(path, "not a GGUF file")
  data = write_gguf(path, WIDE, tiny_params(WIDE)).read_bytes()
  path.write_bytes(data[: len(data) // 2])
  one_line_error(path, "is truncated: it needs .* fetch the file again")
  path.write_bytes(data[:4] + struct.pack(">I", 3) + data[8:])
  one_line_error(path, "big-endian")


def test_duplicate_keys_and_overlapping_tensors_are_refused(tmp_path):
  path = tmp_path / "m.gguf"
  data = write_gguf(path, WIDE, tiny_params(WIDE)).read_bytes()
  path.write_bytes(data.replace(b"llama.context_length", b"general.architecture"))
  one_line_error(path, "metadata key 'general.architecture' stands twice")
  twice = data.replace(b"blk.0.ffn_gate.weight", b"blk.0.ffn_down.weight")
  path.write_bytes(twice)
  one_line_error(path, r"tensor 'blk\.0\.ffn_down\.weight' stands twice")
  with GgufFile(write_gguf(path, WIDE, tiny_params(WIDE))) as file:
    at = file.tensors["blk.0.ffn_gate.weight"].offset
    begin = min(t.offset for t in file.tensors.values())
  marked = struct.pack("<Q", at - begin)
  assert data.count(marked) == 1
  path.write_bytes(data.replace(marked, struct.pack("<Q", at - begin - 64)))
  one_line_error(path, "overlaps the tensor before it")


@pytest.mark.parametrize("field", [8, 16])
@pytest.mark.parametrize("count", [2**20, 2**40, 2**63])
def test_absurd_counts_end_at_once_and_allocate_little(field, count, tmp_path):
  path = write_gguf(tmp_path / "m.gguf", WIDE, tiny_params(WIDE))
  data = bytearray(path.read_bytes())
  data[field : field + 8] = struct.pack("<Q", count)
  path.write_bytes(data)
  tracemalloc.start()
  begun = time.monotonic()
  one_line_error(path, "damaged")
  assert time.monotonic() - begun < 5
  assert tracemalloc.get_traced_memory()[1] < 20e6
  tracemalloc.stop()


TINY = ModelConfig(
  "llama", vocab_size=8, num_layers=1, d_model=32, d_ff=32, num_heads=2, num_kv_heads=1, head_dim=16,
  max_len=64,
)  # fmt: skip


TOKENIZERS = {
  "SentencePiece": {
    "tokenizer_model": "llama",
    "token_list": ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab", "c"],
    "token_types": [2, 3, 3, 1, 1, 1, 1, 1],
    "token_scores": [0.0, 0.0, 0.0, -3.0, -2.0, -2.5, -1.0, -4.0],
    "bos_token_id": 1,
    "eos_token_id": 2,
  },
  "BPE": {
    "tokenizer_model": "gpt2",
    "tokenizer_pre": "smollm",
    "token_list": ["<|endoftext|>", "a", "b", "c", "ab", "\u0120", "\u0120a", "d"],
    "token_types": [3, 1, 1, 1, 1, 1, 1, 1],
    "token_merges": ["a b", "\u0120 a"],
    "eos_token_id": 0,
    "chat_template": "{{ messages[0].content }}",
  },
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def small_file(request, tmp_path_factory):
  if request.param == "BPE":
    pytest.importorskip("tokenizers")
  folder = tmp_path_factory.mktemp("gguf")
  quantised = {"embed": "Q8_0", "layers.0.up": "Q4_1", "layers.0.q": "F16"}
  tokenizer = TOKENIZERS[request.param]
  path = write_gguf(folder / "m.gguf", TINY, tiny_params(TINY), types=quantised, tokenizer=tokenizer)
  return folder / "damaged.gguf", path.read_bytes()


def test_the_file_that_is_damaged_below_is_whole(small_file):
  path, whole = small_file
  path.write_bytes(whole)
  model = load_model(str(path))
  assert model.tokenizer.vocab_size == TINY.vocab_size
  assert model.tokenizer.decode(model.tokenizer.encode("ab")) == "ab"


@given(data=st.data())
@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_flipped_bytes_give_one_line_or_a_whole_model(small_file, data):
  path, whole = small_file
  damaged = bytearray(whole)
  for _ in range(data.draw(st.integers(1, 4))):
    # Headers matter more than data: half of the flips go into the first kilobyte.
    top = data.draw(st.sampled_from([1024, 2048, len(whole)]))
    damaged[data.draw(st.integers(0, top - 1))] ^= data.draw(st.integers(1, 255))
  path.write_bytes(damaged)
  try:
    model = load_model(str(path))
  except WeightsError as e:
    message = str(e)
  else:
    message = ""
    check_params(model.config, model.params)
    if model.tokenizer is not None:
      model.tokenizer.encode("a b")
  assert "\n" not in message


@given(length=st.integers(0, 1 << 14))
@example(length=0)
@example(length=4)
@example(length=24)
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_truncation_is_an_error(small_file, length):
  path, whole = small_file
  path.write_bytes(whole[: length % len(whole)])
  # The writer pads the end of the file, so that its last bytes are not data.
  if len(whole) - length % len(whole) > 32:
    with pytest.raises(WeightsError):
      load(path)
