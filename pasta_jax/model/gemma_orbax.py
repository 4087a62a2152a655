"""Gemma's official checkpoints: Orbax folders as Kaggle has them, for Gemma 1, 2 and 3.

Arrays stand under paths like `transformer/layer_0/attn/q_einsum/w`, either nested or with all but the last
part in one key. Shapes, ours after the arrow (docs/shapes.md has the letters):

  embedder/input_embedding      VxD, padded rows dropped -> embed
  attn/q_einsum/w               HxDxE                    -> q HxExD
  attn/kv_einsum/w              2xKxDxE                  -> k, v KxExD
  attn/qkv_einsum/w             3xHxDxE where K = H      -> q, k, v
  attn/attn_vec_einsum/w        HxExD                    -> o DxHxE
  attn/_query_norm, _key_norm   E (Gemma 3)
  mlp/gating_einsum/w           2xDxF (Gemma 1), 2xFxD   -> gate, up FxD
  mlp/linear/w                  FxD                      -> down DxF
  pre_attention_norm, pre_ffw_norm, post_attention_norm, post_ffw_norm, final_norm: /scale, D

Norms hold w of (1 + w), as ours do. No configuration is stored: the shapes name the published model.
Source: google-deepmind/gemma (Apache-2.0), modules and checkpoint names.
"""

import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pasta_jax.model.config import ModelConfig
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.orbax_io import OrbaxFolder
from pasta_jax.model.params import Params, ParamSpec, param_table
from pasta_jax.model.placing import Source, build_params, check_names
from pasta_jax.model.presets import PRESETS

# The vision tower of Gemma 3 and its bridge into the text model.
IGNORED_PREFIXES = ("SigLiPFromPatches_0/", "vision_encoder/", "embedder/mm_")

_NORMS = {
  "attn_norm": "pre_attention_norm",
  "attn_post_norm": "post_attention_norm",
  "mlp_norm": "pre_ffw_norm",
  "mlp_post_norm": "post_ffw_norm",
  "q_norm": "attn/_query_norm",
  "k_norm": "attn/_key_norm",
}
_MATRICES = {
  "o": "attn/attn_vec_einsum",
  "gate": "mlp/gating_einsum",
  "up": "mlp/gating_einsum",
  "down": "mlp/linear",
}


def find_gemma_orbax(folder: str | os.PathLike[str]) -> Path | None:
  """The checkpoint in `folder`: itself, or its only subfolder that is one; None where there is none."""
  folder = Path(folder)
  if _is_orbax(folder):
    return folder
  inside = [p for p in sorted(folder.iterdir()) if p.is_dir() and _is_orbax(p)] if folder.is_dir() else []
  return inside[0] if len(inside) == 1 else None


def load_gemma_orbax(
  folder: str | os.PathLike[str],
  *,
  config: ModelConfig | None = None,
  dtype: Any = jnp.float32,
  mesh: Mesh | None = None,
) -> tuple[ModelConfig, Params]:
  """Configuration and parameters of an official checkpoint, restored a layer at a time.

  Args:
    folder: the one that holds `_METADATA`.
    config: of a model that is not a published one.

  Raises:
    WeightsError: shapes of no published Gemma, arrays missing, unknown or of a wrong shape, damaged files.
  """
  stored = OrbaxFolder(folder)
  what = str(stored.folder)
  paths = {_plain(path): path for path in stored.arrays}
  shapes = {name: tuple(stored.arrays[path].shape) for name, path in paths.items()}
  cfg = config or _published(what, shapes)
  fused = "layer_0/attn/qkv_einsum" in shapes
  names = {param: _name(param, fused) for param in param_table(cfg)}
  check_names(what, names, shapes, [n for n in shapes if n.startswith(IGNORED_PREFIXES)])
  held: dict[str, Any] = {}

  def source_of(param: str, spec: ParamSpec) -> Source:
    where = f"{what}: tensor {paths[names[param]]!r}"
    # Fused matrices serve two or three parameters: a layer's arrays are held until the next one's turn.
    if names[param] not in held:
      held.clear()
      group = param.rpartition(".")[0]
      wanted = (
        {names[p]: None for p in names if p.rpartition(".")[0] == group} if group else {names[param]: None}
      )
      restored = stored.restore({paths[n]: None for n in wanted})
      held.update({n: np.asarray(restored[paths[n]]) for n in wanted})
    view = _oriented(where, param.rpartition(".")[2], held[names[param]], spec.shape, cfg)

    def read(start: int, stop: int, out: np.ndarray) -> None:
      out[:] = view[start:stop]

    return Source(where, spec.shape, read)

  return cfg, build_params(what, cfg, source_of, dtype=dtype, mesh=mesh)


