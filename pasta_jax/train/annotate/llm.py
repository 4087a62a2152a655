"""Annotation by a language model: ask for the marks, fit them onto the answer, ask again where that fails."""

import dataclasses
from collections.abc import Sequence

from pasta_jax.train.annotate.annotator import Annotation, Rejection, Usage, charge, charged
from pasta_jax.train.annotate.chat import ChatClient, RequestRefused
from pasta_jax.train.annotate.fit import fit
from pasta_jax.train.annotate.lengths import estimated_tokens
from pasta_jax.train.annotate.prompt import again, conversation
from pasta_jax.train.annotate.providers import Message, Reply

# What a second question may mend.
_MENDABLE = ("empty_reply", "broken_marks", "text_changed")
# How much more a reply may take that ended at a limit of ours: models that reason count their thoughts in it.
WIDER = 4


@dataclasses.dataclass(frozen=True)
class LlmAnnotator:
  """Annotates through a chat endpoint.

  Attributes:
    client: entered.
    asks: questions for one answer; from the second on, the model is told what was wrong.
    max_reply_tokens: of one reply; 0 takes twice the answer's estimate and 512 more, then `WIDER` times as
      much for a reply that this cut off.
  """

  client: ChatClient
  asks: int = 2
  max_reply_tokens: int = 0

  @property
  def name(self) -> str:
    return f"llm:{self.client.options.model}"

  async def annotate(self, prompt: str, answer: str) -> Annotation | Rejection:
    messages = conversation(prompt, answer)
    limits = self._limits(messages, answer)
    usage = Usage()
    for left in reversed(range(self.asks)):
      try:
        reply = await self._ask(messages, limits)
      except RequestRefused as e:
        return Rejection("bad_request", str(e), usage + charged(e))
      except BaseException as e:
        charge(e, usage)
        raise
      usage += reply.usage
      result = judge(reply, answer)
      if isinstance(result, Annotation) or result.reason not in _MENDABLE or not left:
        return dataclasses.replace(result, usage=usage)
      messages = again(messages, reply.text, result.detail)
    raise AssertionError("asks >= 1")

  def _limits(self, messages: Sequence[Message], answer: str) -> list[int]:
    """Of one reply, and of the next where that ended at it; just one where it is the user's."""
    limit = self.max_reply_tokens or 2 * estimated_tokens(answer) + 512
    sent = self.client.body(messages, limit) != self.client.body(messages, WIDER * limit)
    return [limit, WIDER * limit] if sent and not self.max_reply_tokens else [limit]

  async def _ask(self, messages: Sequence[Message], limits: list[int]) -> Reply:
    """The reply under the first limit, or the next one; a limit that was too small is taken off the list."""
    reply = await self.client.ask(messages, limits[0])
    if reply.finish != "length" or len(limits) == 1:
      return reply
    del limits[0]
    self.client.retries["cut_off"] += 1
    try:
      longer = await self.client.ask(messages, limits[0])
    except RequestRefused as e:  # more than the model can produce
      return dataclasses.replace(reply, usage=reply.usage + charged(e))
    except BaseException as e:
      charge(e, reply.usage)
      raise
    return dataclasses.replace(longer, usage=reply.usage + longer.usage)


def judge(reply: Reply, answer: str) -> Annotation | Rejection:
  """What a reply is worth."""
  if reply.finish == "filter":
    return Rejection("refused", "the endpoint's content filter stopped the reply")
  if reply.finish == "length":
    return Rejection("cut_off", f"the reply ended at its token limit, after {len(reply.text)} characters")
  return fit(reply.text, answer)
