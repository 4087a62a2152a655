"""Reads a grammar in EBNF (ISO/IEC 14977, without exceptions and recursion) as a regular expression and as
a Hypothesis strategy."""

import re
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

_TOKEN = re.compile(
  r"""\s+ | \(\*.*?\*\) | (?P<string>"[^"]*"|'[^']*') | (?P<special>\?[^?]*\?)
  | (?P<name>[a-z](?:[a-z\ ]*[a-z])?) | (?P<sign>[=,|;\[\]{}()])""",
  re.DOTALL | re.VERBOSE,
)
_CLOSING = {"[": "]", "{": "}", "(": ")"}


class Grammar:
  """Rules by name; `specials` says what each `? ... ?` means, as (regular expression, strategy)."""

  def __init__(self, text: str, specials: Mapping[str, tuple[str, st.SearchStrategy[str]]]):
    self.specials = specials
    self.rules: dict[str, Any] = {}
    self.tokens = []
    at = 0
    while at < len(text):
      m = _TOKEN.match(text, at)
      assert m, f"no EBNF at {text[at : at + 20]!r}"
      at = m.end()
      if m.lastgroup:
        self.tokens.append((m.lastgroup, m[0]))
    while self.tokens:
      kind, name = self.tokens.pop(0)
      assert kind == "name"
      self.expect("=")
      assert name not in self.rules
      self.rules[name] = self.choice()
      self.expect(";")

  def expect(self, sign: str) -> None:
    assert self.tokens.pop(0) == ("sign", sign)

  def choice(self):
    items = [self.series()]
    while self.tokens[0] == ("sign", "|"):
      self.tokens.pop(0)
      items.append(self.series())
    return ("choice", items)

  def series(self):
    items = [self.item()]
    while self.tokens[0] == ("sign", ","):
      self.tokens.pop(0)
      items.append(self.item())
    return ("series", items)

  def item(self):
    kind, text = self.tokens.pop(0)
    if kind == "sign":
      inner = self.choice()
      self.expect(_CLOSING[text])
      return (text, inner)
    return (kind, text.strip("?").strip() if kind == "special" else text[1:-1] if kind == "string" else text)

  def pattern(self, node) -> str:
    """A regular expression; repetitions are possessive, which is right where no item can begin the next."""
    kind, value = node
    if kind == "choice":
      return "(?:" + "|".join(map(self.pattern, value)) + ")"
    if kind == "series":
      return "".join(map(self.pattern, value))
    if kind == "name":
      return self.pattern(self.rules[value])
    if kind == "string":
      return re.escape(value)
    if kind == "special":
      return self.specials[value][0]
    return self.pattern(value) + {"[": "?", "{": "*+", "(": ""}[kind]

  def strategy(self, node) -> st.SearchStrategy[str]:
    kind, value = node
    if kind == "choice":
      return st.one_of([self.strategy(v) for v in value])
    if kind == "series":
      return st.tuples(*map(self.strategy, value)).map("".join)
    if kind == "name":
      return self.strategy(self.rules[value])
    if kind == "string":
      return st.just(value)
    if kind == "special":
      return self.specials[value][1]
    inner = self.strategy(value)
    if kind == "[":
      return st.just("") | inner
    return st.lists(inner, max_size=3).map("".join) if kind == "{" else inner
