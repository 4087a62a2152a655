"""Presets are the published models: as many parameters as their makers count."""

import pytest

from pasta_jax.model.params import num_params, param_table
from pasta_jax.model.presets import PRESETS

# What the models' published files hold, tied tables once; of Gemma 3 from 4B on without the vision tower and
# its projection (416,866,032 and 1152 * (d_model + 1)).
PARAMETERS = {
  "gemma-2b": 2_506_172_416,
  "gemma-7b": 8_537_680_896,
  "gemma2-2b": 2_614_341_888,
  "gemma2-9b": 9_241_705_984,
  "gemma2-27b": 27_227_128_320,
  "gemma3-270m": 268_098_176,
  "gemma3-1b": 999_885_952,
  "gemma3-4b": 3_880_263_168,
  "gemma3-12b": 11_766_034_176,
  "gemma3-27b": 27_009_346_304,
  "llama2-7b": 6_738_415_616,
  "llama2-13b": 13_015_864_320,
  "llama2-70b": 68_976_648_192,
  "llama3-8b": 8_030_261_248,
  "llama3-70b": 70_553_706_496,
  "llama3.1-8b": 8_030_261_248,
  "llama3.1-70b": 70_553_706_496,
  "llama3.2-1b": 1_235_814_400,
  "llama3.2-3b": 3_212_749_824,
  "smollm2-135m": 134_515_008,
  "smollm2-360m": 361_821_120,
  "smollm2-1.7b": 1_711_376_384,
  "qwen2.5-0.5b": 494_032_768,
  "qwen2.5-1.5b": 1_543_714_304,
  "qwen2.5-3b": 3_085_938_688,
  "qwen2.5-7b": 7_615_616_512,
  "qwen2.5-14b": 14_770_033_664,
  "qwen2.5-32b": 32_763_876_352,
  "qwen2.5-72b": 72_706_203_648,
  "qwen3-0.6b": 596_049_920,
  "qwen3-1.7b": 1_720_574_976,
  "qwen3-4b": 4_022_468_096,
  "qwen3-8b": 8_190_735_360,
  "qwen3-14b": 14_768_307_200,
  "qwen3-32b": 32_762_123_264,
}


def test_every_preset_is_counted_here():
  assert list(PARAMETERS) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name):
  assert num_params(PRESETS[name]) == PARAMETERS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_hangs_together(name):
  cfg = PRESETS[name]
  assert cfg.name == name
  assert cfg.num_heads % cfg.num_kv_heads == 0
  assert ("head" in param_table(cfg)) != cfg.tied_embeddings
  assert cfg.sliding_window is None or cfg.sliding_window < cfg.max_len
