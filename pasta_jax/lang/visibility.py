"""The one rule for who sees whom (design section 4), as a function on integers.

query q sees key k  iff  time(k) <= time(q)
                         and  (thread(k) == thread(q)  or  visible_at(k) <= horizon(q))
"""

from typing import Any


def visible(q_thread, q_time, q_horizon, k_thread, k_time, k_visible_at) -> Any:
  """Whether each query sees each key: bool, of the shape that the arguments broadcast to.

  Works on NumPy and JAX arrays alike.
  """
  return (k_time <= q_time) & ((k_thread == q_thread) | (k_visible_at <= q_horizon))
