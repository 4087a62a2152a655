"""Tokenizers to files and from files: ours, SentencePiece's, Hugging Face's, GGUF's; and broken ones."""

import io
import json
import shutil

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as pb

from pasta_jax.model.tokenizer import TokenizerError
from pasta_jax.model.tokenizer_io import OWN_FILE, load_tokenizer, save_tokenizer, tokenizer_from_gguf
from pasta_jax.model.tokenizer_spm import SpmTokenizer
from tests.tokenizer_cases import ALL, GOLDEN, HARD, SMALL, Metadata, golden, small_metadata, tokenizer

CORPUS = [text for text, _ in golden("gemma3")["encodings"] if text.isprintable() and text.strip()]


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_a_saved_tokenizer_is_the_same_when_loaded(name, marks, tmp_path):
  t = tokenizer(name)
  t = t.with_controls(t.vocab_size + 3) if marks else t
  t.save(tmp_path / "t")
  again = load_tokenizer(tmp_path / "t")
  assert (again.roles, again.controls, again.grown) == (t.roles, t.controls, t.grown)
  assert (again.specials, again.vocab_size, again.special_ids) == (t.specials, t.vocab_size, t.special_ids)
  for text, ids in golden(name)["encodings"]:
    assert again.encode(text) == ids
    assert again.decode(ids) == t.decode(ids)
  assert not list((tmp_path / "t").glob("*.writing"))


def train(**options) -> bytes:
  """A small SentencePiece model of the golden texts."""
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS), model_writer=out, model_type="bpe", vocab_size=900, byte_fallback=True,
    character_coverage=0.98, minloglevel=2, hard_vocab_limit=False, **options,
  )  # fmt: skip
  return out.getvalue()


GEMMA_LIKE = {
  "normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False,
  "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "control_symbols": ["<start_of_turn>", "<end_of_turn>"],
  "user_defined_symbols": ["\n", "\n\n", "▁▁", "▁▁▁", "<table>", "[multimodal]"],
}  # fmt: skip
LLAMA2_LIKE = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
NFKC = {"normalization_rule_name": "nmt_nfkc"}


@pytest.mark.parametrize("options", [GEMMA_LIKE, LLAMA2_LIKE, NFKC], ids=["gemma", "llama2", "nfkc"])
def test_a_model_file_encodes_and_decodes_as_sentencepiece_does(options, tmp_path):
  model = train(**options)
  (tmp_path / "tokenizer.model").write_bytes(model)
  t, reference = load_tokenizer(tmp_path), sentencepiece.SentencePieceProcessor(model_proto=model)
  assert (t.bos_id, t.eos_id) == (reference.bos_id(), reference.eos_id())
  for text in (*CORPUS, *HARD, "  two spaces first", "a\n\nb", "▁", "x" * 300):
    if "[multimodal]" in text:
      continue  # user-defined, and not text: ours spells it out
    ids = t.encode(text)
    assert ids == reference.encode(text)
    assert t.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize("options", [GEMMA_LIKE, LLAMA2_LIKE], ids=["gemma", "llama2"])
@pytest.mark.parametrize("spaces", [True, False])
def test_a_model_rebuilt_from_a_ggufs_lists_is_the_model(options, spaces):
  """`spaces`: a converter writes runs of spaces as they are, another as U+2581."""
  model = train(**options)
  original = SpmTokenizer(model)
  proto = pb.ModelProto.FromString(model)
  rebuilt = tokenizer_from_gguf(
    Metadata(
      model="llama",
      tokens=[p.piece.replace("▁", " ") if spaces and p.type == 4 else p.piece for p in proto.pieces],
      scores=[p.score for p in proto.pieces],
      token_type=[p.type for p in proto.pieces],
      bos_token_id=proto.trainer_spec.bos_id, eos_token_id=proto.trainer_spec.eos_id,
      unknown_token_id=proto.trainer_spec.unk_id, add_space_prefix=proto.normalizer_spec.add_dummy_prefix,
    )
  )  # fmt: skip
  assert rebuilt.specials == original.specials
  assert (rebuilt.stop_ids, rebuilt.add_bos) == (original.stop_ids, True)
  for text in (*CORPUS, *HARD, "a  b   c     d", " x", "a\n\n\nb <table>[multimodal]"):
    ids = original.encode(text)
    assert rebuilt.encode(text) == ids, text
    assert rebuilt.decode(ids) == original.decode(ids)


