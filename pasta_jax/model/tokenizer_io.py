"""Tokenizers from files and to files: GGUF metadata, Hugging Face folders, `.model` files, our folders."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pasta_jax.lang.marks import ControlIds
from pasta_jax.model import tokenizer_bpe, tokenizer_spm
from pasta_jax.model.tokenizer import END_OF_TURN, Roles, Tokenizer, TokenizerError
from pasta_jax.model.tokenizer_bpe import BpeTokenizer, bpe_spec
from pasta_jax.model.tokenizer_spm import (
  BYTE,
  CONTROL,
  NORMAL,
  UNKNOWN,
  UNUSED,
  USER_DEFINED,
  SpmTokenizer,
  spm_model,
)

OWN_FILE = "pasta_tokenizer.json"


def tokenizer_from_gguf(file: Any) -> Tokenizer:
  """The tokenizer in a GGUF file's metadata.

  Args:
    file: a `gguf.GGUFReader` or `GgufFile`: has `get_field(key)`, whose result has `contents()`.

  Raises:
    TokenizerError: keys that are missing, or a kind of tokenizer that is not supported.
  """

  def get(key: str, default: Any = None) -> Any:
    field = file.get_field(f"tokenizer.{key}")
    return default if field is None else field.contents()

  def need(key: str) -> Any:
    value = get(key)
    if value is None:
      raise TokenizerError(f"GGUF metadata lacks tokenizer.{key}; the file has no usable tokenizer")
    return value

  def need_list(key: str, kind: type | tuple[type, ...], what: str, default: Any = None) -> list[Any]:
    value = need(key) if default is None else get(key, default)
    if not isinstance(value, list) or not all(isinstance(x, kind) for x in value):
      raise TokenizerError(f"GGUF metadata: tokenizer.{key} is not a list of {what}")
    return value

  kind, tokens = need("ggml.model"), need_list("ggml.tokens", str, "strings")
  types = need_list("ggml.token_type", int, "numbers", [1] * len(tokens))
  if len(types) != len(tokens):
    raise TokenizerError(f"GGUF metadata: {len(tokens)} tokens but {len(types)} token types")
  if not all(NORMAL <= kind <= BYTE for kind in types):
    raise TokenizerError(f"GGUF metadata: tokenizer.ggml.token_type has values outside {NORMAL} to {BYTE}")
  marked = {
    i: t for i, (t, k) in enumerate(zip(tokens, types, strict=True)) if k in (CONTROL, UNKNOWN, UNUSED)
  }

  def known(name: str) -> int | None:
    i = get(f"ggml.{name}_token_id")
    return i if type(i) is int and 0 <= i < len(tokens) else None

  eos = known("eos")
  stop = [eos, known("eot"), *(i for i, text in marked.items() if text in END_OF_TURN)]
  roles = Roles(
    bos=known("bos"),
    eos=eos,
    pad=known("padding"),
    add_bos=bool(get("ggml.add_bos_token", kind == "llama")),
    stop=tuple(dict.fromkeys(i for i in stop if i is not None)),
    chat_template=str(get("chat_template", "") or ""),
  )
  if kind == "gpt2":
    marked |= {i: t for i, (t, k) in enumerate(zip(tokens, types, strict=True)) if k == USER_DEFINED}
    return BpeTokenizer(
      bpe_spec(tokens, need_list("ggml.merges", str, "strings"), marked, str(get("ggml.pre", "default"))),
      roles,
      "GGUF tokenizer",
    )
  if kind == "llama":
    scores = need_list("ggml.scores", (int, float), "numbers")
    if len(scores) != len(tokens):
      raise TokenizerError(f"GGUF metadata: {len(tokens)} tokens but {len(scores)} scores")
    unknown = known("unknown")
    model = spm_model(
      tokens,
      scores,
      types,
      unknown=0 if unknown is None else unknown,
      bos=roles.bos,
      eos=roles.eos,
      pad=roles.pad,
      add_space_prefix=bool(get("ggml.add_space_prefix", True)),
    )
    return SpmTokenizer(model, roles, "GGUF tokenizer")
  raise TokenizerError(f"GGUF tokenizer {kind!r} is not supported; known are 'gpt2' and 'llama'")


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
  """The tokenizer in a folder: ours, Hugging Face's, or a lone `tokenizer.model`.

  Raises:
    TokenizerError: nothing there, or files that are broken.
  """
  folder = pathlib.Path(folder)
  if (folder / OWN_FILE).is_file():
    return _load_own(folder)
  model, fast = folder / tokenizer_spm.FILE, folder / tokenizer_bpe.FILE
  if model.is_file():
    tokenizer: Tokenizer = SpmTokenizer(_read(model), where=str(model))
  elif fast.is_file():
    tokenizer = BpeTokenizer(_read_json(fast), Roles(None, None, None, False, ()), where=str(fast))
  else:
    raise TokenizerError(f"{folder} has neither {tokenizer_spm.FILE} nor {tokenizer_bpe.FILE}")
  try:
    tokenizer.roles = _hf_roles(folder, tokenizer)
  except (KeyError, TypeError, AttributeError) as e:
    raise TokenizerError(
      f"{folder}: tokenizer_config.json, or a file beside it, has a value of the wrong type: {e}"
    ) from None
  return tokenizer


def _hf_roles(folder: pathlib.Path, tokenizer: Tokenizer) -> Roles:
  """Roles from the JSON files of a Hugging Face folder; what they do not say stays as it is."""

  def optional(name: str) -> dict[str, Any]:
    return _read_json(folder / name) if (folder / name).is_file() else {}

  config, generation = optional("tokenizer_config.json"), optional("generation_config.json")
  old, ids = tokenizer.roles, {text: i for i, text in tokenizer.specials.items()}

  def role(name: str, default: int | None) -> int | None:
    text = config.get(f"{name}_token", optional("special_tokens_map.json").get(f"{name}_token"))
    text = text["content"] if isinstance(text, Mapping) else text
    return ids.get(text, default) if isinstance(text, str) else default

  eos = role("eos", old.eos)
  ends = generation.get("eos_token_id", [])
  ends = ends if isinstance(ends, list) else [ends]
  stop = [eos, *ends, *(ids[t] for t in END_OF_TURN if t in ids), *old.stop]
  template_file = folder / "chat_template.jinja"
  if template_file.is_file():
    template = _read(template_file).decode(errors="replace")
  else:
    template = config.get("chat_template") or optional("chat_template.json").get("chat_template") or ""
  if isinstance(template, list):
    template = next((t["template"] for t in template if t.get("name") == "default"), "")
  bos = role("bos", old.bos)
  return Roles(
    bos=bos,
    eos=eos,
    pad=role("pad", old.pad),
    add_bos=bool(config.get("add_bos_token", old.add_bos or _template_adds_bos(tokenizer, bos))),
    stop=tuple(dict.fromkeys(i for i in stop if type(i) is int and 0 <= i < tokenizer.vocab_size)),
    chat_template=str(template),
  )


def _template_adds_bos(tokenizer: Tokenizer, bos: int | None) -> bool:
  """Whether a tokenizer.json's post-processor puts bos before a text (Llama 3)."""
  spec = getattr(tokenizer, "_spec", {}).get("post_processor")
  return bos is not None and spec is not None and json.dumps(tokenizer.specials[bos]) in json.dumps(spec)


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike) -> None:
  """Writes everything that `load_tokenizer` needs; our own file comes last and vouches for the rest."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer._save_model(str(folder))
  r = tokenizer.roles
  own = {
    "kind": "spm" if isinstance(tokenizer, SpmTokenizer) else "bpe",
    "roles": {
      "bos": r.bos,
      "eos": r.eos,
      "pad": r.pad,
      "add_bos": r.add_bos,
      "stop": list(r.stop),
      "chat_template": r.chat_template,
    },
    "controls": list(tokenizer.controls.all) if tokenizer.controls else None,
    "grown": tokenizer.grown,
  }
  beside = folder / (OWN_FILE + ".writing")
  beside.write_text(json.dumps(own, ensure_ascii=False, indent=1), encoding="utf-8")
  os.replace(beside, folder / OWN_FILE)


def _load_own(folder: pathlib.Path) -> Tokenizer:
  where = folder / OWN_FILE
  own = _read_json(where)
  try:
    roles, controls, grown = _own_roles(own["roles"]), own["controls"], own["grown"]
    kind = {"spm": tokenizer_spm, "bpe": tokenizer_bpe}[own["kind"]]
    if type(grown) is not int or grown < 0:
      raise ValueError(f"grown is {grown!r}")
    ids = None if controls is None else ControlIds.of([_int(i) for i in controls])
  except KeyError as e:
    raise TokenizerError(f"{where} lacks {e}; save the tokenizer again") from None
  except (ValueError, TypeError) as e:
    raise TokenizerError(f"{where} is damaged: {e}; save the tokenizer again") from None
  path = folder / kind.FILE
  tokenizer: Tokenizer
  if kind is tokenizer_spm:
    tokenizer = SpmTokenizer(_read(path), roles, str(path))
  else:
    tokenizer = BpeTokenizer(_read_json(path), roles, str(path))
  if any(i >= tokenizer.vocab_size for i in (roles.bos, roles.eos, roles.pad, *roles.stop) if i is not None):
    raise TokenizerError(f"{where}: special ids do not fit the vocabulary beside it")
  if ids is not None:
    tokenizer = tokenizer.with_controls(tokenizer.vocab_size)
    if ids != tokenizer.controls:
      raise TokenizerError(f"{where}: control ids do not fit the vocabulary beside it")
    tokenizer.grown = grown
  return tokenizer


def _int(value: Any) -> int:
  if type(value) is not int or value < 0:
    raise ValueError(f"{value!r} is not an id")
  return value


def _own_roles(r: Mapping[str, Any]) -> Roles:
  bos, eos, pad = (None if r[name] is None else _int(r[name]) for name in ("bos", "eos", "pad"))
  if type(r["add_bos"]) is not bool or not isinstance(r["chat_template"], str):
    raise ValueError("a role has a value of the wrong type")
  return Roles(bos, eos, pad, r["add_bos"], tuple(map(_int, r["stop"])), r["chat_template"])


def _read(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as e:
    raise TokenizerError(f"{path} cannot be read: {e.strerror}") from None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(_read(path))
  except ValueError as e:
    raise TokenizerError(f"{path} is not JSON: {e}") from None
  if not isinstance(value, dict):
    raise TokenizerError(f"{path} is not a JSON object")
  return value
