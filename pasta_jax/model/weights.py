"""The front door: a model's configuration, parameters and tokenizer from whatever names it.

"smollm2-135m"                      a preset whose weights a Python package ships
"model.gguf"                        a GGUF file
"folder"                            Hugging Face's, one of save_checkpoint, or Gemma's official Orbax
"hf:owner/name@revision:file.gguf"  a model hub; revision and file may be left out
"random:gemma2-2b:7"                random weights of any preset, from a seed (0 if left out)
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from pasta_jax.model.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint, tokenizer_folder
from pasta_jax.model.config import ModelConfig
from pasta_jax.model.errors import WeightsError, one_line
from pasta_jax.model.gemma_orbax import find_gemma_orbax, load_gemma_orbax
from pasta_jax.model.gguf_file import GgufFile
from pasta_jax.model.gguf_weights import load_gguf
from pasta_jax.model.hub import download, parse_hub
from pasta_jax.model.memory import check_fits
from pasta_jax.model.packages import PACKAGES, packaged_gguf
from pasta_jax.model.params import Params, ParamSpec, init_param, param_key, param_table
from pasta_jax.model.placing import target_shardings
from pasta_jax.model.presets import PRESETS, preset
from pasta_jax.model.safetensors_weights import load_safetensors
from pasta_jax.runtime import use_default_cache

__all__ = ["LoadedModel", "WeightsError", "load_model", "random_params", "save_checkpoint"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class LoadedModel:
  """A model ready to run.

  Attributes:
    config: its shapes and arithmetic.
    params: as in model/params.py, each in its sharding.
    tokenizer: see model/tokenizer_io.py; None where the source has none.
    promise_bias: of its requests, where they name none, see decode/requests.py; an adapter sets it.
  """

  config: ModelConfig
  params: Params
  tokenizer: Any
  promise_bias: tuple[float, float] = (0.0, 0.0)


def load_model(source: str, *, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> LoadedModel:
  """Loads a model, tensor by tensor, straight into `dtype` and its sharding.

  Programs compiled from then on are kept for the next process in `~/.cache/pasta_jax/xla`, unless JAX has
  been given a folder (`jax_compilation_cache_dir`) or told to keep none (`jax_enable_compilation_cache`).

  Args:
    source: see the top of this module.
    dtype: of every parameter.
    mesh: with the axes of model/sharding.py; None for the default device alone.

  Raises:
    WeightsError: one line that says which file and tensor is wrong and what to do.
  """
  use_default_cache()
  if is_random(source):
    return _random(source, dtype, mesh)
  if source.startswith("hf:"):
    return _from_path(download(parse_hub(source)), dtype, mesh)
  if source in PACKAGES:
    return _named(_from_path(packaged_gguf(source), dtype, mesh), source)
  path = Path(source).expanduser()
  if path.exists() or is_checkpoint(path):
    return _from_path(path, dtype, mesh)
  if source in PRESETS:
    raise WeightsError(
      f"{source}: no package ships its weights; give a path or hf:owner/name (or random:{source})"
    )
  if "/" in source or path.suffix in (".gguf", ".safetensors"):
    raise WeightsError(f"{source}: no such file or folder")
  try:
    preset(source)
  except ValueError as e:
    raise WeightsError(f"{e}; or give the path of a file or folder, or hf:owner/name") from None
  raise AssertionError(source)


def is_random(source: str) -> bool:
  """Whether a source names random weights."""
  return source.startswith("random:")


def random_params(
  cfg: ModelConfig, seed: int = 0, *, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> Params:
  """Random parameters, each made where it shall lie; the values do not depend on the mesh."""
  table, shardings = param_table(cfg), target_shardings(cfg, mesh)
  check_fits(cfg.name or cfg.family, table, dtype, shardings)
  key = jax.random.key(seed)
  dtype = jnp.dtype(dtype)
  return {
    name: _init_program(spec, dtype, shardings[name])(param_key(key, name)) for name, spec in table.items()
  }


@functools.lru_cache(maxsize=256)
def _init_program(spec: ParamSpec, dtype: Any, sharding: Sharding) -> Any:
  """From a key to a parameter: one program for all parameters of a kind."""
  return jax.jit(functools.partial(init_param, spec, dtype=dtype), out_shardings=sharding)


def _random(source: str, dtype: Any, mesh: Mesh | None) -> LoadedModel:
  _, name, *rest = source.split(":")
  try:
    cfg = preset(name)
    seed = int(rest[0]) if rest else 0
    if len(rest) > 1 or not 0 <= seed < 2**63:
      raise ValueError
  except ValueError as e:
    raise WeightsError(str(e) if name not in PRESETS else f"{source!r} is not random:preset:seed") from None
  return LoadedModel(cfg, random_params(cfg, seed, dtype=dtype, mesh=mesh), None)


def _named(model: LoadedModel, name: str) -> LoadedModel:
  return LoadedModel(model.config.replace(name=name), model.params, model.tokenizer)


def _from_path(path: Path, dtype: Any, mesh: Mesh | None) -> LoadedModel:
  if path.is_file():
    if path.suffix == ".safetensors":
      raise WeightsError(f"{path}: give its folder, which holds config.json too")
    with GgufFile(path) as file:
      tokenizer = _tokenizer_from_gguf(file)
      cfg, params = load_gguf(file, dtype=dtype, mesh=mesh)
    return _whole(path, cfg, params, tokenizer)
  if is_checkpoint(path):
    tokenizer = _tokenizer_from_folders(tokenizer_folder(path))
    cfg, params = load_checkpoint(path, dtype=dtype, mesh=mesh)
  elif any(path.glob("*.safetensors")) or (path / "model.safetensors.index.json").exists():
    tokenizer = _tokenizer_from_folders(path)
    cfg, params = load_safetensors(path, dtype=dtype, mesh=mesh)
  elif orbax := find_gemma_orbax(path):
    tokenizer = _tokenizer_from_folders(path, orbax, orbax.parent)
    cfg, params = load_gemma_orbax(orbax, dtype=dtype, mesh=mesh)
  else:
    raise WeightsError(
      f"{path}: holds no weights; expected *.safetensors with config.json, a folder of save_checkpoint, "
      "or Gemma's official Orbax checkpoint"
    )
  return _whole(path, cfg, params, tokenizer)


def _whole(path: Path, cfg: ModelConfig, params: Params, tokenizer: Any) -> LoadedModel:
  """The model, if its tokenizer's text has rows in its embedding; special ids without one are never drawn."""
  if tokenizer is not None:
    more = range(cfg.vocab_size, tokenizer.vocab_size)
    beyond = [i for i in more if tokenizer.piece(i) and i not in tokenizer.special_ids]
    if beyond:
      raise WeightsError(
        f"{path}: the tokenizer has text up to id {beyond[-1]}, the embedding has {cfg.vocab_size} rows;"
        " they are not of the same model"
      )
  return LoadedModel(cfg, params, tokenizer)


def _tokenizer_from_gguf(file: GgufFile) -> Any:
  if "tokenizer.ggml.model" not in file.metadata:
    return None
  with _tokenizer_errors(file.path):
    from pasta_jax.model import tokenizer_io  # what it imports need not be there for weights alone

    return tokenizer_io.tokenizer_from_gguf(file)


def _tokenizer_from_folders(*folders: Path | None) -> Any:
  """The tokenizer of the first folder that has one; None where none has."""
  for folder in folders:
    if folder and any((folder / name).is_file() for name in _TOKENIZER_FILES):
      with _tokenizer_errors(folder):
        from pasta_jax.model import tokenizer_io

        return tokenizer_io.load_tokenizer(folder)
  return None


@contextlib.contextmanager
def _tokenizer_errors(path: Path) -> Iterator[None]:
  try:
    yield
  except ImportError as e:
    raise WeightsError(
      f"{path}: its tokenizer needs a package: {one_line(e)}; pip install tokenizers"
    ) from None
  except (ValueError, TypeError, LookupError) as e:  # metadata may hold any type where another is due
    text = one_line(e)
    raise WeightsError(text if str(path) in text else f"{path}: tokenizer: {text}") from None