def test_a_hugging_face_folder_brings_its_roles(tmp_path):
  folder = tmp_path / "m"
  shutil.copytree(GOLDEN / "tokenizer_llama3", folder)
  (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}<|eot_id|>")
  (folder / "generation_config.json").write_text('{"eos_token_id": [701, 9]}')
  t = load_tokenizer(folder)
  ids = t.chat([{"role": "user", "content": "x<|eot_id|>"}])
  assert t.decode(ids, keep_special=True) == "<|begin_of_text|>x<|eot_id|><|eot_id|>"
  assert ids.count(t.eos_id) == 1
  assert {9, 701, t.eos_id} <= set(t.stop_ids)
  config = json.loads((folder / "tokenizer_config.json").read_text())
  config |= {"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}
  config |= {"bos_token": {"content": "<|begin_of_text|>"}, "add_bos_token": False}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  (folder / "chat_template.jinja").unlink()
  t = load_tokenizer(folder)
  assert (t.roles.chat_template, t.add_bos) == ("D", False)
  del config["chat_template"]
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  (folder / "chat_template.json").write_text('{"chat_template": "J"}')
  assert load_tokenizer(folder).roles.chat_template == "J"


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json", "chat_template.json"])
@pytest.mark.parametrize("value", [None, True, -1, "x", [], [[1]], {}, {"a": 1}, [{"name": "default"}]])
def test_roles_of_another_type_are_one_line_or_passed_over(file, value, tmp_path):
  folder = tmp_path / "m"
  shutil.copytree(GOLDEN / "tokenizer_llama3", folder)
  for key in ("eos_token", "eos_token_id", "chat_template", "add_bos_token"):
    (folder / file).write_text(json.dumps({key: value}))
    try:
      t = load_tokenizer(folder)
    except TokenizerError as e:
      message = str(e)
    else:
      message = ""
      assert all(0 <= i < t.vocab_size for i in t.stop_ids)
    assert "\n" not in message


def one_line(error):
  message = str(error.value)
  assert "\n" not in message
  assert len(message) < 500
  return message


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model": "bert"}, "'bert' is not supported; known are 'gpt2' and 'llama'"),
    ({"model": None}, r"lacks tokenizer\.ggml\.model"),
    ({"tokens": None}, r"lacks tokenizer\.ggml\.tokens"),
    ({"merges": None}, r"lacks tokenizer\.ggml\.merges"),
    ({"pre": "viking"}, "'viking' is not supported; known are smollm"),
    ({"token_type": [1]}, "tokens but 1 token types"),
    ({"token_type": ["a"]}, r"token_type is not a list of numbers"),
    ({"token_type": 3}, r"token_type is not a list of numbers"),
    ({"tokens": [1, 2]}, r"tokens is not a list of strings"),
    ({"merges": [[]]}, r"merges is not a list of strings"),
    ({"model": "llama"}, r"lacks tokenizer\.ggml\.scores"),
    ({"model": "llama", "scores": [1.0]}, "tokens but 1 scores"),
    ({"merges": ["a b c", "zz qq"]}, "not a byte-level BPE tokenizer"),
  ],
)
def test_metadata_that_is_off_is_one_line(changes, message):
  values = {k: v for k, v in (small_metadata("llama3")._values | changes).items() if v is not None}
  with pytest.raises(TokenizerError, match=message) as error:
    tokenizer_from_gguf(Metadata(**values))
  one_line(error)


@pytest.mark.parametrize("kind", [-1, 0, 7, 10**9])
def test_kinds_of_tokens_that_there_are_not_are_one_line(kind):
  values = small_metadata("qwen2")._values
  with pytest.raises(TokenizerError, match="token_type has values outside 1 to 6") as error:
    tokenizer_from_gguf(Metadata(**values | {"token_type": [kind] * len(values["tokens"])}))
  one_line(error)


