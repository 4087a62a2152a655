"""The suite of stage 1: PASTA beside its twin and the unmodified model, on held-out and on other prompts.

    answers      each model answers every prompt              answers.WHO.SET.jsonl
    text loss    PASTA and the twin read the references       text_loss.WHO.SET.jsonl
    likelihood   the unmodified model reads all answers       likelihood.WHO.SET.jsonl
    times        PASTA's and the twin's answers once more     times.SET.jsonl

Each file is whole or a journal, so that an interrupted run goes on where it was.
"""

import dataclasses
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pasta_jax.eval import quality_likelihood, suite_answers, suite_times
from pasta_jax.eval.answers_page import answers_page
from pasta_jax.eval.report_figures import Figures, set_figures, to_json
from pasta_jax.eval.suite_models import WHO, Models
from pasta_jax.eval.suite_options import Options
from pasta_jax.eval.suite_sets import Item, PromptSet, held_out_set, prompt_set
from pasta_jax.eval.suite_store import Compute, Row, Store, write_whole
from pasta_jax.lang.tighten import tighten
from pasta_jax.model.dtypes import resolve_dtype
from pasta_jax.train.packing import Layout, lay_out
from pasta_jax.train.rows import Row as Reference

PAGE = "answers.html"
VERSION = 1  # of the figures' form

Log = Callable[[str], None]


def run(options: Options, log: Log = lambda line: None) -> Figures:
  """Answers, measures, writes the page of answers into the folder, and returns the figures.

  Args:
    log: told what is being done.

  Returns:
    See docs/evaluation.md; numbers are `Estimate`s.

  Raises:
    ValueError, OSError: with one line for the user.
  """
  sets = [held_out_set(options.heldout, options.holdout, options.num_prompts)]
  if options.prompts:
    sets.append(prompt_set(options.prompts, options.num_prompts))
  models = Models(options)
  for note in models.notes:
    log(note)
  suite = _Suite(options, sets, models, Store(options.output_dir, options.run, options.resume), log)
  for who in WHO:
    suite.ask(who)
  suite.read_answers()
  suite.measure_times()
  figures: Figures = {
    "suite": "stage1",
    "version": VERSION,
    "settings": dataclasses.asdict(options),
    "device": f"{jax.devices()[0].device_kind} x {len(jax.devices())}",
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "dtype": str(jnp.dtype(resolve_dtype(options.dtype))),
    "sets": {p.name: set_figures(p, **dataclasses.asdict(suite.rows[p.name])) for p in sets},
  }
  page = Path(options.output_dir) / PAGE
  write_whole(page, answers_page(to_json(figures), [(p, suite.rows[p.name].answers) for p in sets]))
  log(f"the answers side by side: {page}")
  return figures


@dataclasses.dataclass
class _Rows:
  """All rows of a set, by model; see report_figures.set_figures."""

  answers: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
  likelihoods: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
  text_losses: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
  times: dict[int, Row] = dataclasses.field(default_factory=dict)


class _Suite:
  def __init__(self, options: Options, sets: list[PromptSet], models: Models, store: Store, log: Log):
    self._options, self._sets, self._models, self._store, self._log = options, sets, models, store, log
    self.rows = {p.name: _Rows() for p in sets}

  def _stage(self, name: str, count: int, compute: Compute) -> list[Row]:
    if not self._store.done(name):
      self._log(f"{name.replace('.', ', ')}: {count} prompts")
    return self._store.rows(name, count, compute)

  def ask(self, who: str) -> None:
    """Answers of one model, and what the references cost it."""
    o = self._options
    for p in self._sets:

      def answer(numbers: Sequence[int], p: PromptSet = p) -> Iterator[tuple[int, Row]]:
        engine = self._models.engine(who, o.batch_size, o.lanes if who == "pasta" else 1)
        for every in self._sets:
          suite_answers.check_prompts(engine, every)
        settings = {"max_new_tokens": o.max_new_tokens, **o.scheme}
        return suite_answers.answer(engine, p.items, numbers, **settings)

      name = f"answers.{who}.{p.name}"
      self.rows[p.name].answers[who] = self._stage(name, len(p.items), answer)
    for p in self._sets:
      if p.has_references and who != "base":

        def read(numbers: Sequence[int], p: PromptSet = p) -> Iterator[tuple[int, Row]]:
          model = self._models.get(who)
          sequences = [self._reference(p.items[n], model, who) for n in numbers]
          return _costs(model, p, numbers, sequences)

        name = f"text_loss.{who}.{p.name}"
        self.rows[p.name].text_losses[who] = self._stage(name, len(p.items), read)

  def _reference(self, item: Item, model: Any, who: str) -> Any:
    """A reference as training lays it out."""
    assert item.document is not None
    o, tokenizer = self._options, model.tokenizer
    if tokenizer.controls is None:
      tokenizer = tokenizer.with_controls(model.config.vocab_size)
    document = tighten(item.document) if self._models.tighten else item.document
    row = Reference(item.id, item.prompt, document)
    return lay_out(row, tokenizer, Layout(who == "twin", o.fork, o.positions, o.fixed)).sequence

  def read_answers(self) -> None:
    """The unmodified model reads everyone's answers."""
    for p in self._sets:
      for who in WHO:

        def read(numbers: Sequence[int], p: PromptSet = p, who: str = who) -> Iterator[tuple[int, Row]]:
          model = self._models.get("base")
          answers = self.rows[p.name].answers[who]
          sequences = [
            quality_likelihood.plain_sequence(model.tokenizer, p.items[n].prompt, answers[n]["text"])
            for n in numbers
          ]
          return _costs(model, p, numbers, sequences)

        name = f"likelihood.{who}.{p.name}"
        self.rows[p.name].likelihoods[who] = self._stage(name, len(p.items), read)

  def measure_times(self) -> None:
    """Times of a sample of the prompts, one at a time."""
    o = self._options
    for p in self._sets:
      count = min(o.timed, len(p.items)) if o.timed else len(p.items)
      chosen = sorted(random.Random(1).sample(range(len(p.items)), count))

      def measure(missing: Sequence[int], p: PromptSet = p, chosen: list[int] = chosen):
        pasta, sequential = self._models.engine("pasta", 1, o.lanes), self._models.engine("pasta", 1, 1)
        numbers, answers = [chosen[i] for i in missing], self.rows[p.name].answers
        timed = suite_times.measure_times(pasta, sequential, p.items, answers, numbers, o.repeats, **o.scheme)
        return ((i, row) for i, (_, row) in zip(missing, timed))

      rows = self._stage(f"times.{p.name}", count, measure)
      self.rows[p.name].times = dict(zip(chosen, rows))


def _costs(
  model: Any, p: PromptSet, numbers: Sequence[int], sequences: Sequence[Any]
) -> Iterator[tuple[int, Row]]:
  """Rows of nats and tokens."""
  for i, nll, tokens in quality_likelihood.text_nll(model, sequences):
    yield numbers[i], {"id": p.items[numbers[i]].id, "nll": nll, "tokens": tokens}
