"""Another batch size, which changes what is learnt: the throughput knee, and the learning rate that goes with it.

It is of tier C: only what the user allows is changed, before the first step, and it is reported as what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from upshift.errors import UnknownNameError
from upshift.training.config import TrainingConfig
from upshift.tuning.trials import Trial

ALGORITHM = "algorithm"
KNEE_SHARE = 0.95
"""Of the best rate: from here on, larger batches hardly make more samples a second."""
MAX_FACTOR = 32
MIN_STEPS_AN_EPOCH = 10
WARMUP_FRACTION = 0.05

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
        new_batch_size: Taken; the same where no larger one is clearly faster.
        learning_rate: Of the recipe.
        new_learning_rate: Taken.
        rule: How the learning rate follows the batch size.
        warmup_fraction: Share of the steps in which the rate rises, where the recipe has no such rise; else None.
        rates: Samples a second by batch size, without the wait for data.
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
    seconds: float
    settings: tuple[str, ...]
    reason: str

    @property
    def adopted(self) -> bool:
        """Whether anything was changed."""
        return self.new_batch_size != self.batch_size

    @property
    def speedup(self) -> float:
        """Of a sample."""
        return self.rates[self.new_batch_size] / self.rates[self.batch_size]

    def trial(self) -> Trial:
        """The change as evidence in a plan."""
        changes = dict(setting.split("=", 1) for setting in self.settings)
        return Trial(
            name=f"batch size {self.new_batch_size if self.adopted else max(self.rates)}",
            changes=changes,
            tier="C",
            verdict="adopted" if self.adopted else "refused",
            reason=self.reason,
            expected_gain=max(0.0, 1.0 - 1.0 / self.speedup),
            expected_seconds=self.seconds,
            step=0,
            seconds=self.seconds,
            speedup=self.speedup if self.adopted else None,
            details={"samples_per_second": {str(size): rate for size, rate in self.rates.items()}},
        )

    def to_json(self) -> dict[str, Any]:
        """The change as a JSON object."""
        return asdict(self) | {
            "adopted": self.adopted,
            "rates": {str(size): rate for size, rate in self.rates.items()},
            "settings": list(self.settings),
        }


def changed_algorithm(config: TrainingConfig, rates: Mapping[int, float], seconds: float) -> ChangedAlgorithm:
    """The batch size at the knee, with all that has to follow it over the same epochs.

    The learning rate follows by `scaling_rule`, with a warm-up over 5 % of the steps where the recipe has none (Goyal
    et al.); an average of the weights keeps its span in samples (arXiv 2307.13813), and `max_steps` its samples.

    Args:
        config: The recipe.
        rates: Samples a second by batch size, that of the recipe among them.
        seconds: That measuring them took.
    """
    size, optimizer, schedule = knee(rates), config.optimizer, config.schedule
    factor, rule = size / config.batch_size, scaling_rule(config.optimizer.name)
    if factor <= 1.0:
        size, factor = config.batch_size, 1.0
    settings, warmup = [], None
    learning_rate = scaled(optimizer.lr, factor, rule)
    if factor > 1.0:
        settings = [f"batch_size={size}", f"optimizer.lr={learning_rate!r}"]
        if optimizer.adamw_lr is not None:
            settings.append(f"optimizer.adamw_lr={scaled(optimizer.adamw_lr, factor, rule)!r}")
        if not schedule.warmup_fraction and schedule.name != "one_cycle":
            warmup = WARMUP_FRACTION
            settings.append(f"schedule.warmup_fraction={warmup}")
        if config.ema_decay is not None:
            settings.append(f"ema_decay={config.ema_decay**factor!r}")
        if config.max_steps is not None:
            settings.append(f"max_steps={math.ceil(config.max_steps / factor)}")
    best = max(rates, key=lambda each: rates[each])
    reason = f"the smallest batch within {(1 - KNEE_SHARE) * 100:.0f} % of the best rate,"
    reason += f" {rates[best]:,.0f} samples/s at {best}"
    return ChangedAlgorithm(
        batch_size=config.batch_size,
        new_batch_size=size,
        learning_rate=optimizer.lr,
        new_learning_rate=learning_rate,
        rule=rule,
        warmup_fraction=warmup,
        rates=dict(rates),
        seconds=seconds,
        settings=tuple(settings),
        reason=reason,
    )