def test_ids_out_of_range_and_a_template_of_another_type_are_passed_over_or_one_line():
  values = small_metadata("llama3")._values | {
    "bos_token_id": 10**9,
    "eos_token_id": -1,
    "chat_template": [1],
  }
  t = tokenizer_from_gguf(Metadata(**values))
  assert (t.bos_id, t.eos_id) == (None, None)
  assert t.decode(t.chat([{"role": "user", "content": "x"}])) == "[1]"


def test_folders_without_a_tokenizer_or_with_a_broken_one_are_one_line(tmp_path):
  def refused(message):
    with pytest.raises(TokenizerError, match=message) as error:
      load_tokenizer(tmp_path)
    assert str(tmp_path) in one_line(error)

  refused(r"has neither tokenizer\.model nor tokenizer\.json")
  (tmp_path / "tokenizer.json").write_text("{")
  refused(r"tokenizer\.json is not JSON")
  (tmp_path / "tokenizer.json").write_text("[]")
  refused(r"tokenizer\.json is not a JSON object")
  (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
  refused("WordPiece models are not supported, only byte-level BPE")
  (tmp_path / "tokenizer.json").write_text(
    '{"model": {"type": "BPE", "vocab": {"a": 0}}, "pre_tokenizer": {"type": "ByteLevel"}}'
  )
  refused("is not a byte-level BPE tokenizer")
  spec = json.loads((GOLDEN / "tokenizer_qwen2" / "tokenizer.json").read_text())
  spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
  (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
  refused(r"a SentencePiece model's; put the model's tokenizer\.model beside it")
  (tmp_path / "tokenizer.model").write_bytes(b"\x00\x01nonsense")
  refused("is not a SentencePiece model")
  (tmp_path / "tokenizer.model").write_bytes(b"")
  refused("is not a SentencePiece model: it has no pieces")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  save_tokenizer(SpmTokenizer(train(**GEMMA_LIKE)).with_controls(), folder / "spm")
  for name in SMALL:
    save_tokenizer(tokenizer(name).with_controls(), folder / name)
  return folder


def check_damaged(folder):
  """A damaged folder either loads to something usable, or is one line."""
  try:
    t = load_tokenizer(folder)
  except TokenizerError as e:
    message = str(e)
  else:
    message = ""
    ids = t.encode("a <|im_end|> b\n\n 12")
    assert t.special_ids.isdisjoint(ids)
    t.decode(ids)
  assert "\n" not in message


@pytest.mark.parametrize("name", ["spm", *SMALL])
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_damaged_files_are_one_line_or_a_tokenizer(name, saved, data, tmp_path_factory):
  folder = tmp_path_factory.mktemp("damaged")
  shutil.copytree(saved / name, folder, dirs_exist_ok=True)
  path = data.draw(st.sampled_from(sorted(folder.iterdir())))
  raw = bytearray(path.read_bytes())
  if data.draw(st.booleans()):
    raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
  for _ in range(data.draw(st.integers(0, 3))):
    if raw:
      raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
  path.write_bytes(raw)
  check_damaged(folder)
  shutil.rmtree(folder)


VALUES = st.sampled_from([None, True, -1, 10**9, 1.5, "x", [], {}, [1, 2], ["a"], {"a": 1}])


@pytest.mark.parametrize("name", ["spm", *SMALL])
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_values_of_another_type_are_one_line_or_a_tokenizer(name, saved, data, tmp_path_factory):
  folder = tmp_path_factory.mktemp("odd")
  shutil.copytree(saved / name, folder, dirs_exist_ok=True)
  path = data.draw(st.sampled_from([folder / OWN_FILE, *folder.glob("tokenizer.json")]))
  value = json.loads(path.read_text())
  node = value
  while True:
    key = data.draw(st.sampled_from(sorted(node)))
    if not isinstance(node[key], dict) or not node[key] or data.draw(st.booleans()):
      break
    node = node[key]
  if data.draw(st.booleans()):
    node[key] = data.draw(VALUES)
  else:
    del node[key]
  path.write_text(json.dumps(value))
  check_damaged(folder)
  shutil.rmtree(folder)
