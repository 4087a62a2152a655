"""Stage 1 of SmolLM2-135M-Instruct, second part: as the bundled adapters were made (docs/experiments.md).

python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m.py --workdir=runs/pasta
python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m.py --workdir=runs/twin --config.twin=true

It goes on from what stage1_smollm2_135m_first.py leaves in runs/first_pasta and runs/first_twin. That model
has written the rows own_*.jsonl: plain answers where it should not split, its fastest ones where it should.
87 steps; 27 minutes on two CPU cores with AVX512-BF16.
"""

from pasta_jax.train.config import Config, config_dict


def get_config():
  return config_dict(
    Config(
      model="smollm2-135m",
      data=("data/seed.jsonl", "data/contrast.jsonl", "data/own_plain.jsonl", "data/own_split.jsonl"),
      data_weights=(0.2, 0.5, 0.3, 0.5),
      tighten=True,  # a list's marker in the main thread delays every later chunk
      adapter="runs/first_{kind}/adapter.npz",
      learning_rate=4e-4,
      lora_rank=32,
      lora_alpha=64.0,
      promise_bias=(0.0, -4.0),
      batch_rows=8,
      accumulate=8,  # a row at a time fits a CPU's cache
      length=640,
      remat="dots",
      logits_tokens=2560,
      epochs=1.0,
      eval_rows=64,
      save_every=12,
    )
  )
