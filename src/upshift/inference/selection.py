"""Which candidate to try first: the fastest with a proven gain, the simplest among equals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from upshift.core.timing import TimingResult, speedup

CONFIDENCE = 0.95


def ranked(timings: Mapping[str, TimingResult], names: Sequence[str], *, reference: str) -> list[str]:
    """The candidates that are faster than the reference beyond doubt, best first.

    With several candidates, one may seem faster by luck alone: each interval is widened so that all hold
    together (Bonferroni). Those that were eliminated are slower than one that was not, and come after them.

    Args:
        timings: Of side-by-side rounds.
        names: The candidates allowed, the simplest first.
        reference: What they must beat; it was timed in all rounds.
    """
    confidence = 1.0 - (1.0 - CONFIDENCE) / max(1, len(names))
    base = timings[reference]
    gains = [name for name in names if speedup(base, timings[name], confidence=confidence).low > 1.0]
    order: list[str] = []
    for is_out in (False, True):
        left = [name for name in gains if (timings[name].eliminated is not None) == is_out]
        while left:
            # Against the reference, as those that were eliminated have fewer rounds, perhaps of a faster machine.
            fastest = max(left, key=lambda name: speedup(base, timings[name]).estimate)
            tied = [n for n in left if n == fastest or speedup(timings[n], timings[fastest]).low <= 1.0]
            order.append(tied[0])
            left.remove(tied[0])
    return order
