"""Log-likelihoods by teacher forcing: many sequences in one batched forward, few sizes, few compilations."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pasta_jax.lang.marks import ControlIds
from pasta_jax.lang.sequence import Sequence as Sequence_
from pasta_jax.lang.sequence import Target, training_sequence
from pasta_jax.lang.threads import Threads
from pasta_jax.lang.visibility import visible
from pasta_jax.model import transformer
from pasta_jax.model.attention import attend
from pasta_jax.model.config import ModelConfig
from pasta_jax.train.loss import cross_entropy
from pasta_jax.train.packing import prompt_ids

SIZE = 128  # rows are padded to a multiple of this many tokens
TOKENS = 4096  # of a batch, at most
LOGITS = 512  # tokens whose logits exist at a time


def plain_sequence(tokenizer: Any, prompt: Any, text: str) -> Sequence_:
  """A prompt and a plain answer, as the sequential decoder sees them.

  Args:
    tokenizer: of the model, with marks or without.
    prompt: text, or messages.
  """
  return training_sequence(
    prompt_ids(tokenizer, prompt), Threads(tuple(tokenizer.encode(text))), _controls(tokenizer), 0
  )


def _controls(tokenizer: Any) -> ControlIds:
  """Ids of marks; where the model has none, ids that no text has."""
  return tokenizer.controls or tokenizer.with_controls(tokenizer.vocab_size).controls


def text_nll(model: Any, sequences: Sequence[Sequence_]) -> Iterator[tuple[int, float, int]]:
  """What the text of each sequence costs: marks, topics, lengths and the end do not count.

  Args:
    model: with `config`, `params` and `tokenizer`; its parameters plain (not those of an engine).
    sequences: see lang.sequence; at most as long as the model's positions.

  Yields:
    (index, summed nats, tokens) of each sequence, shorter ones first.
  """
  order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
  at = 0
  while at < len(order):
    size, batch = _batch_of(sequences, order, at)
    mine = order[at : at + batch]
    padded = _pad([sequences[i] for i in mine], batch, size)
    nll = np.asarray(_nll(model.config, _vocab(model), model.params, padded))
    text = padded["kind"] == Target.TEXT
    for row, i in enumerate(mine):
      yield i, float(nll[row][text[row]].sum(dtype=np.float64)), int(text[row].sum())
    at += batch


def _batch_of(sequences: Sequence[Sequence_], order: Sequence[int], at: int) -> tuple[int, int]:
  """Tokens of a row and rows of the batch that starts at `order[at]`."""
  left = len(order) - at
  rows = max(1, TOKENS // _round(len(sequences[order[at]])))
  size = _round(len(sequences[order[at + min(rows, left) - 1]]))
  few = 1 << (left - 1).bit_length()  # a last batch of fewer rows, of which there are few sizes too
  return size, min(max(1, TOKENS // size), few)


def _round(length: int) -> int:
  return -(-length // SIZE) * SIZE


def _vocab(model: Any) -> int:
  return min(model.tokenizer.vocab_size, model.config.vocab_size)


_FIELDS = ("ids", "position", "thread", "visible_at", "horizon", "target", "kind")


def _pad(sequences: Sequence[Sequence_], batch: int, size: int) -> dict[str, np.ndarray]:
  """Rows of T = size; padding is a thread of its own, and has no target."""
  out = {name: np.zeros((batch, size), np.int32) for name in _FIELDS}
  out["thread"][:] = -1
  out["visible_at"][:] = size
  for row, sequence in enumerate(sequences):
    for name in _FIELDS:
      out[name][row, : len(sequence)] = getattr(sequence, name)
  return out


@functools.partial(jax.jit, static_argnums=(0, 1))
def _nll(cfg: ModelConfig, vocab: int, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
  """BxT float32, nats; 0 where there is no text to predict."""
  if jax.default_backend() == "cpu":  # where XLA would do so for each operation in bfloat16
    params = {name: x.astype(jnp.float32) for name, x in params.items()}
  position, thread = batch["position"], batch["thread"]
  time = jnp.arange(position.shape[1])[None]
  mask = visible(
    thread[:, :, None], time[:, :, None], batch["horizon"][:, :, None],
    thread[:, None], time[:, None], batch["visible_at"][:, None],
  )  # fmt: skip
  window = transformer.window_mask(cfg, position, position)
  local = mask if window is None else mask & window

  def attention(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    return attend(cfg, q, k, v, local if cfg.is_local(layer) else mask)

  hidden = transformer.hidden_states(cfg, params, batch["ids"], position, attention)
  table = params["embed" if cfg.tied_embeddings else "head"]
  weight = (batch["kind"] == Target.TEXT).astype(jnp.float32)
  return cross_entropy(cfg, vocab, LOGITS, table, hidden, batch["target"], weight)[1]["nll"]
