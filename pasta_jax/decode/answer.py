"""An answer as the host sees it grow: ids per thread become text, events and a document.

The device runs ahead; the host replays what its lanes drew, by the same grammar.
"""

import dataclasses
from typing import Protocol

from pasta_jax.decode.requests import LaneEvent, Request
from pasta_jax.decode.text import Decoder, StopText
from pasta_jax.lang.marks import ControlIds


class Streams(Protocol):
  """What an answer needs of a tokenizer."""

  def stream(self) -> Decoder: ...


@dataclasses.dataclass(frozen=True)
class Draw:
  """What one lane drew in one step.

  Attributes:
    step: number of the step since the request entered, from 1; 0 is the draw after the prompt.
    width: lanes that the step ran with.
    lane, thread: where and for whom.
    token: the id; None where the lane fed `</async>` and drew nothing.
    logprob: of the id, 0.0 unless asked for.
  """

  step: int
  width: int
  lane: int
  thread: int
  token: int | None
  logprob: float


@dataclasses.dataclass
class Part:
  """A stretch of text in reading order: main text, or a chunk.

  Attributes:
    thread: 0, or the chunk's number.
    ids: of the text; of a chunk's body.
    text: what they say so far.
    done: nothing will be added.
    topic, promised: of a chunk.
  """

  thread: int
  ids: list[int] = dataclasses.field(default_factory=list)
  text: str = ""
  done: bool = False
  topic: str = ""
  promised: int = 0


class Answer:
  """Replays one request's draws.

  Attributes:
    text: the text so far in reading order, up to a stop string.
    draws: everything that was drawn, in order.
    parts: text, chunks and syncs (None) in reading order.
    main: the main thread's ids, without the one that ended it.
    end: the id that ended it, or None.
    stopped: a stop string was met.
  """

  def __init__(self, tokenizer: Streams, request: Request, controls: ControlIds | None):
    self._tokenizer, self._controls = tokenizer, controls
    self._topic: list[int] | None = None
    self._decoders: dict[int, Decoder] = {0: tokenizer.stream()}
    self._stop = StopText(request.stop)
    self._front = 0  # the part whose text is being read out ...
    self._read = 0  # ... and how much of it was
    self._chunks: dict[int, Part] = {}
    self._drawn = 0
    self.parts: list[Part | None] = [Part(0)]
    self.draws: list[Draw] = []
    self.main: list[int] = []
    self.end: int | None = None

  @property
  def text(self) -> str:
    return self._stop.text

  @property
  def stopped(self) -> bool:
    return self._stop.stopped

  @property
  def chunks(self) -> list[Part]:
    """The chunks by number."""
    return [self._chunks[n] for n in sorted(self._chunks)]

  def take(self, draw: Draw, stop_ids: frozenset[int]) -> tuple[str, list[LaneEvent]]:
    """Adds a draw; returns the text gained in reading order, and what happened on the lane."""
    self.draws.append(draw)
    self._drawn += draw.token is not None
    events = self._chunk(draw) if draw.thread else self._main(draw, stop_ids)
    return self._release(), events

  def finish(self) -> str:
    """No more will come: the text that was held back."""
    for part in self.parts:
      if part is not None and not part.done:
        self._close(part)
    return self._release() + self._stop.flush()

  def _event(self, draw: Draw, kind: str, part: Part, text: str = "") -> LaneEvent:
    return LaneEvent(
      draw.step, draw.lane, draw.thread, kind, part.topic, text, len(part.ids),
      width=draw.width, drawn=self._drawn,
    )  # fmt: skip

  def _main(self, draw: Draw, stop_ids: frozenset[int]) -> list[LaneEvent]:
    token, c = draw.token, self._controls
    assert token is not None
    last = self.parts[-1]
    assert last is not None  # main text stands between any two marks
    if self._topic is None and token in stop_ids:
      self.end = token
      return [*self._closed(draw, last), self._event(draw, "end", last)]
    self.main.append(token)
    if c is None or (token not in c.all and self._topic is None):
      return self._text(draw, last)
    if token == c.promise:
      self._topic = []
      return []
    if token == c.sync:
      events = [*self._closed(draw, last), self._event(draw, "sync", last)]
      self.parts += [None, Part(0)]
      self._decoders[0] = self._tokenizer.stream()
      return events
    assert self._topic is not None
    if token not in c.lens:
      self._topic.append(token)
      return []
    stream = self._tokenizer.stream()
    topic = "".join([stream.push(i) for i in self._topic]) + stream.flush()
    number = len(self._chunks) + 1
    chunk = Part(number, topic=" ".join(topic.split()), promised=c.length(token))
    self._topic = None
    events = self._closed(draw, last)
    self._chunks[number] = chunk
    self.parts += [chunk, Part(0)]
    self._decoders[0], self._decoders[number] = self._tokenizer.stream(), self._tokenizer.stream()
    opened = self._event(draw, "open", chunk)
    return [*events, dataclasses.replace(opened, thread=number, promised=chunk.promised)]

  def _chunk(self, draw: Draw) -> list[LaneEvent]:
    if draw.token is None:
      return []
    assert self._controls is not None
    part = self._chunks[draw.thread]
    if draw.token == self._controls.close:
      return [*self._closed(draw, part), self._event(draw, "close", part)]
    return self._text(draw, part)

  def _text(self, draw: Draw, part: Part) -> list[LaneEvent]:
    assert draw.token is not None
    part.ids.append(draw.token)
    text = self._decoders[part.thread].push(draw.token)
    part.text += text
    return [self._event(draw, "text", part, text)] if text else []

  def _closed(self, draw: Draw, part: Part) -> list[LaneEvent]:
    """Ends a part; what is left of a broken character is its last text."""
    text = self._close(part)
    return [self._event(draw, "text", part, text)] if text else []

  def _close(self, part: Part) -> str:
    text = self._decoders[part.thread].flush()
    part.text += text
    part.done = True
    return text

  def _release(self) -> str:
    """Reads out what has come of the front part, and of those after it once it is done."""
    gained = ""
    while self._front < len(self.parts):
      part = self.parts[self._front]
      if part is not None:
        gained += self._stop.push(part.text[self._read :])
        self._read = len(part.text)
        if not part.done:
          break
      self._front, self._read = self._front + 1, 0
    return gained
