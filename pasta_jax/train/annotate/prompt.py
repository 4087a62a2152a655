"""What an annotating model is told: the language, the rules, and demonstrations."""

from collections.abc import Sequence

from pasta_jax.lang.document import Document, escape
from pasta_jax.lang.parse import parse
from pasta_jax.train.annotate.providers import Message

LANGUAGE = """\
You mark the parts of an answer that can be written at the same time, in the language PASTA-LANG. Several
writers will share the work: a main writer, who reads the answer from top to bottom, and one writer for each
part that you mark. You get a user's prompt and the answer to it. You return the answer, letter by letter the
same, with marks put into it.

The marks:

<promise topic="by train" tokens="20"/><async>TEXT</async>
    TEXT becomes a chunk, written by a writer of its own. The promise tells the main writer what the chunk is
    about (topic: 1 to 3 words) and how long it is (tokens: a multiple of 10, from 10 to 320). The promise
    stands directly before <async>, with nothing between.
<sync/>
    The main writer waits here until all chunks so far are written, and has read them from here on.

Who sees what:

- The writer of a chunk sees the prompt, the text outside of chunks before its promise, and the chunks before
  the last <sync/>. It sees no other chunk of its round and nothing that comes later.
- The main writer sees a chunk only behind a <sync/> that comes after it.

Rules:

1. Change no letter, no space and no line break of the answer. Only put marks in.
2. Make a chunk of each part that can be written without knowing the parts beside it: the items of a list, the
   bodies of sections, paragraphs on different things, the sides of a comparison. At least two in a round.
3. Do not split what builds on itself: steps of which one needs the result of another, a proof, a calculation,
   a story, a poem, a program. Never cut a code block, a table or a sentence.
4. Introductions, headings, the markers of list items ("- ", "2. ") and the blank lines between the parts stay
   outside. A nested list stays inside the chunk of its item.
5. Put a <sync/> directly before the first text outside of chunks that needs to know a chunk: a conclusion, a
   comparison, a recommendation, a total. A closing wish or offer needs none.
6. Chunks do not nest. A chunk shorter than about ten words is not worth its promise.
7. Many answers have no such parts: short ones, stories, derivations. Return those without any mark.

Return the marked answer only: no greeting, no explanation, no code fence around it."""

# (prompt, document); their answers are the documents' reading texts.
DEMONSTRATIONS: tuple[tuple[str, str], ...] = (
  (
    "Should we heat our small greenhouse with electricity, gas or compost?",
    """\
Three ways are common in a small greenhouse:

- <promise topic="electricity" tokens="40"/><async>**Electricity:** A fan heater with a thermostat keeps the \
temperature exactly, needs no flue and costs little to buy. Each cold night shows on the bill.</async>
- <promise topic="gas" tokens="40"/><async>**Gas:** A small burner works without a cable and adds carbon \
dioxide, which plants like. It also adds moisture, so the vents must stay open a little.</async>
- <promise topic="compost" tokens="40"/><async>**Compost:** A heap of fresh horse manure under the bench \
warms roots for weeks and feeds the beds later. Nobody can turn it up when frost comes.</async>

<sync/>With a socket at hand, I would take electricity for the few frosty weeks and leave the compost to the \
beds.""",
  ),
  (
    "How do I work out the area of a ring with an outer radius of 5 cm and an inner radius of 3 cm?",
    """\
1. Square both radii: 5 × 5 = 25 and 3 × 3 = 9.
2. Subtract the smaller number from the larger one: 25 - 9 = 16.
3. Multiply the result by pi: 16 × 3.14 = 50.24.

The ring has an area of about 50 square centimetres.""",
  ),
  (
    "Tell me about the barn owl and the tawny owl: looks, voice and food of each.",
    """\
## Barn owl
<promise topic="barn owl" tokens="60"/><async>Its face is a white heart, and its back is the colour of sand.

- Voice: a long, hoarse screech, never a hoot.
- Food: voles above all, which it hears in the grass while it glides low over meadows.</async>

## Tawny owl
<promise topic="tawny owl" tokens="60"/><async>It is stout and brown like bark, with a round head and black \
eyes.

- Voice: the wavering hoot of films, answered by a sharp call.
- Food: mice, small birds, frogs and beetles, taken from a perch in the wood.</async>

Enjoy listening for them on your evening walks!""",
  ),
  (
    "What is the tallest mountain of Africa?",
    "Kilimanjaro in Tanzania, at 5,895 metres.",
  ),
)

# Longer prompts are cut in the middle: they help little to see what depends on what.
PROMPT_CHARS = 4000


def conversation(prompt: str, answer: str) -> list[Message]:
  """The messages that ask for the marks of an answer."""
  messages: list[Message] = [{"role": "system", "content": LANGUAGE}]
  for shown, document in DEMONSTRATIONS:
    messages += [
      {"role": "user", "content": _task(shown, parse(document).plain)},
      {"role": "assistant", "content": document},
    ]
  return [*messages, {"role": "user", "content": _task(prompt, answer)}]


def again(messages: Sequence[Message], reply: str, problem: str) -> list[Message]:
  """The conversation, with a reply that will not do and the reason."""
  ask = (
    f"That is not usable: {problem}. Return the whole answer again, letter by letter as I gave it, with"
    " correct marks and nothing else."
  )
  return [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": ask}]


def _task(prompt: str, answer: str) -> str:
  if len(prompt) > PROMPT_CHARS:
    half = PROMPT_CHARS // 2
    prompt = f"{prompt[:half]}\n[...]\n{prompt[-half:]}"
  return f"The prompt:\n{escape(prompt)}\n\nThe answer to mark:\n{escape(answer)}"


def demonstrations() -> list[tuple[str, Document]]:
  """The demonstrations as documents."""
  return [(prompt, parse(document)) for prompt, document in DEMONSTRATIONS]
