"""Annotation by rules: what becomes a chunk, what stays, where syncs go; the text stays the answer."""

import asyncio
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("markdown_it")

from pasta_jax.lang.document import Chunk, Document, Sync, Text, escape, problems, topic_problem
from pasta_jax.lang.grammar import Limits
from pasta_jax.lang.parse import parse
from pasta_jax.train.annotate.agreement import agreement, compare
from pasta_jax.train.annotate.cuts import estimated_steps
from pasta_jax.train.annotate.lengths import estimated_tokens, promised_tokens
from pasta_jax.train.annotate.normal import normalise
from pasta_jax.train.annotate.rules import RuleOptions, RulesAnnotator, style
from pasta_jax.train.annotate.structure import BOLD, Kind, blocks_of
from pasta_jax.train.annotate.topics import topic_of

PROMPT = "Tell me about it."


def annotate(answer, prompt=PROMPT, options=None):
  """The document of an answer, checked to be one of that answer."""
  result = asyncio.run(RulesAnnotator(options or RuleOptions()).annotate(prompt, answer))
  document = result.document
  assert document.plain == answer
  assert problems(document) == []
  assert parse(document.annotated) == document
  return document


def bodies(document):
  return [c.body for c in document.chunks]


def sync_before(document):
  """The text that follows each sync."""
  parts = document.parts
  return [
    getattr(parts[n + 1], "text", None)
    for n, p in enumerate(parts)
    if isinstance(p, Sync) and n + 1 < len(parts)
  ]


TRAIN = "**Train.** Slower than the plane on most routes, but you can read, work and walk about on the way."
PLANE = "**Plane.** Faster over long distances, if you forget the hours that go by at the two airports."
COACH = "**Coach.** The cheapest of all on nearly every route, with little room for legs and long nights."


# -- lists


def test_items_of_a_bulleted_list_become_chunks_and_their_markers_stay():
  answer = f"Three ways to travel:\n\n- {TRAIN}\n- {PLANE}\n- {COACH}"
  document = annotate(answer)
  assert bodies(document) == [TRAIN, PLANE, COACH]
  assert [c.topic for c in document.chunks] == ["Train", "plane", "Coach"]
  assert document.annotated.startswith(
    'Three ways to travel:\n\n- <promise topic="Train" tokens="30"/><async>**'
  )
  assert document.annotated.count("\n- <promise") == 3


@pytest.mark.parametrize(
  "markers", ["1. 2. 3.", "1) 2) 3)", "* * *", "+ + +", "• • •", "(1) (2) (3)", "a) b) c)"]
)
def test_every_usual_marker_makes_a_list(markers):
  items = [f"{m} {text}" for m, text in zip(markers.split(), (TRAIN, PLANE, COACH))]
  assert bodies(annotate("\n".join(items))) == [TRAIN, PLANE, COACH]


def test_nested_items_stay_inside_their_item():
  first = (
    "Cities in the north:\n   - Oslo, with its harbour and its museums\n   - Bergen, between seven hills"
  )
  second = (
    "Cities to see in the south:\n   - Rome, with its ruins and its cats\n   - Naples, under its volcano"
  )
  document = annotate(f"1. {first}\n2. {second}")
  assert bodies(document) == [first, second]


def test_an_item_with_several_paragraphs_is_one_chunk():
  first = TRAIN + "\n\n  It also leaves from the middle of the town, which saves a ride."
  assert bodies(annotate(f"- {first}\n\n- {PLANE}")) == [first, PLANE]


def test_numbered_titles_with_texts_at_the_margin_are_a_list():
  answer = f"1. Trains\n\n{TRAIN}\n\n2. Planes\n\n{PLANE}\n\nHave a good trip!"
  document = annotate(answer)
  assert bodies(document) == [f"Trains\n\n{TRAIN}", f"Planes\n\n{PLANE}"]
  assert sync_before(document) == []


def test_short_items_stay_text():
  assert not annotate("You need:\n\n- eggs\n- flour\n- milk\n- a little salt").splits


def test_one_chunk_alone_is_not_worth_a_round():
  assert not annotate(f"There is one way:\n\n- {TRAIN}").splits


# -- sections and labels


def test_bodies_of_headed_sections_become_chunks_and_headings_stay():
  document = annotate(f"Two ways.\n\n### 1. **Trains**\n{TRAIN}\n\n### 2. **Planes**\n{PLANE}")
  assert bodies(document) == [TRAIN, PLANE]
  assert "### 1. **Trains**\n<promise" in document.annotated
  assert [c.topic for c in document.chunks] == ["Trains", "Planes"]


def test_bold_lines_are_headings():
  document = annotate(f"**Going by train**\n\n{TRAIN}\n\n**Going by plane**\n{PLANE}")
  assert bodies(document) == [TRAIN, PLANE]
  assert [c.topic for c in document.chunks] == ["Going train", "Going plane"]


