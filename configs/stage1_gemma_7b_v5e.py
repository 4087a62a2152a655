"""Stage 1 of Gemma 7B with all parameters on 16 v5e chips: the paper's rate (1e-5 to 0) and epochs (4).

A batch is 16 packed rows, one per chip. On every host, with a folder that all of them share:

python -m pasta_jax.train.main --config=configs/stage1_gemma_7b_v5e.py --distributed \
  --config.model=FOLDER_OF_GEMMA_7B --workdir=SHARED_FOLDER/run

Memory of a chip, by the compiler:

python -m pasta_jax.eval.aot_train --config=configs/stage1_gemma_7b_v5e.py --topology=v5e:4x4
"""

from pasta_jax.train.config import Config, config_dict


def get_config():
  return config_dict(
    Config(
      model="gemma-7b",
      data=("data/seed.jsonl",),
      lora=False,
      learning_rate=1e-5,
      schedule="linear",
      final_rate=0.0,
      batch_rows=16,
      length=1024,
      logits_tokens=2048,
      remat="full",
      mesh="fsdp:16",
      epochs=4.0,
      eval_every=200,
      save_every=200,
    )
  )
