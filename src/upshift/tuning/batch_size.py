"""Another batch size, which changes what is learnt: the throughput knee, and the learning rate that goes with it.

It is of tier C: only what the user allows is changed, before the first step, and it is reported as what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from upshift.core.files import finite
from upshift.core.stats import Interval, signed_rank_interval
from upshift.core.units import factor, factor_range, plain
from upshift.errors import UnknownNameError
from upshift.training.config import TrainingConfig
from upshift.tuning.trials import Trial

ALGORITHM = "algorithm"
KNEE_SHARE = 0.95
"""Of the best rate: from here on, larger batches hardly make more samples a second."""
MAX_FACTOR = 32
MIN_STEPS_AN_EPOCH = 10
WARMUP_FRACTION = 0.05
CONFIDENCE = 0.95
"""Of the intervals of all batch sizes together."""

Rule = Literal["linear", "square root"]


def checked_allowed(allow: Sequence[str]) -> bool:
    """Whether a changed algorithm is allowed.

    Raises:
        UnknownNameError: Something else is.
    """
    for name in allow:
        if name != ALGORITHM:
            raise UnknownNameError(
                "what is allowed", name, [ALGORITHM], hint='--allow algorithm, or allow=("algorithm",) in Python'
            )
    return bool(allow)


def batch_sizes(batch_size: int, num_samples: int) -> list[int]:
    """The batch sizes to compare: doubled as long as an epoch keeps some steps, at most 32 times the first."""
    most = min(MAX_FACTOR * batch_size, num_samples // MIN_STEPS_AN_EPOCH)
    sizes = [batch_size]
    while 2 * sizes[-1] <= most:
        sizes.append(2 * sizes[-1])
    return sizes


def knee(rates: Mapping[int, float]) -> int:
    """The throughput knee: the smallest batch within 5 % of the best rate.

    Args:
        rates: Samples a second by batch size.
    """
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= KNEE_SHARE * best)


def speedups(times: Mapping[int, Sequence[float]], batch_size: int) -> dict[int, Interval]:
    """How many times faster a sample is in each larger batch, with intervals that hold together at 95 %.

    Signed-rank intervals of the log-ratios of the same rounds, whose order is drawn anew; the error is divided among
    the sizes, so that one of equally fast ones is seldom proven faster, however many there are.

    Args:
        times: Seconds a sample by batch size, one value a round, the rounds in the same order.
        batch_size: The one that the others are compared with.
    """
    larger = [size for size in sorted(times) if size > batch_size]
    confidence = 1.0 - (1.0 - CONFIDENCE) / max(1, len(larger))
    found = {}
    for size in larger:
        pairs = zip(times[batch_size], times[size], strict=True)
        log_ratios = [math.log(before) - math.log(after) for before, after in pairs]
        found[size] = signed_rank_interval(log_ratios, confidence=confidence).exp()
    return found


def scaling_rule(optimizer: str) -> Rule:
    """How the learning rate grows with the batch.

    Linear for SGD (Goyal et al., arXiv 1706.02677), by the square root for the others, whose steps are divided by the
    gradient's size (Malladi et al., arXiv 2205.10287).

    Args:
        optimizer: Its name in a recipe.
    """
    return "linear" if optimizer.lower() == "sgd" else "square root"


def scaled(learning_rate: float, factor: float, rule: Rule) -> float:
    """The learning rate of a batch that is `factor` times as large."""
    return learning_rate * (factor if rule == "linear" else math.sqrt(factor))


@dataclass(frozen=True, kw_only=True)
class ChangedAlgorithm:
    """What became of the batch size where changing it was allowed.

    Attributes:
        batch_size: Of the recipe.
        new_batch_size: Taken; the same where no larger one is proven faster.
        learning_rate: Of the recipe.
        new_learning_rate: Taken.
        rule: How the learning rate follows the batch size.
        warmup_fraction: Share of the steps in which the rate rises, where the recipe has no such rise; else None.
        rates: Samples a second by batch size, without the wait for data; none where not even a step of the recipe's
            own batch fits into memory.
        speedups: Of a sample in each larger batch that was measured; see `speedups`.
        num_rounds: That they rest on.
        seconds: That measuring took.
        settings: What `--set` makes the same of the recipe.
        reason: Why it is so.
    """

    batch_size: int
    new_batch_size: int
    learning_rate: float
    new_learning_rate: float
    rule: Rule
    warmup_fraction: float | None
    rates: Mapping[int, float]
    speedups: Mapping[int, Interval]
    num_rounds: int
    seconds: float
    settings: tuple[str, ...]
    reason: str

    @property
    def adopted(self) -> bool:
        """Whether anything was changed."""
        return self.new_batch_size != self.batch_size

    def trial(self) -> Trial:
        """The change as evidence in a plan: of the batch that was taken, or of the most promising one that was not."""
        changes = dict(setting.split("=", 1) for setting in self.settings)
        promising = max(self.speedups, key=lambda size: self.speedups[size].estimate, default=self.batch_size)
        size = self.new_batch_size if self.adopted else promising
        found = self.speedups.get(size)
        return Trial(
            name=f"batch size {size}",
            changes=changes,
            tier="C",
            verdict="adopted" if self.adopted else "refused",
            reason=self.reason,
            expected_gain=max(0.0, 1.0 - 1.0 / found.estimate) if found is not None else 0.0,
            expected_seconds=self.seconds,
            step=0,
            seconds=self.seconds,
            speedup=found.estimate if found is not None else None,
            speedup_interval=(found.low, found.high) if found is not None and math.isfinite(found.high) else None,
            num_rounds=self.num_rounds,
            details={"samples_per_second": {str(size): rate for size, rate in self.rates.items()}},
        )

    def to_json(self) -> dict[str, Any]:
        """The change as a JSON object."""
        return asdict(self) | {
            "adopted": self.adopted,
            "rates": {str(size): rate for size, rate in self.rates.items()},
            "speedups": {
                str(size): finite([found.estimate, found.low, found.high]) for size, found in self.speedups.items()
            },
            "settings": list(self.settings),
        }


def changed_algorithm(
    config: TrainingConfig, times: Mapping[int, Sequence[float]], seconds: float, *, note: str = ""
) -> ChangedAlgorithm:
    """The batch size at the knee of those that are proven faster, with all that has to follow it over the same epochs.

    The learning rate follows by `scaling_rule`, with a warm-up over 5 % of the steps where the recipe has none (Goyal
    et al.); an average of the weights keeps its span in samples (arXiv 2307.13813), and `max_steps` its samples.

    Args:
        config: The recipe.
        times: As `speedups` takes them, that of the recipe's batch among them; none where it does not fit into memory.
        seconds: That measuring them took.
        note: What else there is to say, such as what did not fit into memory.
    """
    found = speedups(times, config.batch_size)
    size, why = _chosen(found, config.batch_size)
    optimizer, schedule = config.optimizer, config.schedule
    growth, rule = size / config.batch_size, scaling_rule(config.optimizer.name)
    settings, warmup = [], None
    learning_rate = scaled(optimizer.lr, growth, rule)
    if growth > 1.0:
        settings = [f"batch_size={size}", f"optimizer.lr={learning_rate!r}"]
        if optimizer.adamw_lr is not None:
            settings.append(f"optimizer.adamw_lr={scaled(optimizer.adamw_lr, growth, rule)!r}")
        if not schedule.warmup_fraction and schedule.name != "one_cycle":
            warmup = WARMUP_FRACTION
            settings.append(f"schedule.warmup_fraction={warmup}")
        if config.ema_decay is not None:
            settings.append(f"ema_decay={config.ema_decay**growth!r}")
        if config.max_steps is not None:
            settings.append(f"max_steps={math.ceil(config.max_steps / growth)}")
    return ChangedAlgorithm(
        batch_size=config.batch_size,
        new_batch_size=size,
        learning_rate=optimizer.lr,
        new_learning_rate=learning_rate,
        rule=rule,
        warmup_fraction=warmup,
        rates={each: 1.0 / median(seconds_a_sample) for each, seconds_a_sample in times.items()},
        speedups=found,
        num_rounds=len(times[size]) if found else 0,
        seconds=seconds,
        settings=tuple(settings),
        reason="; ".join(part for part in (why, note) if part),
    )


def _chosen(found: Mapping[int, Interval], batch_size: int) -> tuple[int, str]:
    """The batch size to take, and why: that of the recipe unless a larger one is proven faster."""
    if not found:
        return batch_size, "no larger batch was compared"
    relative = {batch_size: 1.0} | {size: each.estimate for size, each in found.items() if each.low > 1.0}
    size = knee(relative)
    if size > batch_size:
        why = f"the smallest batch within {(1 - KNEE_SHARE) * 100:.0f} % of the best rate"
        return size, f"{why} of those that are proven faster, {_said(size, found[size])}"
    best = max(found, key=lambda each: found[each].estimate)
    more = f"faster by more than {(1 / KNEE_SHARE - 1) * 100:.0f} %" if len(relative) > 1 else "proven faster"
    return size, f"no larger batch is {more}, {_said(best, found[best])}"


def _said(size: int, found: Interval) -> str:
    ends = found.low, found.high
    return plain(f"{factor(found.estimate, ends)} at {size} (interval {factor_range(*ends)}, for all sizes together)")
