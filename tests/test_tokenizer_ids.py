"""Models without a tokenizer: ids are spelt as numbers, and random weights of any preset answer prompts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_jax.decode.launch import answer_prompt
from pasta_jax.decode.options import Options
from pasta_jax.lang.marks import MARKS
from pasta_jax.model import weights
from pasta_jax.model.tokenizer import TokenizerError
from pasta_jax.model.tokenizer_ids import IdsTokenizer, with_ids
from tests.toy import TOY

SIZE = 400
MODEL = with_ids(weights.LoadedModel(TOY.replace(vocab_size=SIZE), {}, None))


@given(text=st.lists(st.text(max_size=5) | st.integers(0, 500).map("<{}>".format)).map("".join))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_text_has_ids_and_comes_back(text):
  text = text.encode(errors="replace").decode()
  ids = MODEL.tokenizer.encode(text)
  assert MODEL.tokenizer.decode(ids) == text
  assert MODEL.tokenizer.special_ids.isdisjoint(ids)


def test_numbers_are_ids_and_other_text_is_its_bytes():
  t = IdsTokenizer(SIZE)
  assert t.encode("a<300>é<7><400>") == [97, 300, *"é<7><400>".encode()]
  assert t.decode([300, 399, 65]) == "<300><399>A"
  assert (t.stop_ids, t.controls, t.special_ids) == ((), None, frozenset())


def test_the_last_ids_are_for_the_marks_and_to_end_an_answer_and_nothing_is_grown(tmp_path):
  t = MODEL.tokenizer
  assert t.stop_ids == (SIZE - 1,)
  assert t.controls.all == tuple(range(SIZE - 1 - len(MARKS), SIZE - 1))
  assert (t.vocab_size, t.grown) == (SIZE, 0)
  assert with_ids(MODEL) is MODEL
  with pytest.raises(TokenizerError, match="not saved"):
    t.save(tmp_path / "tokenizer")
  assert list(tmp_path.iterdir()) == []


def test_random_weights_answer_a_prompt_in_lanes(monkeypatch, capsys):
  monkeypatch.setattr(weights, "preset", lambda name: TOY.replace(vocab_size=SIZE, name=name))
  options = Options(
    model="random:toy:3", prompt="Hi <300>", mode="pasta", lanes=2, max_len=192, max_new_tokens=40, segment=8
  )
  result = answer_prompt(options)
  assert result.prompt_tokens == 4
  assert 1 <= result.tokens <= 40
  assert result.parallel.document.plain == result.text
  out = capsys.readouterr()
  assert out.out == result.text + "\n"
  assert "loading" not in out.err  # said in a terminal
