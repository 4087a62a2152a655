"""pasta_jax: learned asynchronous decoding (PASTA) in JAX.

from pasta_jax import Engine, load_model

engine = Engine(load_model("smollm2-135m"))
for event in engine.stream("What is gravity?"):
  print(event.text, end="", flush=True)
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
  from pasta_jax.decode.engine import Engine
  from pasta_jax.decode.requests import Event, Request, RequestError, Result, Sampling
  from pasta_jax.lang.document import Document
  from pasta_jax.lang.grammar import Limits
  from pasta_jax.lang.parse import ParseError, parse
  from pasta_jax.lang.repair import repair
  from pasta_jax.model.adapter import with_adapter
  from pasta_jax.model.bundled import find_adapter
  from pasta_jax.model.config import ModelConfig
  from pasta_jax.model.marks import with_marks
  from pasta_jax.model.presets import preset
  from pasta_jax.model.sharding import make_mesh
  from pasta_jax.model.weights import LoadedModel, WeightsError, load_model, save_checkpoint

# Name -> module; imported at first use, so that `import pasta_jax` costs nothing.
_PUBLIC = {
  "Document": "lang.document",
  "Engine": "decode.engine",
  "Event": "decode.requests",
  "Limits": "lang.grammar",
  "LoadedModel": "model.weights",
  "ModelConfig": "model.config",
  "ParseError": "lang.parse",
  "Request": "decode.requests",
  "RequestError": "decode.requests",
  "Result": "decode.requests",
  "Sampling": "decode.requests",
  "WeightsError": "model.weights",
  "find_adapter": "model.bundled",
  "load_model": "model.weights",
  "make_mesh": "model.sharding",
  "parse": "lang.parse",
  "preset": "model.presets",
  "repair": "lang.repair",
  "save_checkpoint": "model.weights",
  "with_adapter": "model.adapter",
  "with_marks": "model.marks",
}

__all__ = [
  "Document",
  "Engine",
  "Event",
  "Limits",
  "LoadedModel",
  "ModelConfig",
  "ParseError",
  "Request",
  "RequestError",
  "Result",
  "Sampling",
  "WeightsError",
  "find_adapter",
  "load_model",
  "make_mesh",
  "parse",
  "preset",
  "repair",
  "save_checkpoint",
  "with_adapter",
  "with_marks",
]


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f"module 'pasta_jax' has no attribute {name!r}")
  import importlib

  return getattr(importlib.import_module(f"pasta_jax.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_PUBLIC])
