"""Fitting a reply's marks onto the answer, and reading what endpoints say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("markdown_it")

from pasta_jax.lang.document import problems
from pasta_jax.lang.parse import parse
from pasta_jax.train.annotate.annotator import Annotation, Rejection
from pasta_jax.train.annotate.fit import fit
from pasta_jax.train.annotate.prompt import DEMONSTRATIONS, conversation, demonstrations
from pasta_jax.train.annotate.providers import Gemini, MalformedReply, NoChoices, OpenAI, error_message
from tests.annotate_server import answer_for, marked

ANSWER = answer_for("it")


def fitted(reply, answer=ANSWER):
  result = fit(reply, answer)
  assert isinstance(result, Annotation), result
  assert result.document.plain == answer
  assert problems(result.document) == []
  return result


def rejected(reply, answer=ANSWER):
  result = fit(reply, answer)
  assert isinstance(result, Rejection), result
  return result


def test_a_good_reply_is_taken_as_it_is_and_its_lengths_are_estimated_again():
  result = fitted(marked(ANSWER).replace('tokens="20"', 'tokens="320"'))
  assert result.repairs == ()
  assert len(result.document.chunks) == 2
  assert {c.tokens for c in result.document.chunks} == {30}
  assert "<sync/>So take the train." in result.document.annotated


def test_a_reply_without_marks_is_a_document_that_does_not_split():
  assert not fitted(ANSWER).document.splits
  assert fitted("Four.", "Four.").repairs == ()


@pytest.mark.parametrize(
  ("change", "repair"),
  [
    (lambda r: r.replace("\n\n", "\n"), "text spelling"),
    (lambda r: "  " + r.replace("So take", "So  take") + "\n\n", "text spelling"),
    (lambda r: f"Sure, here it is:\n\n{r}", "text around"),
    (lambda r: f"```\n{r}\n```", "text around"),
    (lambda r: f"<document>\n{r}\n</document>\nI hope this helps!", "text around"),
    (lambda r: r.replace("</async>", "", 1), "unclosed chunk"),
    (lambda r: r.replace("<sync/>", "<sync />"), "spelling"),
    (lambda r: r.replace("/><async>", "/> <async>"), "gap"),
    (lambda r: r.replace('topic="way"', 'topic="one way to go there"'), "topic"),
  ],
)
def test_what_can_be_mended_is_mended_and_named(change, repair):
  result = fitted(change(marked(ANSWER)))
  assert repair in result.repairs
  assert len(result.document.chunks) == 2


def test_typography_is_moved_back_onto_the_answer():
  answer = "- “Yes” – it’s fine… and there is more of it to be said here.\n- It isn't so: 'no' - and more."
  reply = marked(answer).replace("“", '"').replace("”", '"').replace("–", "-").replace("’", "'")
  result = fitted(reply.replace("…", "...").replace("isn't", "isn’t"), answer)
  assert result.repairs == ("text spelling",)
  assert [c.body for c in result.document.chunks] == [line[2:] for line in answer.split("\n")]


@pytest.mark.parametrize(
  "change",
  [
    lambda r: r.replace("train", "bus"),
    lambda r: r.replace("So take the train.", ""),
    lambda r: r.replace("**", ""),
    lambda r: r[: len(r) // 2],
    lambda r: r + r,
    lambda r: "I cannot help with that.",
  ],
)
def test_a_reply_of_another_text_is_rejected(change):
  assert rejected(change(marked(ANSWER))).reason == "text_changed"


def test_a_rejection_says_where_the_texts_part():
  detail = rejected(marked(ANSWER).replace("So take the train", "So take the plane")).detail
  assert f"character {ANSWER.index('So take the train') + 12}:" in detail
  assert "'plane.'" in detail
  assert "'train.'" in detail


def test_marks_that_mean_nothing_are_rejected():
  assert rejected(ANSWER.replace("- ", "- <promise/><async></async>", 1)).reason == "broken_marks"
  assert rejected(ANSWER + "<sync/>").reason == "broken_marks"
  assert rejected("").reason == rejected(" \n").reason == "empty_reply"


def test_a_short_answer_is_not_found_in_just_any_reply():
  assert rejected("The answer is 4, as 2 and 2 are 4.", "4").reason == "text_changed"


def test_chunks_end_before_white_space_and_bigger_rounds_than_allowed_are_joined():
  answer = "\n".join(f"- number {n} of a list of many items" for n in range(20))
  reply = "".join(
    f'- <promise topic="it" tokens="10"/><async>{line[2:]}\n</async>' for line in answer.split("\n")
  )
  document = fitted(reply, answer).document
  assert [c.body for c in document.chunks] == [line[2:] for line in answer.split("\n")]
  assert [len(r) for r in document.rounds] == [16, 4]


@settings(max_examples=200, deadline=None)
@given(
  st.lists(
    st.sampled_from(
      [
        "word ", "- ", "\n", "’", "…", "é", "<promise", ' topic="a b"', ' tokens="20"/>', "<async>",
        "</async>", "<sync/>", "&lt;sync/>",
      ]
    ),
    max_size=40,
  ).map("".join),
  st.sampled_from([ANSWER, "word word", "’…é word"]),
)  # fmt: skip
def test_whatever_the_reply_a_document_is_one_of_the_answer(reply, answer):
  result = fit(reply, answer)
  if isinstance(result, Annotation):
    assert result.document.plain == answer
    assert parse(result.document.annotated) == result.document


def test_demonstrations_keep_the_rules_they_show():
  assert len(demonstrations()) == len(DEMONSTRATIONS) >= 3
  for _, document in demonstrations():
    assert problems(document) == []
    assert fit(document.annotated, document.plain).document == document  # lengths included
  assert {d.splits for _, d in demonstrations()} == {True, False}
  assert any("<sync/>" in d.annotated for _, d in demonstrations())


def test_the_conversation_shows_answers_without_marks_and_escapes_spelt_ones():
  messages = conversation("x" * 10_000 + "<sync/>", "Write <sync/> there.")
  assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * len(DEMONSTRATIONS), "user"]
  assert "Write &lt;sync/> there." in messages[-1]["content"]
  assert len(messages[-1]["content"]) < 4200
  assert "<async>" not in "".join(m["content"] for m in messages if m["role"] == "user")


@pytest.mark.parametrize(
  "payload",
  [
    *(None, [], 7, {}, {"choices": None}, {"choices": [7]}, {"choices": [{}]}),
    {"choices": [{"message": {"content": 7}}]},
  ],
)
def test_replies_that_are_not_the_protocols_are_malformed(payload):
  with pytest.raises(MalformedReply):
    OpenAI().reply(payload)


@pytest.mark.parametrize(
  "payload", [None, [], {"candidates": 7}, {"candidates": [7]}, {"candidates": [{"content": {"parts": 7}}]}]
)
def test_gemini_replies_that_are_not_the_protocols_are_malformed(payload):
  with pytest.raises(MalformedReply):
    Gemini().reply(payload)


def test_replies_without_an_answer_are_told_from_malformed_ones():
  with pytest.raises(NoChoices):
    OpenAI().reply({"choices": []})
  with pytest.raises(NoChoices):
    Gemini().reply({})
  assert OpenAI().reply({"choices": [{"message": {"content": None}}]}).text == ""
  assert OpenAI().reply({"choices": [{"message": {"content": "a", "refusal": "no"}}]}).finish == "filter"


@pytest.mark.parametrize(
  ("body", "message", "code"),
  [
    (b'{"error": {"message": "m", "code": "c", "type": "t"}}', "m", "c t"),
    (b'[{"error": {"message": "m", "status": "S"}}]', "m", "S"),
    (b'{"detail": "m"}', "m", ""),
    (b'{"object": "error", "message": "m"}', "m", ""),
    (b"<html>", "<html>", ""),
    (b"\xff", "�", ""),
  ],
)
def test_errors_are_read_in_all_their_shapes(body, message, code):
  assert error_message(body) == (message, code)
