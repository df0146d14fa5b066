"""Which candidate to try first: the fastest with a proven gain, the simplest among equals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from upshift.core.timing import TimingResult, speedup

CONFIDENCE = 0.95


def ranked(timings: Mapping[str, TimingResult], names: Sequence[str], *, reference: str) -> list[str]:
    """The candidates that are faster than the reference beyond doubt, best first.

    With several candidates, one may seem faster by luck alone: each interval is widened so that all hold
    together (Bonferroni).

    Args:
        timings: Of side-by-side rounds.
        names: The candidates allowed, the simplest first.
        reference: What they must beat.
    """
    confidence = 1.0 - (1.0 - CONFIDENCE) / max(1, len(names))
    base = timings[reference]
    gains = [name for name in names if speedup(base, timings[name], confidence=confidence).low > 1.0]
    order: list[str] = []
    while gains:
        fastest = min(gains, key=lambda name: timings[name].latency_seconds(0.5))
        tied = [n for n in gains if n == fastest or speedup(timings[n], timings[fastest]).low <= 1.0]
        order.append(tied[0])
        gains.remove(tied[0])
    return order
