"""Documents in token form: the ids of each thread, as the decoder produces and training consumes them."""

import dataclasses
from collections.abc import Callable, Sequence

from pasta_jax.lang.document import Chunk, Document, Sync, Text
from pasta_jax.lang.grammar import Kind, Phase, allowed_unbounded
from pasta_jax.lang.marks import ControlIds


@dataclasses.dataclass(frozen=True)
class Threads:
  """A document's ids.

  Attributes:
    main: of the main thread: text, `<promise>` topic `<len:n>`, `<sync/>`; without the id that ends it.
    chunks: body ids of each chunk, without `<async>` and `</async>`.
  """

  main: tuple[int, ...]
  chunks: tuple[tuple[int, ...], ...] = ()


def encode_document(
  document: Document,
  encode: Callable[[str], Sequence[int]],
  controls: ControlIds,
  recompute_lengths: bool = True,
) -> Threads:
  """Tokenises each text, topic and body by itself.

  Args:
    encode: from text to ids; must never yield a control id.
    recompute_lengths: promise what the body takes with this tokenizer; else what the document says.
  """
  main: list[int] = []
  chunks = []
  for part in document.parts:
    if isinstance(part, Text):
      main += encode(part.text)
    elif isinstance(part, Sync):
      main.append(controls.sync)
    else:
      body = tuple(encode(part.body))
      promised = len(body) if recompute_lengths else part.tokens
      main += [controls.promise, *encode(part.topic), controls.length_id(promised)]
      chunks.append(body)
  return Threads(tuple(main), tuple(chunks))


def decode_threads(
  threads: Threads, decode: Callable[[Sequence[int]], str], controls: ControlIds
) -> Document:
  """The document that a thread's ids say; each text, topic and body is decoded by itself.

  Raises:
    ValueError: the ids are no document, see `problems`.
  """
  if found := problems(threads, controls):
    raise ValueError(found[0])
  parts: list[Text | Chunk | Sync] = []
  text: list[int] = []
  topic: list[int] | None = None
  bodies = iter(threads.chunks)

  def end_text() -> None:
    if text:
      parts.append(Text(decode(text)))
      text.clear()

  for token in threads.main:
    if token == controls.promise:
      end_text()
      topic = []
    elif token == controls.sync:
      end_text()
      parts.append(Sync())
    elif topic is not None and token in controls.lens:
      words = " ".join(decode(topic).split())
      parts.append(Chunk(words, controls.length(token), decode(next(bodies))))
      topic = None
    else:
      (text if topic is None else topic).append(token)
  end_text()
  return Document.of(parts)


def problems(threads: Threads, controls: ControlIds) -> list[str]:
  """Where the ids break the token grammar, in order; empty for a document."""
  found = []
  marks = _kinds_of_marks(controls)
  opened = joined = 0
  phase, begun = Phase.MAIN, False  # the promise under way has a piece
  for at, token in enumerate(threads.main):
    kind = marks.get(token, Kind.TOPIC if phase == Phase.TOPIC else Kind.TEXT)
    if not kind & allowed_unbounded(phase, opened > joined, begun):
      found.append(f"main id {at}: {_complaint(phase, kind)}")
    if phase == Phase.TOPIC:
      begun = begun or kind == Kind.TOPIC
      if kind == Kind.LEN:
        phase, opened = Phase.MAIN, opened + 1
    elif kind == Kind.PROMISE:
      phase, begun = Phase.TOPIC, False
    elif kind == Kind.SYNC:
      joined = opened
  if phase == Phase.TOPIC:
    found.append("the main thread ends inside a promise")
  if opened != len(threads.chunks):
    found.append(f"{opened} promises, but {len(threads.chunks)} chunks")
  for number, body in enumerate(threads.chunks, start=1):
    if not Kind.CLOSE & allowed_unbounded(Phase.CHUNK, begun=bool(body)):
      found.append(f"chunk {number} is empty")
    if not marks.keys().isdisjoint(body):
      found.append(f"chunk {number}: a mark inside its body")
  return found


def _kinds_of_marks(controls: ControlIds) -> dict[int, Kind]:
  kinds = dict.fromkeys(controls.lens, Kind.LEN)
  # `<async>` is fed, never drawn: no rule allows it.
  marks = {controls.promise: Kind.PROMISE, controls.close: Kind.CLOSE, controls.sync: Kind.SYNC}
  return kinds | marks | {controls.open: Kind(0)}


def _complaint(phase: Phase, kind: Kind) -> str:
  if phase == Phase.TOPIC:
    return "a promise without a topic" if kind == Kind.LEN else "a mark inside a promise"
  if kind == Kind.SYNC:
    return "a sync, but no chunk was opened since the last one"
  return "a mark that cannot stand here"
