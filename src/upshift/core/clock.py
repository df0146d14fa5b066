"""The one clock by which training steps are timed, and by whose times tuning decides.

Modules read it as `clock.now()`, never by a name of their own: whatever takes its place here is what all of them read,
so that steps, budgets and accounts are always of the same time.
"""

from __future__ import annotations

import time


def now() -> float:
    """Seconds since some moment, by a clock that never goes back: only differences mean something."""
    return time.perf_counter()
