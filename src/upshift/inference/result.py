"""What a search found: every candidate with its verdict and reason."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from upshift.core.stats import Interval
from upshift.core.timing import TimingResult, unsteady_range
from upshift.core.units import factor, factor_range
from upshift.inference.accuracy import Decision
from upshift.inference.parity import Parity

Verdict = Literal["chosen", "accepted", "refused", "failed"]


@dataclass
class CandidateResult:
    """One candidate: what is known of it (None where it did not get so far).

    Attributes:
        name: Of its backend.
        verdict: "chosen"; "accepted": proven faithful, but not the fastest; "refused": not proven faithful
            or not confirmed; "failed": it could not be built or run here, or was not tried.
        reason: In words.
        latency_ms_p50: Of a call with the batch size of the search; likewise p90 and p99.
        speedup: Against eager, timed side by side.
        speedup_interval: 95 % confidence.
        unsteady_range: The smallest and largest speedup of single rounds, where these lie too far apart for `speedup`
            to mean much; see `unsteady_range` of `core.timing`.
        max_abs_error: Against eager's outputs.
        max_rel_error: Likewise, as a share of the output's range.
        top1_agreement: Share of samples with the same highest class.
        accuracy: On the test labels.
        accuracy_drop: Eager's accuracy minus this one's.
        accuracy_drop_upper: One-sided upper bound; the bounds of all candidates hold together with 95 % confidence.
        build_seconds: To make the data files.
        load_seconds: To load them, compilation included.
        first_call_ms: Of the first call after loading.
        size_bytes: Of the data files.
    """

    name: str
    verdict: Verdict = "failed"
    reason: str = ""
    latency_ms_p50: float | None = None
    latency_ms_p90: float | None = None
    latency_ms_p99: float | None = None
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None
    unsteady_range: tuple[float, float] | None = None
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    top1_agreement: float | None = None
    accuracy: float | None = None
    accuracy_drop: float | None = None
    accuracy_drop_upper: float | None = None
    build_seconds: float | None = None
    load_seconds: float | None = None
    first_call_ms: float | None = None
    size_bytes: int | None = None

    def add_parity(self, parity: Parity) -> None:
        """Record how far its outputs are from eager's."""
        if parity.problem is None:
            self.max_abs_error, self.max_rel_error = parity.max_abs_error, parity.max_rel_error
            self.top1_agreement = parity.top1_agreement

    def add_decision(self, decision: Decision) -> None:
        """Record whether its fidelity is proven."""
        self.verdict = "accepted" if decision.accepted else "refused"
        self.reason = decision.reason
        self.accuracy, self.accuracy_drop = decision.accuracy, decision.accuracy_drop
        self.accuracy_drop_upper = decision.accuracy_drop_upper

    def add_timing(self, timing: TimingResult, speedup: Interval, eager: TimingResult) -> None:
        """Record its latency, and its speed against eager, which was timed in the same rounds."""
        self.latency_ms_p50 = timing.latency_seconds(0.5) * 1e3
        self.latency_ms_p90 = timing.latency_seconds(0.9) * 1e3
        self.latency_ms_p99 = timing.latency_seconds(0.99) * 1e3
        self.speedup, self.speedup_interval = speedup.estimate, (speedup.low, speedup.high)
        self.unsteady_range = unsteady_range(eager, timing, speedup)

    def speed(self) -> str:
        """How fast it is, in words, once it was timed: a factor, or where its rounds disagree their range."""
        if self.unsteady_range is not None:
            return f"timing is unsteady: {factor_range(*self.unsteady_range)} the speed of eager in single rounds"
        return f"{factor(self.speedup or 1.0, self.speedup_interval)} the speed of eager"

    def to_json(self) -> dict[str, Any]:
        """Its fields that are known."""
        known = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in known.items() if value is not None
        }


@dataclass(frozen=True, kw_only=True)
class OptimizeResult:
    """The outcome of a search.

    Attributes:
        artifact: Folder of the saved artifact.
        batch_size: Samples a call in the timing.
        max_drop: The budget for the accuracy.
        candidates: Every one, eager first.
        num_test_samples: What the accuracy was judged on.
        notes: What a reader of the figures should know.
    """

    artifact: Path
    batch_size: int
    max_drop: float
    num_test_samples: int
    candidates: tuple[CandidateResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> CandidateResult:
        """The candidate in the artifact."""
        return next(candidate for candidate in self.candidates if candidate.verdict == "chosen")

    @property
    def eager(self) -> CandidateResult:
        """The reference."""
        return next(candidate for candidate in self.candidates if candidate.name == "eager")

    def to_json(self) -> dict[str, Any]:
        """The "optimize" object of `result.json`."""
        chosen = self.chosen
        return {
            "artifact": str(self.artifact),
            "backend": chosen.name,
            "reason": chosen.reason,
            "latency_ms_p50": chosen.latency_ms_p50,
            "eager_latency_ms_p50": self.eager.latency_ms_p50,
            "speedup": chosen.speedup,
            "speedup_interval": list(chosen.speedup_interval or (1.0, 1.0)),
            "unsteady_range": list(chosen.unsteady_range) if chosen.unsteady_range else None,
            "accuracy_drop": chosen.accuracy_drop,
            "batch_size": self.batch_size,
            "max_drop": self.max_drop,
            "num_test_samples": self.num_test_samples,
            "notes": list(self.notes),
            "candidates": [candidate.to_json() for candidate in self.candidates],
        }
