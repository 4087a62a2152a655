"""Gives a model ids for the marks: reserved ones, or new rows of its embedding."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.params import Params

# Grown embeddings have a multiple of this many rows, so that they still divide over the devices of a mesh.
ROWS = 128


def with_marks(model: Any) -> Any:
  """The model with a tokenizer that has control ids, and an embedding that has rows for them.

  Grown rows start at the mean embedding of words that name the mark (tokenizer.control_seed_texts); rows of
  reserved ids are left as the model's makers set them.

  Args:
    model: with config, params and tokenizer, e.g. from `load_model`; returned as it is if it has control ids.

  Raises:
    ValueError: it has no tokenizer.
  """
  if model.tokenizer is None:
    raise ValueError("the model has no tokenizer, so there is nothing to take ids for the marks from")
  if model.tokenizer.controls is not None:
    return model
  tokenizer = model.tokenizer.with_controls(model.config.vocab_size)
  if tokenizer.vocab_size <= model.config.vocab_size:
    return dataclasses.replace(model, tokenizer=tokenizer)
  config, params = _grow(model.config, model.params, tokenizer)
  return dataclasses.replace(model, config=config, params=params, tokenizer=tokenizer)


def _on_host(x: jax.Array) -> np.ndarray:
  """An array's values, also where other processes hold parts of it."""
  if x.is_fully_addressable:
    return np.asarray(x)
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _grow(cfg: ModelConfig, params: Params, tokenizer: Any) -> tuple[ModelConfig, Params]:
  rows = -(-tokenizer.vocab_size // ROWS) * ROWS
  seeds = [tokenizer.encode(text) for text in tokenizer.control_seed_texts]
  words, ends = np.concatenate(seeds), np.cumsum([len(ids) for ids in seeds])
  grown = dict(params)
  for name in ("embed", "head"):
    if name not in params:
      continue
    table = params[name]
    new = np.zeros((rows - cfg.vocab_size, table.shape[1]), np.float32)
    found = np.split(_on_host(table[jnp.asarray(words)].astype(jnp.float32)), ends[:-1])
    for row, rows_of_words in zip(tokenizer.controls.all, found, strict=True):
      if row >= cfg.vocab_size:
        new[row - cfg.vocab_size] = rows_of_words.mean(axis=0)
    # The old table is freed once its copy is made, so that only this one is held twice, for a moment.
    longer = jnp.concatenate([table, jnp.asarray(new, table.dtype)])
    grown[name] = jax.device_put(longer, table.sharding)
  return cfg.replace(vocab_size=rows), grown