def test_a_section_with_inner_lists_is_one_chunk():
  list_ = f"- {TRAIN}\n- {PLANE}"
  document = annotate(f"## Far\n{list_}\n\n## Near\n{COACH}", options=RuleOptions(sections="whole"))
  assert bodies(document) == [list_, COACH]


def test_a_section_too_long_to_promise_is_split_within():
  long = "\n".join(
    f"- **Way {n}.** " + "It is one of many ways to get there in the end. " * 5 for n in range(8)
  )
  document = annotate(normalise(f"## Many\n{long}\n\n## One\n{COACH}"))
  assert len(document.chunks) == 9
  assert all(estimated_tokens(c.body) <= 320 for c in document.chunks)


def test_short_sections_of_long_items_are_cut_at_their_items_if_that_is_faster():
  items = [text + " " + text.split(".** ")[1] for text in (TRAIN, PLANE, COACH)]
  list_ = "\n".join(f"- {i}" for i in items)
  answer = f"### Pros\n{list_}\n\n### Cons\n{list_}"
  assert bodies(annotate(answer)) == items * 2
  assert bodies(annotate(answer, options=RuleOptions(sections="whole"))) == [list_, list_]
  many = "\n\n".join(f"### Way {n}\n- {TRAIN}\n- {PLANE}" for n in range(9))
  assert len(annotate(many).chunks) == 9
  assert len(annotate(many, options=RuleOptions(sections="within")).chunks) == 18


def test_estimated_steps_follow_the_critical_path():
  plain = Document.of([Text("one two three")])
  assert estimated_steps(plain) == 3
  two = [Chunk("a", 10, "x " * 50), Chunk("b", 10, "x " * 20)]
  assert estimated_steps(Document.of(two)) == 3 + 2 + 50
  assert estimated_steps(Document.of([*two, Text("x " * 100)])) == 6 + 100
  assert estimated_steps(Document.of([*two, Sync(), Text("x " * 100)])) == 55 + 1 + 100


