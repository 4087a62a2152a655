"""Stage 1 of SmolLM2-135M-Instruct, as the bundled adapters were made (docs/experiments.md).

python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m.py --workdir=runs/pasta
python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m.py --workdir=runs/twin --config.twin=true

LoRA on all linear maps and the marks' rows, on the project's own rows: 0.84 million tokens, a little more
than an epoch, in two cycles of the learning rate. Two CPU cores take an hour and a half, at 160 tokens/s.
"""

from pasta_jax.train.config import Config, config_dict


def get_config():
  return config_dict(
    Config(
      model="smollm2-135m",
      data=("data/seed.jsonl",),
      learning_rate=1e-3,
      lora_rank=16,
      lora_alpha=32.0,
      batch_rows=3,
      length=640,
      accumulate=3,  # a row at a time: what a layer keeps fits the cache of a CPU
      remat="dots",
      epochs=3.0,
      steps=440,  # goes before epochs
      cycles=2,
      eval_every=55,
      eval_rows=64,
      save_every=55,
    )
  )
