"""The transformer as a Flax NNX module: definition, sharded initialisation, and a call for interactive use.

Hot loops take the flat dict of parameters instead: an NNX module handed to jit costs Python time at every
call. `params_of` and `Transformer.from_params` go from one to the other without copies.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from pasta_jax.model import sharding, transformer
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.params import Params, check_params, init_param, init_params, param_key, param_table


class Transformer(nnx.Module):
  """A decoder-only transformer whose variables are the table of parameters.

  `model.weights` holds one `nnx.Param` per entry of `param_table(config)`, under the same name.
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
    key = rngs.params()
    self.config = config
    self.weights = nnx.Dict(
      {
        name: nnx.Param(init_param(spec, param_key(key, name), dtype))
        for name, spec in param_table(config).items()
      }
    )

  @classmethod
  def from_params(cls, config: ModelConfig, params: Mapping[str, jax.Array]) -> "Transformer":
    """A module around existing parameters."""
    check_params(config, params)
    model = nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
    for name, value in params.items():
      model.weights[name] = nnx.Param(value)
    return model

  def __call__(self, ids: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """Causal logits of right-padded rows.

    Args:
      ids: BxT int32.
      lengths: B int32, tokens in each row; None: all of T.
    Returns:
      BxTxV float32.
    """
    b, t = ids.shape
    lengths = jnp.full((b,), t) if lengths is None else lengths
    positions = jnp.broadcast_to(jnp.arange(t)[None], (b, t))
    mask = transformer.causal_mask(lengths, t)
    return transformer.forward(self.config, params_of(self), ids, positions, mask)


def params_of(model: Transformer) -> Params:
  """The module's parameters as a flat dict of arrays."""
  return {name: variable[...] for name, variable in model.weights.items()}


def init_sharded(cfg: ModelConfig, seed: int, mesh: Mesh, dtype: Any = jnp.float32) -> Params:
  """Random parameters created in their shardings: no device ever holds a whole one that is split."""

  def init() -> Params:
    return init_params(cfg, jax.random.key(seed), dtype)

  return jax.jit(init, out_shardings=sharding.param_shardings(cfg, mesh))()