def test_agreement_counts_what_two_documents_share():
  reference = annotate(f"- {TRAIN}\n- {PLANE}\n- {COACH}\n\nSo take the train.")
  same = agreement(reference, reference)
  assert dataclasses.astuple(same) == (1, 1, 1, 1, 3, 3, 3, 1, 1, 1)
  apar = RulesAnnotator(style("apar")).document(PROMPT, reference.plain)
  assert dataclasses.astuple(agreement(reference, apar)) == (1, 1, 1, 1, 3, 3, 0, 1, 0, 0)
  plain = Document.of([Text(reference.plain)])
  assert dataclasses.astuple(agreement(reference, plain)) == (1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
  total = compare([(PROMPT, reference), (PROMPT, plain)], RulesAnnotator())
  assert (total.rows, total.reference, total.annotated, total.both, total.same_chunks) == (2, 1, 2, 1, 3)
  assert "of those that the rules split, the reference splits 50.0 %" in total.lines()


def test_labelled_paragraphs_become_chunks():
  assert bodies(annotate(f"{TRAIN}\n\n{PLANE}")) == [TRAIN, PLANE]
  plain = [t.replace("*", "").replace(".", ":", 1) for t in (TRAIN, PLANE)]
  assert bodies(annotate("\n\n".join(plain))) == plain


def test_labels_that_repeat_are_a_dialogue_and_stay():
  answer = "\n\n".join(f"**{who}:** {TRAIN}" for who in ("Ann", "Bob", "Ann", "Bob"))
  assert not annotate(answer).splits


def test_plain_paragraphs_stay_unless_asked_for():
  first = "The country has many old towns, and most of them can be reached by train or by coach."
  second = "Coffee is served everywhere in small cups, and nobody hurries with the drinking of it."
  third = "Winters are mild at the coast, while the mountains get snow from November until April."
  answer = "\n\n".join((first, second, third))
  assert not annotate(answer).splits
  assert bodies(annotate(answer, options=RuleOptions(paragraphs="all"))) == [second, third]
  going_on = answer.replace("Winters", "However, winters")
  assert not annotate(going_on, options=RuleOptions(paragraphs="all")).splits


# -- what is never cut


def test_code_and_tables_are_never_cut():
  code = (
    "```\n- one item of a list that is in the code and is long enough for a chunk\n\n# not a heading\n```"
  )
  table = "| a | b |\n|---|---|\n| **one** | two |"
  answer = f"Some code:\n\n{code}\n\nA table:\n\n{table}\n\n- {TRAIN}\n- {PLANE}"
  document = annotate(answer)
  assert bodies(document) == [TRAIN, PLANE]
  inside = f"- {TRAIN}\n\n  ```\n  a = 1\n\n  - b\n  ```\n- {PLANE}"
  assert bodies(annotate(inside)) == [inside[2 : inside.index("\n- **Plane")], PLANE]


def test_parts_that_use_names_or_results_of_earlier_ones_stay():
  answer = (
    "### Read\nOpen the file and split it into lines:\n\n```python\nrows = open('a.csv').readlines()\n```\n\n"
    "### Count\nThe number of all its lines is then:\n\n```python\nprint(len(rows))\n```"
  )
  assert not annotate(answer).splits
  assert annotate(answer, prompt="I have the list rows.").splits
  sums = (
    "- **Apples:** four boxes at 12 euros each are 4 * 12 = 48 euros\n- **Pears:** {} euros for the pears"
  )
  assert not annotate(sums.format("48 + 10 = 58")).splits
  assert annotate(sums.format("three boxes at 10 euros each are 3 * 10 = 30")).splits


# -- steps

STEPS = (
  "1. Whisk the eggs with the milk, the sugar and the salt until they foam and get lighter.\n"
  "2. Then stir in the flour little by little with a wooden spoon until no lumps are left.\n"
  "3. Fry thin pancakes in hot butter from both sides until their edges are crisp and brown."
)


def test_steps_that_refer_to_each_other_stay_unless_asked_for():
  assert not annotate(STEPS).splits
  assert annotate(STEPS, options=RuleOptions(steps="split")).splits


@pytest.mark.parametrize(
  ("prompt", "intro"),
  [
    ("Give me a recipe for pancakes.", ""),
    ("Pancakes?", "Instructions:\n\n"),
    ("How do I make pancakes?", ""),
  ],
)
def test_steps_are_known_by_what_asks_for_them(prompt, intro):
  answer = intro + STEPS.replace("Then stir", "Stir")
  assert annotate(STEPS.replace("Then stir", "Stir"), prompt="Pancakes?").splits
  assert not annotate(answer, prompt=prompt).splits


def test_sections_called_steps_or_chapters_stay():
  for word in ("Step", "Chapter", "Part", "Act"):
    assert not annotate(f"### {word} 1: Go\n{TRAIN}\n\n### {word} 2: Fly\n{PLANE}").splits


def test_an_item_that_names_another_waits_for_it():
  ferry = "**Night ferry.** It leaves late and saves the price of a bed, and breakfast is served on board."
  tram = "**Tram.** Cheaper, and it leaves when the night ferry arrives, from the other side of the square."
  document = annotate(f"- {ferry}\n- {PLANE}\n- {tram}\n- {TRAIN}\n- {COACH}")
  assert bodies(document) == [ferry, PLANE, TRAIN, COACH]
  assert sync_before(document) == [f"- {tram}\n- "]


# -- syncs


LIST = f"Three ways:\n\n- {TRAIN}\n- {PLANE}\n- {COACH}\n\n"


@pytest.mark.parametrize(
  "conclusion",
  [
    "So take the train for anything under four hours.",
    "In summary, there are many ways.",
    "These three suit most people.",
    "Legs and airports matter more than hours to most of us.",
    "With a big family I would go for the cheapest.",
  ],
)
def test_a_conclusion_that_looks_back_follows_a_sync(conclusion):
  document = annotate(LIST + conclusion)
  assert len(document.chunks) == 3
  assert sync_before(document) == [conclusion]


@pytest.mark.parametrize(
  "farewell", ["Have a good trip!", "Let me know if you need more.", "Would you like a map?"]
)
def test_a_farewell_needs_no_sync(farewell):
  document = annotate(LIST + farewell)
  assert len(document.chunks) == 3
  assert sync_before(document) == []


def test_a_concluding_section_follows_a_sync():
  answer = (
    f"### Trains\n{TRAIN}\n\n### Planes\n{PLANE}\n\n### Final Thoughts\nMost people will want the first."
  )
  document = annotate(answer)
  assert bodies(document) == [TRAIN, PLANE]
  assert sync_before(document) == ["### Final Thoughts\nMost people will want the first."]


def test_what_follows_the_last_section_is_not_part_of_it():
  answer = f"### Trains\n{TRAIN}\n\n---\n\n### Planes\n{PLANE}\n\n---\n\nOverall, both will get you there."
  document = annotate(answer)
  assert bodies(document) == [TRAIN, PLANE]
  assert sync_before(document) == ["Overall, both will get you there."]


def test_a_later_list_is_another_round_only_if_it_looks_back():
  water = "**Water.** A bottle for every two hours of the journey, at the least."
  more = f"\n\nThings to bring:\n\n- {COACH}\n- {water}"
  two = f"Two ways:\n\n- {TRAIN}\n- {PLANE}"
  assert len(annotate(two + more).rounds) == 1
  assert len(annotate(two + more.replace("Things", "For these, things")).rounds) == 2


def test_rounds_hold_as_many_chunks_as_the_grammar_allows():
  items = "\n".join(
    f"- **Number {n}.** An item that is long enough to make a chunk of its own here." for n in range(40)
  )
  limits = Limits(round_chunks=4, chunks=10)
  document = annotate(items, options=RuleOptions(limits=limits))
  assert [len(r) for r in document.rounds] == [4, 4, 2]
  assert [len(r) for r in annotate(items).rounds] == [16, 16]
  never = annotate(items, options=RuleOptions(joins="never"))
  assert [len(r) for r in never.rounds] == [16]


# -- styles


def test_the_apar_style_leaves_heads_on_the_main_thread_and_never_joins():
  document = annotate(LIST + "So take the train.", options=style("apar"))
  assert [b.split()[0] for b in bodies(document)] == ["Slower", "Faster", "The"]
  assert "- **Train.** <promise" in document.annotated
  assert "<sync/>" not in document.annotated
  two = "- Fish swim. Most of them breathe water through their gills, day and night.\n- Owls fly. "
  two += "Their feathers are soft, and so they make no sound at all."
  assert [b.split()[0] for b in bodies(annotate(two, options=style("apar")))] == ["Most", "Their"]


def test_a_wrong_option_is_refused_with_its_choices():
  with pytest.raises(ValueError, match="--steps must be one of keep, split"):
    RuleOptions(steps="cut")
  with pytest.raises(ValueError, match="--style must be one of pasta, apar"):
    style("pasta2")


# -- parts of it


@pytest.mark.parametrize(
  ("text", "topic"),
  [
    ("**Fungus gnats:** small flies", "Fungus gnats"),
    ("Battery life: it lasts", "Battery life"),
    ("Winters are mild at the coast", "Winters mild coast"),
    ("**1. The Fear of Flying** is", "Fear Flying"),
    ("🚀 **C++ & Rust** are", "C++ Rust"),
    ("it is what it is", "it is what"),
    ("日本語のテキストです。", "日本語のテキストです"),
    ("?! ...", None),
  ],
)
def test_topics_are_the_head_or_the_first_words_that_say_something(text, topic):
  assert topic_of(text) == topic


@settings(max_examples=200, deadline=None)
@given(st.text(), st.none() | st.text())
def test_topics_are_valid_whatever_the_text(text, head):
  topic = topic_of(text, head)
  assert topic is None or topic_problem(topic) is None


def test_blocks_cover_everything_but_white_space():
  text = "# A\ntext\n- b\n  - c\n\n1. d\n\n***\n> e\n\n**f**\ng\n"
  kinds = [(b.kind, b.level) for b in blocks_of(text)]
  assert kinds == [
    (Kind.HEADING, 1), (Kind.TEXT, 0), (Kind.LIST, 0), (Kind.LIST, 0), (Kind.RULE, 0), (Kind.SOLID, 0),
    (Kind.HEADING, BOLD), (Kind.TEXT, 0),
  ]  # fmt: skip


PIECES = st.sampled_from(
  [
    "- ", "* ", "1. ", "2. ", "3) ", "• ", "# ", "### ", "**", "*", "\n", "\n\n", "  ", "    ",
    "```", "| a | b |\n", "|---|---|\n", "---", "> ", ": ", "Then ", "So ", "these ", "word ",
    "A longer run of words for a chunk. ", "<promise", "</async>", "<sync/>", "&lt;async", "$$",
    "x = 12 ", "é", "日本", "🚀", "\t", "\x00", "\x85", "\u2028",
  ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=60).map("".join), st.sampled_from(["pasta", "apar"]))
def test_whatever_the_answer_its_text_stays(text, name):
  try:
    answer = normalise(text)
  except ValueError:
    assert not text.strip()
    return
  document = annotate(answer, options=style(name))
  assert all(isinstance(p, Chunk) is False or p.body == p.body.rstrip() for p in document.parts)


def test_spelt_marks_in_an_answer_are_text():
  document = annotate(f"- Write <promise topic='x'/> and {TRAIN}\n- Write &lt;sync/> and {PLANE}")
  assert len(document.chunks) == 2
  assert escape("<promise topic='x'/>") in document.annotated


def test_normalisation_is_what_it_says():
  assert normalise("\r\n \n  a\rb \r\n\n c  \n\n") == "  a\nb \n\n c"
  for bad in ("", " \n\t"):
    with pytest.raises(ValueError, match="empty"):
      normalise(bad)
  with pytest.raises(ValueError, match="unpaired surrogate at character 1"):
    normalise("a\ud800")


def test_estimated_lengths_are_within_range():
  assert promised_tokens("") == 10
  assert promised_tokens("word " * 10_000) == 320
  assert promised_tokens("one two three four five six seven eight nine ten eleven") == 20
  assert estimated_tokens("日本語") == 3
