"""Weights from a model hub: `hf:owner/name[@revision][:file.gguf]` through huggingface_hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from pasta_jax.model.errors import WeightsError, one_line

# What a folder of weights needs, and nothing else: a repository may hold the same weights in other formats.
PATTERNS = (
  "config.json",
  "generation_config.json",
  "*.safetensors",
  "model.safetensors.index.json",
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "chat_template.json",
)
_SPEC = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:]+))?(:(?P<file>.+\.gguf))?")


@dataclass(frozen=True)
class HubSpec:
  """A repository, a revision of it (None: the newest), and a GGUF file in it (None: its safetensors)."""

  repo: str
  revision: str | None = None
  file: str | None = None


def parse_hub(text: str) -> HubSpec:
  """`"hf:owner/name@main:model-Q4_K_M.gguf"` in parts; WeightsError where it is not of that form."""
  match = _SPEC.fullmatch(text)
  if not match:
    raise WeightsError(f"{text!r} is not hf:owner/name, hf:owner/name@revision or hf:owner/name:file.gguf")
  return HubSpec(match["repo"], match["revision"], match["file"])


def download(spec: HubSpec) -> Path:
  """Fetches what is not in the hub's cache yet.

  Returns:
    The GGUF file, or the folder with config.json, safetensors and tokenizer files.

  Raises:
    WeightsError: huggingface_hub is not installed, no such repository, revision or file, no access, no
      connection.
  """
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError:
    raise WeightsError("hf: needs the huggingface_hub package: pip install huggingface_hub") from None
  name = f"hf:{spec.repo}" + (f"@{spec.revision}" if spec.revision else "")
  try:
    if spec.file:
      return Path(huggingface_hub.hf_hub_download(spec.repo, spec.file, revision=spec.revision))
    folder = Path(
      huggingface_hub.snapshot_download(spec.repo, revision=spec.revision, allow_patterns=list(PATTERNS))
    )
  except errors.GatedRepoError:
    raise WeightsError(
      f"{name}: access is gated; accept the terms on its page and log in with `hf auth login`"
    ) from None
  except errors.RevisionNotFoundError:
    raise WeightsError(f"{name}: no such revision; name a branch, tag or commit of the repository") from None
  except errors.RepositoryNotFoundError:
    raise WeightsError(
      f"{name}: no such repository, or a private one; check the name, or log in with `hf auth login`"
    ) from None
  except errors.LocalEntryNotFoundError as e:
    raise WeightsError(
      f"{name}: not in the cache, and the hub does not give it: {_cause(e)}; try again"
    ) from None
  except errors.EntryNotFoundError:
    raise WeightsError(f"{name}: has no file {spec.file!r}; see its list of files") from None
  except Exception as e:  # the HTTP library's own errors differ between versions of huggingface_hub
    raise WeightsError(f"{name}: the download failed: {type(e).__name__}: {_cause(e)}; try again") from None
  if not any(folder.glob("*.safetensors")):
    raise WeightsError(f"{name}: has no .safetensors files; for a GGUF file write {name}:FILE.gguf")
  return folder


def _cause(error: BaseException) -> str:
  return one_line(error.__cause__ or error, 160)
