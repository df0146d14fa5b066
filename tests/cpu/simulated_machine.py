"""Machines in simulated time, with the troubles that real ones have, for the tests of timing and racing.

How slow a machine is at a moment is a factor that is the product of
- a drift: a straight line of up to ± `drift` in the logarithm over the whole time, and a random walk of `walk` a slot,
- noise that lasts: an autoregressive process with coefficient `memory` and standard deviation `noise`,
- heavy tails: Student's t with 2 degrees of freedom (infinite variance), scaled by `tails`,
- bursts of work by others: one begins in a slot with probability `burst_rate`, lasts `burst_slots` slots on average
  and makes the machine 1.5 to 4 times slower.
In addition whoever has the second turn in a round may be slower by `second_turn`: caches, clocks, heat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What is wrong with a machine; everything but the probabilities is in units of log-time."""

    drift: float = 0.0
    walk: float = 0.0
    noise: float = 0.02
    memory: float = 0.0
    tails: float = 0.0
    burst_rate: float = 0.0
    burst_slots: float = 4.0
    second_turn: float = 0.0


TROUBLES = {
    "calm": Trouble(),
    "drifting": Trouble(drift=0.7, walk=0.02),
    "bursts": Trouble(burst_rate=0.04),
    "noise that lasts": Trouble(noise=0.1, memory=0.9),
    "heavy tails": Trouble(tails=0.03),
    "second turn slower": Trouble(noise=0.04, second_turn=0.05),
    "all at once": Trouble(drift=0.7, walk=0.01, noise=0.05, memory=0.8, tails=0.01, burst_rate=0.03, second_turn=0.02),
}


def slowness(trouble: Trouble, *, num_runs: int, num_slots: int, seed: int) -> NDArray[np.float64]:
    """How many times its best a machine takes in each slot of time, (num_runs, num_slots)."""
    generator = np.random.default_rng(seed)
    shape = (num_runs, num_slots)
    slope = generator.uniform(-trouble.drift, trouble.drift, (num_runs, 1))
    logs = slope * np.linspace(0.0, 1.0, num_slots) + np.cumsum(generator.normal(0.0, trouble.walk, shape), axis=1)
    logs += trouble.tails * generator.standard_t(2.0, shape)
    shocks, starts, ends = generator.standard_normal(shape), generator.random(shape), generator.random(shape)
    lasting, burst = shocks[:, 0] * trouble.noise, np.zeros(num_runs)
    for slot in range(num_slots):
        if slot:
            lasting = trouble.memory * lasting + trouble.noise * np.sqrt(1 - trouble.memory**2) * shocks[:, slot]
        height = np.log(generator.uniform(1.5, 4.0, num_runs))
        burst = np.where(burst > 0.0, np.where(ends[:, slot] < 1.0 / trouble.burst_slots, 0.0, burst), 0.0)
        burst = np.where((burst == 0.0) & (starts[:, slot] < trouble.burst_rate), height, burst)
        logs[:, slot] += lasting + burst
    factors: NDArray[np.float64] = np.exp(np.clip(logs, -5.0, 5.0))
    return factors
