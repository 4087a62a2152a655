"""A chat endpoint over HTTP: one question, asked again with growing pauses until there is a reply.

    what happens                                   what follows
    connection refused or cut, time-out, 408, 429, asked again after base * 2^n seconds, with jitter, or what
    5xx, no JSON, no choices                       Retry-After says; `RowFailed` after the last attempt
    400, 413, 422                                  `RequestRefused`: this request will not do
    401, 402, 403, 404, other 3xx and 4xx,         `EndpointError`: no request will do
    429 for a spent quota

The key is read from the environment, sent in a header, and in no message, file or repr.
"""

import asyncio
import collections
import dataclasses
import email.utils
import json
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pasta_jax.train.annotate.annotator import Usage, charge, charged
from pasta_jax.train.annotate.lengths import estimated_tokens
from pasta_jax.train.annotate.limits import Gate, RateLimit
from pasta_jax.train.annotate.providers import (
  PROVIDERS,
  MalformedReply,
  Message,
  NoChoices,
  Reply,
  error_message,
)

# Why a row has no verdict.
FAILURES = {
  "rate_limited": "HTTP 429",
  "server_error": "HTTP 408, 409, 425 or 5xx",
  "connection": "no connection, or one that was cut",
  "timeout": "no whole reply in --timeout seconds",
  "malformed_reply": "a reply that is not JSON, or not the protocol's",
  "no_choices": "a reply without an answer in it",
}
_AGAIN = (408, 409, 425, 429)
_REFUSED = (400, 413, 422)
_SURROGATE = re.compile("[\ud800-\udfff]")


class EndpointError(ValueError):
  """No row will succeed with these settings; one line says why."""


class RequestRefused(ValueError):
  """The endpoint refuses this one request."""


class RowFailed(Exception):
  """No reply in all attempts.

  Attributes:
    kind: one of `FAILURES`.
  """

  def __init__(self, kind: str, detail: str):
    super().__init__(detail)
    self.kind = kind


@dataclasses.dataclass(frozen=True)
class ChatOptions:
  """Where and how to ask.

  Attributes:
    model: the endpoint's name for it.
    provider: a key of `PROVIDERS`.
    base_url: "" for the provider's own.
    key_env: the environment variable that holds the key; "" sends none.
    temperature: of sampling.
    timeout: seconds for a whole reply.
    attempts: for one question.
    backoff: seconds before the second attempt; doubles each time.
    max_wait: seconds between two attempts at most; an endpoint that asks for more fails the row.
    requests_per_minute, tokens_per_minute: 0 for no limit.
    extra: merged into each request's body, see `merged`.
  """

  model: str
  provider: str = "openai"
  base_url: str = ""
  key_env: str = ""
  temperature: float = 0.0
  timeout: float = 120.0
  attempts: int = 6
  backoff: float = 1.0
  max_wait: float = 60.0
  requests_per_minute: int = 0
  tokens_per_minute: int = 0
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.provider not in PROVIDERS:
      raise ValueError(f"--provider must be one of {', '.join(PROVIDERS)}, got {self.provider!r}")
    if not self.model:
      raise ValueError("--annotator=llm needs --model, the endpoint's name for it")
    if self.base_url and not re.match(r"https?://[^/\s@]+", self.base_url):
      raise ValueError("--base_url must begin with http:// or https:// and hold no user or password")
    try:
      json.dumps([self.model, dict(self.extra)], ensure_ascii=False, allow_nan=False).encode()
    except ValueError as e:
      raise ValueError(
        f"--model and --extra must be what a request in JSON and UTF-8 can hold: {e}"
      ) from None