def _is_orbax(folder: Path) -> bool:
  return (folder / "_METADATA").is_file()


def _plain(path: str) -> str:
  """`transformer/layer_0/attn/q_einsum/w` -> `layer_0/attn/q_einsum`."""
  path = path.removeprefix("params/").removeprefix("transformer/")
  return path.removesuffix("/w").removesuffix("/scale")


def _name(param: str, fused: bool) -> str:
  if param == "embed":
    return "embedder/input_embedding"
  if param == "final_norm":
    return "final_norm"
  _, layer, name = param.split(".")
  if name in ("q", "k", "v"):
    rest = "attn/qkv_einsum" if fused else "attn/q_einsum" if name == "q" else "attn/kv_einsum"
  else:
    rest = _NORMS.get(name) or _MATRICES[name]
  return f"layer_{layer}/{rest}"


def _oriented(
  where: str, name: str, array: np.ndarray, shape: tuple[int, ...], cfg: ModelConfig
) -> np.ndarray:
  """A view of a stored array with our axes."""
  view = array
  if name == "embed":
    view = array[: shape[0]]
  elif name in ("q", "k", "v"):
    if array.ndim == 4:
      parts = "qkv" if len(array) == 3 else "kv"
      view = array[parts.index(name)] if len(array) == len(parts) else array
    view = view.swapaxes(-1, -2)
  elif name == "o" and array.ndim == 3:
    view = array.transpose(2, 0, 1)
  elif name in ("gate", "up") and array.ndim == 3 and len(array) == 2:
    view = array[("gate", "up").index(name)]
    # Where D = F the shape does not tell, and the family does.
    if view.shape != shape or (cfg.family == "gemma" and shape[0] == shape[1]):
      view = view.T
  elif name == "down":
    view = array.T
  if view.shape != shape:
    raise WeightsError(f"{where} has shape {array.shape}, which does not give {name} of shape {shape}")
  return view


def _published(what: str, shapes: dict[str, tuple[int, ...]]) -> ModelConfig:
  """The published model of these shapes; its vocabulary as the file has it, without padding."""

  def of(name: str, ndim: int) -> tuple[int, ...]:
    if len(shapes.get(name, ())) != ndim:
      raise WeightsError(
        f"{what}: tensor {name!r} is {shapes.get(name, 'missing')}; not an official Gemma checkpoint"
      )
    return shapes[name]

  rows, d = of("embedder/input_embedding", 2)
  ff = of("layer_0/mlp/linear", 2)[0]
  heads, size, _ = of("layer_0/attn/attn_vec_einsum", 3)
  fused = "layer_0/attn/qkv_einsum" in shapes
  kv_heads = heads if fused else of("layer_0/attn/kv_einsum", 4)[1]
  layers = len({m[1] for name in shapes if (m := re.match(r"layer_(\d+)/", name))})
  family = "gemma3" if "layer_0/attn/_query_norm" in shapes else "gemma"
  if family == "gemma" and "layer_0/post_attention_norm" in shapes:
    family = "gemma2"
  found = (family, layers, d, ff, heads, kv_heads, size)
  for cfg in PRESETS.values():
    known = (cfg.family, cfg.num_layers, cfg.d_model, cfg.d_ff, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim)
    if known == found:
      return cfg.replace(vocab_size=min(rows, cfg.vocab_size))
  raise WeightsError(
    f"{what}: no published Gemma has these shapes: {family} of {layers} layers, d_model {d}, d_ff {ff}, "
    f"{heads} heads, {kv_heads} key heads of {size}"
  )
