"""The timing harness as a whole on simulated machines: 1,000 measurements each, warm-up and all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
from simulated_machine import TROUBLES, Trouble, slowness

from upshift.core.knockout import Knockout
from upshift.core.timing import TimingConfig, TimingResult, measure_interleaved, speedup

NUM_RUNS = 1000
NUM_ROUNDS = 40
SLOT_SECONDS = 0.02


class Machine:
    """A machine whose speed changes every 20 ms of its time."""

    def __init__(self, slots: list[float], trouble: Trouble) -> None:
        self.slots, self.second_turn = slots, math.exp(trouble.second_turn)
        self.now, self.num_turns = 0.0, 0

    def subject(self, seconds: float) -> Callable[[int], list[float]]:
        def measure(calls: int) -> list[float]:
            self.num_turns += 1
            factor = seconds * (self.second_turn if self.num_turns % 2 else 1.0)
            taken = []
            for _ in range(calls):
                taken.append(factor * self.slots[int(self.now / SLOT_SECONDS) % len(self.slots)])
                self.now += taken[-1]
            return taken

        return measure


def measurements(
    trouble: str, seconds: Mapping[str, float], *, num_runs: int = NUM_RUNS, with_knockout: bool = False
) -> list[dict[str, TimingResult]]:
    """So many measurements of subjects whose calls take so long on a machine at its best."""
    results = []
    for seed, slots in enumerate(slowness(TROUBLES[trouble], num_runs=num_runs, num_slots=500, seed=7).tolist()):
        machine = Machine(slots, TROUBLES[trouble])
        results.append(
            measure_interleaved(
                {name: machine.subject(each) for name, each in seconds.items()},
                config=TimingConfig(num_rounds=NUM_ROUNDS, seed=seed),
                clock=lambda machine=machine: machine.now,
                knockout=Knockout(seconds, max_rounds=NUM_ROUNDS, keep=("eager",)) if with_knockout else None,
            )
        )
    return results


@pytest.mark.parametrize("trouble", TROUBLES)
def test_of_1000_measurements_of_equals_at_most_five_percent_have_a_winner(trouble: str) -> None:
    found = measurements(trouble, {"eager": 0.005, "other": 0.005})
    assert sum(speedup(each["eager"], each["other"]).low > 1.0 for each in found) <= 0.05 * NUM_RUNS


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_gain_of_five_percent_is_found_in_40_rounds_in_at_least_95_percent(trouble: str) -> None:
    found = measurements(trouble, {"eager": 0.00525, "other": 0.005})
    assert sum(speedup(each["eager"], each["other"]).low > 1.0 for each in found) >= 0.95 * NUM_RUNS


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_knockout_saves_rounds_and_keeps_the_fastest(trouble: str) -> None:
    found = measurements(
        trouble, {"eager": 0.005, "fast": 0.002, "slow": 0.01, "slower": 0.02}, num_runs=100, with_knockout=True
    )
    for each in found:
        assert each["fast"].eliminated is None and len(each["eager"].rounds) == len(each["fast"].rounds) == NUM_ROUNDS
        assert speedup(each["eager"], each["fast"]).low > 1.0
        assert each["slower"].eliminated is not None and len(each["slower"].rounds) <= 20
