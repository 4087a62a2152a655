"""The account of a run: rows, splits, repairs, reasons, requests, tokens, cost."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pasta_jax.train.annotate.annotator import Usage


@dataclasses.dataclass
class Account:
  """Counts of a run; what an interrupted run did is counted from its journal.

  Attributes:
    rows: lines of the input.
    annotated, split: rows with a document, and with one that splits.
    chunks, rounds, syncs: of all documents.
    repairs, reasons: how often each was needed; reasons count rejected rows.
    failures: rows that have no verdict yet, by kind.
    retries: attempts that were made again, by kind; of this process only.
    usage: as the endpoint counts.
    prices: of a million input tokens and of a million output tokens; None where not given.
  """

  rows: int = 0
  annotated: int = 0
  split: int = 0
  chunks: int = 0
  rounds: int = 0
  syncs: int = 0
  repairs: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  failures: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  retries: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  usage: Usage = dataclasses.field(default_factory=Usage)
  prices: tuple[float, float] | None = None

  def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
    """Counts rows in the journal's form; of rows without a verdict it has what they took so far."""
    for entry in entries:
      self.usage += Usage(*entry["usage"])
      if "output" not in entry:
        continue
      if "reason" in entry:
        self.reasons[entry["reason"]] += 1
        continue
      self.annotated += 1
      self.split += entry["chunks"] > 0
      self.chunks += entry["chunks"]
      self.rounds += entry["rounds"]
      self.syncs += entry["syncs"]
      self.repairs.update(set(entry["repairs"]))

  @property
  def cost(self) -> float | None:
    """In the currency of the prices; None without them."""
    if self.prices is None:
      return None
    return (self.usage.input_tokens * self.prices[0] + self.usage.output_tokens * self.prices[1]) / 1e6

  def as_dict(self) -> dict[str, Any]:
    """For a JSON file."""
    values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    plain = {k: dict(v) if isinstance(v, collections.Counter) else v for k, v in values.items()}
    return plain | {"usage": dataclasses.asdict(self.usage), "cost": self.cost}

  def lines(self) -> list[str]:
    """For people."""
    out = [
      f"{self.rows} rows: {self.annotated} annotated, {sum(self.reasons.values())} rejected"
      + (f", {sum(self.failures.values())} without a verdict" if self.failures else ""),
      f"{self.split} split ({_share(self.split, self.annotated)}), with {_mean(self.chunks, self.split)}"
      f" chunks and {_mean(self.rounds, self.split)} rounds each; {self.syncs} syncs",
    ]
    for title, counts in (
      ("rejected", self.reasons),
      ("repaired", self.repairs),
      ("without a verdict", self.failures),
      ("asked again after", self.retries),
    ):
      if counts:
        out.append(f"{title}: " + ", ".join(f"{n} {name}" for name, n in counts.most_common()))
    if self.usage.requests:
      cost = "" if self.cost is None else f"; cost {self.cost:.4f}"
      out.append(
        f"{self.usage.requests} replies, {self.usage.input_tokens} input and {self.usage.output_tokens}"
        f" output tokens{cost}"
      )
    return out


def _share(part: int, whole: int) -> str:
  return f"{100 * part / whole:.1f} %" if whole else "none"


def _mean(total: int, count: int) -> str:
  return f"{total / count:.2f}" if count else "0"
