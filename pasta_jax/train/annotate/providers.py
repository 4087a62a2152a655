"""What chat endpoints want and say: OpenAI's protocol, which most servers speak, and Gemini's own."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pasta_jax.train.annotate.annotator import Usage

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


class MalformedReply(ValueError):
  """A reply that is not what the protocol says."""


class NoChoices(MalformedReply):
  """A well-formed reply without an answer in it."""


@dataclasses.dataclass(frozen=True)
class Reply:
  """What came back.

  Attributes:
    text: of the answer; may be empty.
    finish: "stop", "length" (its token limit) or "filter" (the endpoint's content filter).
    usage: what it took; no tokens where the endpoint does not say.
  """

  text: str
  finish: str
  usage: Usage


class Provider(Protocol):
  """A protocol: how to ask, and how to read what comes back."""

  @property
  def base_url(self) -> str:
    """Where the provider itself is."""

  def url(self, base_url: str, model: str) -> str: ...

  def headers(self, key: str | None) -> dict[str, str]: ...

  def body(
    self, model: str, messages: Sequence[Message], max_tokens: int, temperature: float
  ) -> dict[str, Any]: ...

  def reply(self, payload: Any) -> Reply:
    """Raises MalformedReply."""

  def usage(self, payload: Any) -> Usage:
    """What a whole reply took, also one that is malformed or has no answer."""


@dataclasses.dataclass(frozen=True)
class OpenAI:
  """`POST BASE/chat/completions`: OpenAI, Gemini's compatible route, vLLM, llama.cpp, Ollama and others."""

  base_url: str = "https://api.openai.com/v1"

  def url(self, base_url: str, model: str) -> str:
    return base_url.rstrip("/") + "/chat/completions"

  def headers(self, key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}

  def body(
    self, model: str, messages: Sequence[Message], max_tokens: int, temperature: float
  ) -> dict[str, Any]:
    return {
      "model": model,
      "messages": [dict(m) for m in messages],
      "max_tokens": max_tokens,
      "temperature": temperature,
    }

  def reply(self, payload: Any) -> Reply:
    choices = _get(payload, "choices", list)
    if not choices:
      raise NoChoices("the reply has no choices")
    message = _get(choices[0], "message", dict)
    content = message.get("content")
    if content is None:
      content = ""
    if not isinstance(content, str):
      raise MalformedReply('"content" is not a string')
    finish = choices[0].get("finish_reason")
    finish = {"length": "length", "content_filter": "filter"}.get(finish, "stop")
    if message.get("refusal"):
      finish = "filter"
    return Reply(content, finish, self.usage(payload))

  def usage(self, payload: Any) -> Usage:
    usage = _object(_object(payload).get("usage"))
    return Usage(1, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))


@dataclasses.dataclass(frozen=True)
class Gemini:
  """`POST BASE/models/MODEL:generateContent`; the key goes in a header, never in the address."""

  base_url: str = "https://generativelanguage.googleapis.com/v1beta"

  def url(self, base_url: str, model: str) -> str:
    return f"{base_url.rstrip('/')}/models/{model.removeprefix('models/')}:generateContent"

  def headers(self, key: str | None) -> dict[str, str]:
    return {"x-goog-api-key": key} if key else {}

  def body(
    self, model: str, messages: Sequence[Message], max_tokens: int, temperature: float
  ) -> dict[str, Any]:
    roles = {"user": "user", "assistant": "model"}
    body: dict[str, Any] = {
      "contents": [
        {"role": roles[m["role"]], "parts": [{"text": m["content"]}]}
        for m in messages
        if m["role"] != "system"
      ],
      "generationConfig": {"maxOutputTokens": max_tokens, "temperature": temperature},
    }
    system = [{"text": m["content"]} for m in messages if m["role"] == "system"]
    if system:
      body["systemInstruction"] = {"parts": system}
    return body

  def reply(self, payload: Any) -> Reply:
    if not isinstance(payload, dict):
      raise MalformedReply("the reply is not a JSON object")
    usage = self.usage(payload)
    feedback = payload.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
      return Reply("", "filter", usage)
    candidates = payload.get("candidates") or []
    if not isinstance(candidates, list):
      raise MalformedReply('"candidates" is not a list')
    if not candidates:
      raise NoChoices("the reply has no candidates")
    candidate = candidates[0]
    if not isinstance(candidate, dict):
      raise MalformedReply("a candidate is not an object")
    reason = candidate.get("finishReason")
    finish = {"MAX_TOKENS": "length", "STOP": "stop", None: "stop"}.get(reason, "filter")
    content = candidate.get("content")
    parts = content.get("parts", []) if isinstance(content, dict) else []
    if not isinstance(parts, list) or not all(isinstance(p, dict) for p in parts):
      raise MalformedReply('"parts" is not a list of objects')
    text = "".join(str(p.get("text", "")) for p in parts if not p.get("thought"))
    return Reply(text, finish, usage)

  def usage(self, payload: Any) -> Usage:
    usage = _object(_object(payload).get("usageMetadata"))
    # Gemini counts its thoughts apart and bills them as output.
    produced = _count(usage, "candidatesTokenCount") + _count(usage, "thoughtsTokenCount")
    return Usage(1, _count(usage, "promptTokenCount"), produced)


PROVIDERS: dict[str, Provider] = {"openai": OpenAI(), "gemini": Gemini()}


def _get(value: Any, name: str, kind: type) -> Any:
  if not isinstance(value, dict) or not isinstance(value.get(name), kind):
    raise MalformedReply(f'the reply has no "{name}"')
  return value[name]


def _object(value: Any) -> dict[str, Any]:
  return value if isinstance(value, dict) else {}


def _count(usage: Mapping[str, Any], name: str) -> int:
  value = usage.get(name)
  return value if isinstance(value, int) and value >= 0 else 0


def error_message(body: bytes) -> tuple[str, str]:
  """What an error's body says, in words, and its code or type; in all the shapes that servers use."""
  text = body[:2000].decode("utf-8", errors="replace")
  try:
    error = json.loads(body)
    error = error[0] if isinstance(error, list) and error else error
    error = error.get("error", error.get("detail", error.get("message", error)))
  except (ValueError, AttributeError):
    return text, ""
  if not isinstance(error, dict):
    return str(error), ""
  code = " ".join(str(error.get(k)) for k in ("code", "type", "status") if error.get(k))
  return str(error.get("message", error)), f"{code} {error.get('details', '')}".strip()
