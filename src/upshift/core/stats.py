"""Intervals that a decision may rest on: of paired timing ratios, and of shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_EXACT_UP_TO = 400


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided confidence interval."""

    estimate: float
    low: float
    high: float

    def exp(self) -> Interval:
        """Of a ratio, from that of its logarithm."""
        return Interval(*(math.exp(v) if v < 700.0 else math.inf for v in (self.estimate, self.low, self.high)))


def signed_rank_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Hodges–Lehmann estimate of the centre of symmetry, with the Wilcoxon signed-rank interval.

    The interval holds at its stated confidence for any distribution that is symmetric about its
    centre, without a variance or a normal law, and one wild value moves it little. Log-ratios of
    paired rounds are of that kind: within a round the order of the candidates is drawn at random, so
    that for equal candidates a ratio and its inverse are equally likely. Exact for up to 400 values,
    by the normal approximation beyond. With too few values for the confidence asked (fewer than 6 for
    95 %) the interval is infinite: nothing is claimed.

    Hodges and Lehmann (1963); Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3.2–3.3.
    """
    sample = np.asarray(values, dtype=np.float64)
    return walsh_interval(sample, signed_rank_quantile(sample.size, (1.0 - confidence) / 2.0).num_outside)


def walsh_interval(sample: NDArray[np.float64], num_outside: int) -> Interval:
    """The median of the averages of all pairs of values, and the interval that leaves so many outside on either side.

    Args:
        sample: (n,), at least one value; each is paired with itself too, so that there are n(n+1)/2 averages.
        num_outside: 1 is the whole range of the averages, 2 all but the outermost, …; with 0 the interval is infinite.
    """
    if sample.size == 0:
        raise ValueError("an interval needs at least one value")
    rows, columns = np.triu_indices(sample.size)
    averages = np.sort(sample[rows] / 2.0 + sample[columns] / 2.0)
    estimate = float(np.median(averages))
    if num_outside < 1:
        return Interval(estimate, -math.inf, math.inf)
    return Interval(estimate, float(averages[num_outside - 1]), float(averages[averages.size - num_outside]))


@dataclass(frozen=True)
class SignedRankQuantile:
    """How far out an interval must reach.

    Attributes:
        num_outside: The largest k such that P(signed-rank statistic < k) is at most what was asked; 0 if none is.
        tail: That probability, which the whole numbers keep below what was asked.
    """

    num_outside: int
    tail: float


@lru_cache(maxsize=1024)
def signed_rank_quantile(n: int, tail: float) -> SignedRankQuantile:
    """The quantile of Wilcoxon's signed-rank statistic of `n` values for a one-sided error of `tail`."""
    if n > _EXACT_UP_TO:
        mean, variance = n * (n + 1) / 4.0, n * (n + 1) * (2 * n + 1) / 24.0
        return SignedRankQuantile(
            max(0, math.floor(mean - NormalDist().inv_cdf(1.0 - tail) * math.sqrt(variance))), tail
        )
    cumulative = _signed_rank_cumulative(n)
    num_outside = int(np.searchsorted(cumulative, tail, side="right"))
    return SignedRankQuantile(num_outside, float(cumulative[num_outside - 1]) if num_outside else 0.0)


@lru_cache(maxsize=64)
def _signed_rank_cumulative(n: int) -> NDArray[np.float64]:
    return np.cumsum(_signed_rank_law(n))


def _signed_rank_law(n: int) -> NDArray[np.float64]:
    """P(sum of a random subset of 1…n = s), for s = 0 … n(n+1)/2."""
    law = np.zeros(n * (n + 1) // 2 + 1)
    law[0] = 1.0
    for rank in range(1, n + 1):
        shifted = np.zeros_like(law)
        shifted[rank:] = law[:-rank]
        law = (law + shifted) / 2.0
    return law


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (linear between neighbours)."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), share))


def wilson_interval(num_hits: float, num_samples: int) -> Interval:
    """The 95 % score interval of a proportion (Wilson 1927), sound for small counts and near 0 and 1."""
    z = NormalDist().inv_cdf(0.975)
    share = num_hits / num_samples
    denominator = 1 + z * z / num_samples
    center = (share + z * z / (2 * num_samples)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / num_samples + z * z / (4 * num_samples**2))
    # None or all of them are its own ends, which round-off would miss by a hair.
    low = 0.0 if share == 0 else max(0.0, center - half)
    high = 1.0 if share == 1 else min(1.0, center + half)
    return Interval(share, low, high)
