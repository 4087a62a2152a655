"""Stage 1 of SmolLM2-135M-Instruct, as the bundled adapters were made (docs/experiments.md).

python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m.py --workdir=runs/pasta
python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m.py --workdir=runs/twin --config.twin=true

It goes on from what configs/stage1_smollm2_135m_first.py wrote. Documents are tightened, the fast ones come
more often; rows that only look like lists, and answers of the model itself, teach when not to split. Two CPU
cores with AVX512-BF16 take 40 minutes, a row at a time, which fits their cache.
"""

from pasta_jax.train.config import Config, config_dict


def get_config():
  return config_dict(
    Config(
      model="smollm2-135m",
      adapter="runs/first_{kind}/adapter.npz",
      data=(
        "data/seed.jsonl",
        "data/seed.jsonl",  # once more: its fast documents
        "data/contrast.jsonl",
        "data/own_plain.jsonl",
        "data/own_split.jsonl",
      ),
      data_weights=(0.4, 0.8, 0.5, 0.2, 0.3),
      data_min_speedup=(0.0, 2.5, 0.0, 0.0, 0.0),
      data_text_weights=(1.0, 1.0, 1.0, 0.2, 0.1),  # what the model wrote teaches marks, hardly any text
      tighten=True,
      promise_bias=(0.0, -6.0),  # promises after words of the model's own are mostly wrong
      learning_rate=4e-4,
      lora_rank=32,
      lora_alpha=64.0,
      batch_rows=8,
      accumulate=8,
      length=640,
      remat="dots",
      logits_tokens=2560,
      epochs=1.0,
      save_every=20,
    )
  )
