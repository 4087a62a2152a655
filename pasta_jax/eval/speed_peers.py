"""Sequential peers on the same weights and the same machine: HF transformers and llama.cpp, in float32.

Both are measured where they are installed, and are dependencies of nothing.
"""

import importlib.util
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.packed import Packed, unpack


def _installed(*modules: str) -> bool:
  return all(importlib.util.find_spec(m) is not None for m in modules)


def hf_model(cfg: ModelConfig, params: dict[str, Any], **settings: Any) -> Any:
  """The model in transformers, float32 on CPU; None where torch is not installed, or for another family.

  Only the llama family is mapped.

  Args:
    params: as in model/params.py, or packed.
    settings: further ones of its configuration.
  """
  if not _installed("torch", "transformers") or cfg.family != "llama" or cfg.rope_scaling is not None:
    return None
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  config = transformers.LlamaConfig(
    vocab_size=cfg.vocab_size,
    hidden_size=cfg.d_model,
    intermediate_size=cfg.d_ff,
    num_hidden_layers=cfg.num_layers,
    num_attention_heads=cfg.num_heads,
    num_key_value_heads=cfg.num_kv_heads,
    head_dim=cfg.head_dim,
    rms_norm_eps=cfg.norm_eps,
    rope_theta=cfg.rope_theta,
    max_position_embeddings=cfg.max_len,
    tie_word_embeddings=cfg.tied_embeddings,
    attention_bias=False,
    **settings,
  )
  with torch.device("meta"):
    model = transformers.LlamaForCausalLM(config)
  model = model.to_empty(device="cpu").float()
  model.model.rotary_emb = type(model.model.rotary_emb)(config)
  if any(isinstance(value, Packed) for value in params.values()):
    params = unpack(cfg, params)
  state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in _hf_names(cfg, params)}
  model.load_state_dict(state, strict=False)
  model.tie_weights()
  return model


def hf_ms(cfg: ModelConfig, params: dict[str, Any], prompt: list[int], new_tokens: int) -> float | None:
  """Milliseconds per token of `generate` after the first, greedy; None where there is no `hf_model`."""
  model = hf_model(cfg, params, eos_token_id=None, bos_token_id=None, pad_token_id=0)
  if model is None:
    return None
  import torch

  model.eval()
  ids = torch.tensor([prompt])

  def seconds(n: int) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
      model.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False)
    return time.perf_counter() - start

  seconds(4)
  return 1e3 * min(seconds(new_tokens) - seconds(1) for _ in range(3)) / (new_tokens - 1)


def _hf_names(cfg: ModelConfig, params: dict[str, Any]):
  def flat(x: Any) -> np.ndarray:
    return np.asarray(x, np.float32)

  yield "model.embed_tokens.weight", flat(params["embed"])
  yield "model.norm.weight", flat(params["final_norm"])
  yield "lm_head.weight", flat(params["embed" if cfg.tied_embeddings else "head"])
  for i in range(cfg.num_layers):
    ours, theirs = f"layers.{i}.", f"model.layers.{i}."
    for name in ("q", "k", "v"):
      yield f"{theirs}self_attn.{name}_proj.weight", flat(params[ours + name]).reshape(-1, cfg.d_model)
    yield f"{theirs}self_attn.o_proj.weight", flat(params[ours + "o"]).reshape(cfg.d_model, -1)
    for name in ("gate", "up", "down"):
      yield f"{theirs}mlp.{name}_proj.weight", flat(params[ours + name])
    yield f"{theirs}input_layernorm.weight", flat(params[ours + "attn_norm"])
    yield f"{theirs}post_attention_layernorm.weight", flat(params[ours + "mlp_norm"])


def llama_cpp_ms(gguf_path: str | None, prompt: list[int], new_tokens: int) -> float | None:
  """Milliseconds per token of llama.cpp on the weights of a GGUF file made float32, greedy.

  None where llama_cpp is not installed, or the model is not a GGUF file.
  """
  if gguf_path is None or not _installed("llama_cpp", "gguf"):
    return None
  import llama_cpp

  threads = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "float32.gguf"
    _write_float32(gguf_path, path)
    model = llama_cpp.Llama(
      str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False, use_mmap=False
    )

    def seconds() -> float:
      model.reset()
      model.eval(prompt)
      token = model.sample(temp=0.0)
      start = time.perf_counter()
      for _ in range(new_tokens - 1):
        model.eval([token])
        token = model.sample(temp=0.0)
      return time.perf_counter() - start

    seconds()
    best = min(seconds() for _ in range(3))
    model.close()
  return 1e3 * best / (new_tokens - 1)


def _write_float32(source: str, target: pathlib.Path) -> None:
  """Copies a GGUF file with its matrices dequantised."""
  import gguf

  reader = gguf.GGUFReader(source)
  writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
  for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name == "general.architecture":
      continue
    value = 0 if name == "general.file_type" else field.contents()
    sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(name, value, field.types[0], sub_type)
  for tensor in reader.tensors:
    writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
