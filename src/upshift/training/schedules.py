"""Learning-rate schedules: the share of the peak rate at each step, as a pure function."""

from __future__ import annotations

import math

from upshift.training.config import ScheduleConfig

ONE_CYCLE_WARMUP = 0.3


def learning_rate_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step as a share of its peak.

    Args:
        config: The schedule.
        step: The step about to be made, from 0.
        total_steps: Steps of the whole training.

    Returns:
        A number in [0, 1]; above 0 at every step but possibly the last.
    """
    warmup_fraction = config.warmup_fraction
    if warmup_fraction is None:
        warmup_fraction = ONE_CYCLE_WARMUP if config.name == "one_cycle" else 0.0
    warmup_steps = round(warmup_fraction * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.name == "constant":
        return 1.0
    # The last step gets `final_fraction`, the first after the warm-up the full rate.
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    remaining = 1.0 - progress if config.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_fraction + (1.0 - config.final_fraction) * remaining


def changed_length(config: ScheduleConfig, before: int, now: int, step: int) -> list[str]:
    """What to say of a resume at `step` to `now` steps in all, if `before` were planned (0: not known).

    The learning rate is a function of the share of all steps that is done.
    """
    if before in (0, now) or (config.name == "constant" and not config.warmup_fraction):
        return []
    return [
        f"the schedule {config.name} is over {now} steps from step {step} on, and was over {before} before: "
        "the learning rate jumps there, and is not that of a run of one length"
    ]