def merged(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
  """A request's body with `extra` over it, as RFC 7396 says: also within objects; a null removes a key."""
  out = dict(body)
  for name, value in extra.items():
    if isinstance(value, Mapping):
      inner = out.get(name)
      value = merged(inner if isinstance(inner, Mapping) else {}, value)
    out[name] = value
  return {k: v for k, v in out.items() if v is not None}


def read_key(key_env: str) -> str | None:
  """The key in an environment variable; None if none is named.

  Raises:
    EndpointError: there is none, or it cannot be one. No message holds what may be a key.
  """
  if not key_env:
    return None
  if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", key_env):
    raise EndpointError(
      "--key_env takes the name of an environment variable, in capitals; the key itself never goes on the"
      " command line"
    )
  key = os.environ.get(key_env, "").strip()
  if not key:
    raise EndpointError(f"--key_env: the environment variable {key_env} is not set; export it with the key")
  if not key.isascii() or not key.isprintable() or " " in key:
    raise EndpointError(f"--key_env: {key_env} holds characters that no key has; export it again")
  return key


class _Again(Exception):
  def __init__(self, kind: str, detail: str, wait: float = 0.0):
    super().__init__(detail)
    self.kind, self.wait = kind, wait


class ChatClient:
  """Asks one endpoint; use as an async context manager."""

  def __init__(self, options: ChatOptions):
    try:
      import httpx2 as http
    except ImportError:
      raise ImportError("--annotator=llm needs httpx2: pip install 'pasta_jax[annotate]'") from None
    self.options = options
    self.retries: collections.Counter[str] = collections.Counter()
    self._http = http
    self._provider = PROVIDERS[options.provider]
    self._url = self._provider.url(options.base_url or self._provider.base_url, options.model)
    self._key = read_key(options.key_env)
    self._gate = Gate(RateLimit(options.requests_per_minute), RateLimit(options.tokens_per_minute))

  def __repr__(self) -> str:
    return f"ChatClient({self.options!r})"

  async def __aenter__(self) -> "ChatClient":
    # Connections are bounded by the number of rows under way; each reply is timed as a whole.
    self._client = self._http.AsyncClient(
      headers=self._provider.headers(self._key),
      timeout=None,
      limits=self._http.Limits(max_connections=None, max_keepalive_connections=64),
    )
    return self

  async def __aexit__(self, *_: Any) -> None:
    await self._client.aclose()

  def body(self, messages: Sequence[Message], max_tokens: int) -> dict[str, Any]:
    """What a request sends; `ChatOptions.extra` may set another limit than `max_tokens`, or none."""
    o = self.options
    return merged(self._provider.body(o.model, messages, max_tokens, o.temperature), o.extra)

  async def ask(self, messages: Sequence[Message], max_tokens: int) -> Reply:
    """The reply to a conversation, without the key; its usage is that of all attempts.

    Raises:
      RequestRefused, EndpointError, RowFailed: see the top of the module; `annotator.charged` tells what the
        attempts took.
    """
    body = self.body(messages, max_tokens)
    size = max_tokens + sum(estimated_tokens(m["content"]) for m in messages)
    spent = Usage()
    try:
      for attempt in range(1, self.options.attempts + 1):
        try:
          reply = await self._attempt(body, size)
        except _Again as e:
          spent += charged(e)
          await self._before_another(attempt, e)
        else:
          # A key that the messages hold is a word of the row's, such as the "none" that local servers take.
          known = any(self._key in m["content"] for m in messages) if self._key else True
          text = reply.text if known else self._hide(reply.text)
          return dataclasses.replace(reply, text=text, usage=spent + reply.usage)
    except BaseException as e:
      charge(e, spent)
      raise
    raise AssertionError("attempts >= 1")

  async def _attempt(self, body: Mapping[str, Any], size: int) -> Reply:
    """One request, when the gate lets it pass; `size` is an estimate of its tokens."""
    entry = await self._gate.wait(size)
    usage = Usage()
    try:
      reply = await self._once(body)
      usage = reply.usage
      return reply
    except _Again as e:
      usage = charged(e)
      raise
    finally:
      self._gate.tokens.settle(entry, usage.input_tokens + usage.output_tokens or size)

  async def _before_another(self, attempt: int, e: _Again) -> None:
    """Waits after an attempt that failed; raises `RowFailed` where no other follows."""
    o = self.options
    self.retries[e.kind] += 1
    wait = max(e.wait, o.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    if 0 < e.wait <= o.max_wait:  # the endpoint's word goes for every row
      self._gate.pause(e.wait)
    if attempt == o.attempts or e.wait > o.max_wait:
      more = f"; it asks to wait {e.wait:.0f} s" if e.wait > o.max_wait else ""
      raise RowFailed(e.kind, f"{e} (attempt {attempt}){more}")
    await asyncio.sleep(min(wait, o.max_wait))

  async def _once(self, body: Mapping[str, Any]) -> Reply:
    try:
      async with asyncio.timeout(self.options.timeout):
        response = await self._client.post(self._url, json=body)
    except (TimeoutError, self._http.TimeoutException):
      raise _Again("timeout", f"no reply in {self.options.timeout:g} s") from None
    except (self._http.UnsupportedProtocol, self._http.InvalidURL) as e:
      raise EndpointError(f"--base_url: {self._clean(str(e))}") from None
    except self._http.RequestError as e:
      raise _Again("connection", self._clean(f"{type(e).__name__}: {e}")) from None
    if response.status_code != 200:
      raise self._error(response)
    try:
      payload = response.json()
    except (ValueError, RecursionError):
      raise _Again("malformed_reply", "the reply is not JSON") from None
    try:
      reply = self._provider.reply(payload)
    except MalformedReply as e:
      kind = "no_choices" if isinstance(e, NoChoices) else "malformed_reply"
      failure = _Again(kind, str(e))
      charge(failure, self._provider.usage(payload))
      raise failure from None
    # JSON can name half of a surrogate pair; a second question, which repeats the reply, cannot send it.
    return dataclasses.replace(reply, text=_SURROGATE.sub("\ufffd", reply.text))

  def _error(self, response: Any) -> Exception:
    status = response.status_code
    message, code = error_message(response.content)
    said = self._clean(f"HTTP {status}: {message}")
    quota = "insufficient_quota" in code
    if (status in _AGAIN and not quota) or status >= 500:
      kind = "rate_limited" if status == 429 else "server_error"
      return _Again(kind, said, retry_after(response.headers))
    if status in _REFUSED and "API_KEY_INVALID" not in code:
      return RequestRefused(said)
    if status in (401, 403) or "API_KEY_INVALID" in code:
      where = self.options.key_env or "no key was sent; name its environment variable with --key_env"
      return EndpointError(f"the endpoint refuses the key ({where}): {said}")
    if quota or status == 402:
      return EndpointError(f"the endpoint's quota is spent: {said}")
    return EndpointError(f"check --base_url, --provider and --model: {said}")

  def _hide(self, text: str) -> str:
    return text.replace(self._key, "[key]") if self._key else text

  def _clean(self, text: str) -> str:
    """One line for people, without the key: some endpoints repeat it."""
    line = " ".join(self._hide(text).split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= 200 else line[:197] + "..."


def retry_after(headers: Mapping[str, str]) -> float:
  """Seconds that a response asks to wait: `retry-after-ms`, or `retry-after` as seconds or a date; else 0."""
  try:
    if "retry-after-ms" in headers:
      return max(float(headers["retry-after-ms"]) / 1e3, 0.0)
    return max(float(headers.get("retry-after", "0")), 0.0)
  except ValueError:
    pass
  try:
    return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
  except (ValueError, KeyError, TypeError):
    return 0.0
