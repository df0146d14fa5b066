"""A clock for the tests of tuning: time passes where a test's models say so, however fast and busy the machine is.

Models and loaders call `spend` where real ones would compute or wait. Where the clock is installed, that is all the
time that training and tuning see, each time a little more or less, as on real machines; elsewhere nobody reads it.
No page faults are seen either: real ones beside such steps would make candidates of what a machine happens to do.
Nor are other programs seen, which would have what is found count as found on a busy machine. Reading and writing files
takes none of that time, and is not expected to.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from upshift.core.load import Load, LoadMeter

NOISE = 0.03
"""Standard deviation of the logarithm of each stretch of time."""
TICK_SECONDS = 2e-5
"""What a reading of the clock takes: nothing takes no time at all."""


class SimulatedClock:
    """A clock that goes on by what is spent, and by a tick at each reading.

    Args:
        seed: Of the noise.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._seconds = 0.0

    def now(self) -> float:
        """Take the place of `upshift.core.clock.now`."""
        self.spend(TICK_SECONDS)
        return self._seconds

    def spend(self, seconds: float) -> None:
        """Let about that much time pass."""
        self._seconds += seconds * math.exp(self._random.gauss(0.0, NOISE))


CLOCK = SimulatedClock()


def spend(seconds: float) -> None:
    """Let time pass on the simulated clock."""
    CLOCK.spend(seconds)


class QuietMeter(LoadMeter):
    """Of a machine that no other program uses."""

    def read(self) -> Load | None:
        return None


def install() -> None:
    """Have all of this process read the simulated clock from now on."""
    install_by(pytest.MonkeyPatch())


def install_by(patch: pytest.MonkeyPatch) -> None:
    """Have all of this process read a new simulated clock until that is undone."""
    clock = SimulatedClock()
    patch.setattr(f"{__name__}.CLOCK", clock)
    patch.setattr("upshift.core.clock.now", clock.now)
    patch.setattr("upshift.tuning.live.num_page_faults", lambda: 0)
    patch.setattr("upshift.tuning.tuner.LoadMeter", QuietMeter)
    patch.setattr("upshift.tuning.duels.BOOKKEEPING_SECONDS", 0.0)


@contextmanager
def simulated_clock() -> Iterator[None]:
    """Have all of this process read a new simulated clock for a while; there is a fixture of that name."""
    with pytest.MonkeyPatch.context() as patch:
        install_by(patch)
        yield
