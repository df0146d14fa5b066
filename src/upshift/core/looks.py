"""When a sequential comparison looks at its data, and how much of its error each look may spend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from upshift.core.stats import signed_rank_quantile
from upshift.errors import ConfigError

_SPACING = 1.4
_FIRST_LOOK_SHARE = 0.25


def least_rounds(confidence: float) -> int:
    """The fewest rounds with which a signed-rank interval of this confidence is finite: 6 for 95 %."""
    return math.ceil(math.log2(2.0 / (1.0 - confidence)))


@lru_cache(maxsize=256)
def plan_looks(max_rounds: int, confidence: float, looks: tuple[int, ...] = ()) -> Mapping[int, int]:
    """At which numbers of rounds to look, and how many Walsh averages the interval then leaves out on either side.

    Whoever looks at growing data again and again, each time at 95 %, finds something in the end. Here the
    error (1 − confidence)/2 of either side is divided among the looks, so that by the union bound all the intervals
    hold *together* at the stated confidence, however the looks depend on each other. What the whole numbers of the
    signed-rank law leave unspent at a look, the next one has.

    Early looks are for large differences: the first is the earliest at which agreement of all rounds costs no more
    than a quarter of the error (8 rounds at 95 %), and has just that; from there each is 1.4 times the one before,
    and the rest of the error is divided in proportion to their rounds. A difference so small that a single look at
    the end needs 60 rounds for it takes 78 like this, and a large one is decided at the first look.

    Lan and DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70 (1983); Jennison and
    Turnbull, Group Sequential Methods, ch. 9 (repeated confidence intervals).

    Args:
        max_rounds: The last look.
        confidence: Two-sided, of all intervals together.
        looks: Numbers of rounds instead of the spacing above, ascending, the last one `max_rounds`.

    Returns:
        For each number of rounds at which something can be proven, `num_outside` of `stats.walsh_interval`.

    Raises:
        ConfigError: Too few rounds for the confidence, or looks that do not ascend to `max_rounds`.
    """
    fewest = least_rounds(confidence)
    if max_rounds < fewest:
        raise ConfigError(
            f"max_rounds must be at least {fewest} for an interval at {confidence:g} to exist",
            received=max_rounds,
            hint="allow more rounds, or ask for less confidence",
        )
    if looks and (list(looks) != sorted(set(looks)) or looks[0] < 1 or looks[-1] != max_rounds):
        raise ConfigError(
            "looks must be ascending numbers of rounds that end at max_rounds",
            received=looks,
            hint=f"leave looks out, or end with {max_rounds}",
        )
    tail = (1.0 - confidence) / 2.0
    planned = looks or _spaced(max_rounds, fewest + math.ceil(-math.log2(_FIRST_LOOK_SHARE)))
    agreement = 0.5 ** planned[0]
    in_proportion = tail * planned[0] / sum(planned)
    at_first = agreement if in_proportion < agreement <= _FIRST_LOOK_SHARE * tail else in_proportion
    num_outside: dict[int, int] = {}
    allowed = spent = 0.0
    for index, rounds in enumerate(planned):
        allowed += (tail - at_first) * rounds / sum(planned[1:]) if index else at_first
        quantile = signed_rank_quantile(rounds, allowed - spent)
        spent += quantile.tail
        if quantile.num_outside:  # else there is nothing yet that this look could prove
            num_outside[rounds] = quantile.num_outside
    return MappingProxyType(num_outside)


def _spaced(max_rounds: int, first: int) -> tuple[int, ...]:
    looks = [min(first, max_rounds)]
    while looks[-1] < max_rounds:
        looks.append(min(max_rounds, math.ceil(looks[-1] * _SPACING)))
    return tuple(looks)
