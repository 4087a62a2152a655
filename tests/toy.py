"""A model small enough for logic tests: a tokenizer of bytes around random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pasta_jax.lang.marks import MARKS, ControlIds
from pasta_jax.model import transformer
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.params import init_params
from pasta_jax.model.weights import LoadedModel


class ByteTokenizer:
  """Ids 0..255 are bytes; 256 ends an answer; with marks, these come next."""

  stop_ids = (256,)
  special_ids = frozenset((256,))
  add_bos = False
  has_chat_template = False

  def __init__(self, marks: bool = False):
    self.controls = ControlIds.of(range(257, 257 + len(MARKS))) if marks else None
    self.vocab_size = 257 + (len(MARKS) if marks else 0)

  def piece(self, token: int) -> bytes:
    return bytes([token]) if token < 256 else b""

  def encode(self, text: str, *, bos: bool = False) -> list[int]:
    return list(text.encode())

  def decode(self, ids) -> str:
    return bytes(i for i in ids if i < 256).decode(errors="replace")

  def stream(self):
    return _ByteStream()


class _ByteStream:
  def __init__(self):
    self.held = b""

  def push(self, token: int) -> str:
    self.held += bytes([token]) if token < 256 else b""
    try:
      text = self.held.decode()
    except UnicodeDecodeError as e:
      if e.reason == "unexpected end of data":
        return ""
      text = self.held.decode(errors="replace")
    self.held = b""
    return text

  def flush(self) -> str:
    text, self.held = self.held.decode(errors="replace"), b""
    return text


TOY = ModelConfig(
  family="llama", vocab_size=1, num_layers=2, d_model=32, d_ff=48, num_heads=4, num_kv_heads=2, head_dim=8
)


def toy_model(seed: int = 1, marks: bool = False, cfg: ModelConfig | None = None, **changes):
  """Config, random parameters and the byte tokenizer, as `load_model` returns them."""
  tokenizer = ByteTokenizer(marks)
  cfg = (cfg or TOY).replace(**({"vocab_size": tokenizer.vocab_size} | changes))
  params = init_params(cfg, jax.random.key(seed))
  # Embeddings of the usual small size give nearly the same logits everywhere; these make answers differ.
  params["embed"] = params["embed"] * 40
  return LoadedModel(cfg, params, tokenizer)


@functools.partial(jax.jit, static_argnums=0)
def _causal_logits(cfg, params, ids, length):
  size = ids.shape[1]
  mask = transformer.causal_mask(length[None], size)
  return transformer.forward(cfg, params, ids, jnp.arange(size)[None], mask)[0]


def teacher_logits(model, ids: list[int]) -> np.ndarray:
  """Logits of one forward over `ids` without a cache, TxV."""
  padded = np.zeros((1, -(-len(ids) // 64) * 64), np.int32)  # few sizes, few compilations
  padded[0, : len(ids)] = ids
  return np.asarray(_causal_logits(model.config, model.params, padded, jnp.asarray(len(ids))))[: len(ids)]
