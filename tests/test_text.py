"""Text comes whole, and ends before the first stop string, however it is cut into tokens."""

from hypothesis import given
from hypothesis import strategies as st

from pasta_jax.decode.text import StopText


def _first_stop(text: str, stops) -> int:
  return min((text.index(s) for s in stops if s in text), default=len(text))


@given(st.lists(st.text("ab", max_size=4)), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_text_is_what_comes_before_the_first_stop_string(pieces, stops):
  stream = StopText(stops)
  got = "".join([stream.push(piece) for piece in pieces]) + stream.flush()
  assert got == stream.text
  whole = "".join(pieces)
  # Pieces arrive one by one: the stop string that is complete first ends the text.
  for n in range(len(pieces) + 1):
    seen = "".join(pieces[:n])
    if any(s in seen for s in stops):
      assert got == seen[: _first_stop(seen, stops)]
      assert stream.stopped
      return
  assert got == whole
  assert not stream.stopped


def test_only_what_may_become_a_stop_string_is_held_back():
  stream = StopText(["END"])
  assert stream.push("x") == "x"
  assert stream.push("E") == ""
  assert stream.push("N") == ""
  assert stream.push("x") == "ENx"
