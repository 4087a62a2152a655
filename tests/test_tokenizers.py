"""Tokenizers give what the reference tokenizers give, and text survives the way there and back."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_jax.model.tokenizer import TokenizerError
from pasta_jax.model.tokenizer_io import tokenizer_from_gguf
from tests.tokenizer_cases import ALL, HARD, REAL, SMALL, golden, normal, small_metadata, tokenizer

texts = st.lists(st.sampled_from(HARD) | st.text(max_size=8), max_size=12).map("".join)


@pytest.mark.parametrize("name", ALL)
def test_encodings_are_those_of_the_reference(name):
  t = tokenizer(name)
  encodings = golden(name)["encodings"]
  assert len(encodings) > 80
  for text, ids in encodings:
    assert t.encode(text) == ids, text


@pytest.mark.parametrize("name", SMALL)
def test_encodings_from_a_gguf_are_those_of_the_reference_too(name):
  tokenizer(name)
  t = tokenizer_from_gguf(small_metadata(name))
  assert t.specials == tokenizer(name).specials
  for text, ids in golden(name)["encodings"]:
    assert t.encode(text) == ids, text


@pytest.mark.parametrize("name", ALL)
def test_decoding_gives_the_golden_texts_back(name):
  for text, ids in golden(name)["encodings"]:
    assert tokenizer(name).decode(ids) == normal(name, text)


@pytest.mark.parametrize("name", ALL)
@given(text=texts)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_text_comes_back(name, text):
  t = tokenizer(name)
  assert t.decode(t.encode(text)) == normal(name, text)


@pytest.mark.parametrize("name", ALL)
@given(text=texts)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_text_that_comes_id_by_id_never_has_half_a_character(name, text):
  t = tokenizer(name)
  whole = normal(name, text)
  stream, seen = t.stream(), ""
  for i in t.encode(text):
    seen += stream.push(i)
    assert whole.startswith(seen)
  assert seen + stream.flush() == whole


@functools.cache
def with_controls_and_bytes(name):
  t = tokenizer(name).with_controls()
  return t, [i for i in range(t.vocab_size) if len(t.piece(i)) == 1]


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_ids_that_come_one_by_one_sum_to_their_decoding(name, data):
  t, bytes_ = with_controls_and_bytes(name)
  # Single bytes make broken characters likely.
  ids = data.draw(
    st.lists(st.integers(0, len(bytes_) - 1).map(bytes_.__getitem__) | st.integers(0, t.vocab_size - 1))
  )
  for keep in (False, True):
    stream = t.stream(keep_special=keep)
    assert "".join(map(stream.push, ids)) + stream.flush() == t.decode(ids, keep_special=keep)
  assert t.decode(ids) == b"".join(map(t.piece, ids)).decode(errors="replace")


def test_a_character_comes_once_its_last_byte_has():
  t = tokenizer("smollm2")
  ids = t.encode("🙂")
  assert len(ids) > 1
  stream = t.stream()
  assert [stream.push(i) for i in ids] == [""] * (len(ids) - 1) + ["🙂"]
  assert [stream.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
  assert stream.flush() == "\ufffd"
  assert stream.push(t.encode("a")[0]) == "a"


@pytest.mark.parametrize("name", ALL)
def test_ids_outside_the_vocabulary_are_no_text(name):
  t = tokenizer(name)
  assert t.decode([-1, t.vocab_size, 10**9]) == ""


@pytest.mark.parametrize("name", REAL)
def test_conversations_are_those_of_the_reference(name):
  t = tokenizer(name)
  assert golden(name)["chats"]
  for messages, text, ids in golden(name)["chats"]:
    assert t.chat(messages) == ids
    assert t.decode(ids, keep_special=True) == text


def test_the_chat_template_of_a_gguf_file_is_the_references():
  assert tokenizer("smollm2").roles.chat_template == golden("smollm2")["chat_template"]


def test_smollm2_speaks_chatml_and_brings_its_own_system_message():
  t = tokenizer("smollm2")
  ids = t.chat([{"role": "user", "content": "Hi"}])
  assert t.decode(ids, keep_special=True) == (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
  )
  ids = t.chat([{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}])
  assert t.decode(ids, keep_special=True) == (
    "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
  )
  whole = t.chat([{"role": "user", "content": "Hi"}], add_generation_prompt=False)
  assert t.decode(whole, keep_special=True).endswith("Hi<|im_end|>\n")


def test_gemma_puts_the_system_message_into_the_first_turn():
  t = tokenizer("gemma3")
  ids = t.chat([{"role": "system", "content": "S"}, {"role": "user", "content": " Hi "}])
  assert t.decode(ids, keep_special=True) == (
    "<bos><start_of_turn>user\nS\n\nHi<end_of_turn>\n<start_of_turn>model\n"
  )
  assert ids.count(t.bos_id) == 1
  with pytest.raises(TokenizerError, match="must alternate"):
    t.chat([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


def test_a_model_without_a_template_says_so():
  with pytest.raises(TokenizerError, match="no chat template; give a plain prompt"):
    tokenizer("qwen2").chat([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
  ("name", "stops", "bos"),
  [
    ("smollm2", {"<|im_end|>", "<|endoftext|>"}, None),
    ("gemma3", {"<eos>", "<end_of_turn>"}, "<bos>"),
    ("llama3", {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}, "<|begin_of_text|>"),
    ("qwen2", {"<|im_end|>", "<|endoftext|>"}, None),
  ],
)
def test_ids_that_stop_an_answer_and_begin_a_prompt_are_the_models(name, stops, bos):
  t = tokenizer(name)
  assert {t.spelling(i) for i in t.stop_ids} == stops
  assert t.add_bos == (bos is not None)
  first = t.encode("x", bos=t.add_bos)[0]
  assert t.spelling(first) == bos
