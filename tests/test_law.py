"""The law: the parallel decoder's logits equal one teacher-forced forward over the document it produced."""

import pytest

from pasta_jax.decode.engine import Engine
from tests.law import FAMILIES, SHORT, compiled_quickly, family_model, is_telling, keeps_the_law, law_requests


@pytest.fixture(scope="module", autouse=True)
def quick():
  with compiled_quickly():
    yield


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_one_forward_in_batches_of_four(family):
  model = family_model(family)
  engine = Engine(model, batch_size=4, max_len=128, segment=8, lanes=2, chunks=8, keep_logits=True)
  results = engine.generate(law_requests(model.tokenizer.controls, 1, 40, **SHORT))
  keeps_the_law(model, results)
  is_telling(results, model.tokenizer.controls)
  assert {w for r in results for w in r.parallel.steps_by_width} == {1, 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_one_forward_one_at_a_time(family):
  model = family_model(family)
  engine = Engine(model, batch_size=1, max_len=128, segment=8, lanes=2, chunks=8, keep_logits=True)
  results = engine.generate(law_requests(model.tokenizer.controls, 5, 40, **SHORT))
  keeps_the_law(model, results)
  is_telling(results, model.tokenizer.controls)
