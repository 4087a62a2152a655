"""Stage 1 of SmolLM2-135M-Instruct: LoRA on all linear maps and the marks' rows, on the project's own rows.

python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m.py --workdir=runs/stage1
python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m.py --workdir=runs/twin --config.twin=true
"""

from pasta_jax.train.config import Config, config_dict


def get_config():
  return config_dict(
    Config(
      model="smollm2-135m",
      data=("data/seed.jsonl",),
      learning_rate=5e-4,
      lora_rank=16,
      lora_alpha=32.0,
      batch_rows=3,
      length=640,
      remat="dots",
      epochs=3.0,
      eval_every=100,
      save_every=100,
    )
  )
