"""Stage 1 of SmolLM2-135M-Instruct, its first part: marks learned from rows that others wrote.

python -m pasta_jax.train.main --config=configs/stage1_smollm2_135m_first.py --workdir=runs/first_pasta
and the same with --workdir=runs/first_twin --config.twin=true.

LoRA on all linear maps and the marks' rows, on the project's own rows: two epochs, 366 steps. One H200 takes
a minute in bfloat16, compiling included. Two CPU cores would need about two hours (1.9 million
tokens at 270 tokens/s in bfloat16), with --config.accumulate=8: a row at a time fits their cache.
configs/stage1_smollm2_135m.py goes on from there.
"""

from pasta_jax.train.config import Config, config_dict


def get_config():
  return config_dict(
    Config(
      model="smollm2-135m",
      data=("data/seed.jsonl",),
      unsplit_weight=3.0,  # a fifth of the rows: seen as rarely, the model splits where it should not
      learning_rate=1e-3,
      lora_rank=32,
      lora_alpha=64.0,
      batch_rows=8,
      length=640,
      remat="dots",
      logits_tokens=2560,
      epochs=2.0,  # text is learned by heart from the third on
      eval_every=61,
      eval_rows=64,
      save_every=61,
    )
  )
