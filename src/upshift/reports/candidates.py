"""The `optimize` object of a result as values: the candidates, the choice, and the budget."""

from __future__ import annotations

from dataclasses import dataclass

from upshift.reports.fields import Record, amount, interval, number, record, records, text

TITLES = {
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-int8": "OpenVINO int8",
}
"""Backends as their makers write them; one that is not here keeps its name."""

VERDICT_SIGNS = {"chosen": "◆", "accepted": "○", "refused": "✕", "failed": "!"}


@dataclass(frozen=True)
class Candidate:
    """One way to run the model, and what became of it. Latencies in ms a batch, drops as shares (0.01 is a point).

    Where its rounds disagree, `unsteady_range` has the smallest and largest speedup of any, and the speedup, from their
    middle, says little.
    """

    name: str
    verdict: str
    reason: str
    speedup: float | None
    speedup_interval: tuple[float, float] | None
    accuracy: float | None
    drop: float | None
    drop_upper: float | None
    latency_ms_p50: float | None
    unsteady_range: tuple[float, float] | None
    record: Record

    @property
    def title(self) -> str:
        return backend_title(self.name)

    @property
    def sign(self) -> str:
        return VERDICT_SIGNS.get(self.verdict, "·")

    def proven_by_round_off(self, max_drop: float | None) -> bool:
        """Whether it passed though the bound of its drop exceeds the budget: its outputs are eager's."""
        passed = self.verdict in ("chosen", "accepted")
        return passed and max_drop is not None and self.drop_upper is not None and self.drop_upper > max_drop


@dataclass(frozen=True)
class Optimization:
    """What `optimize` found.

    Attributes:
        chosen: The backend of the artifact.
        max_drop: The accuracy budget, a share.
        unsteady_range: Of the chosen one, where its rounds disagree; the speedup then says little.
    """

    chosen: str
    candidates: tuple[Candidate, ...]
    speedup: float | None
    speedup_interval: tuple[float, float] | None
    latency_ms_p50: float | None
    eager_latency_ms_p50: float | None
    drop: float | None
    max_drop: float | None
    batch_size: float | None
    unsteady_range: tuple[float, float] | None
    artifact: str

    @property
    def kept_eager(self) -> bool:
        """No backend was proven faster than plain PyTorch."""
        return self.chosen == "eager"


def backend_title(name: str) -> str:
    """A backend's name as its makers write it ("openvino-int8" is "OpenVINO int8")."""
    return TITLES.get(name, name)


def read_optimization(result: Record) -> Optimization | None:
    """The optimization of a result; None where the run was not optimized, or nothing says what was chosen."""
    optimize = record(result, "optimize")
    if not text(optimize, "backend"):
        return None
    order = {"chosen": 0, "accepted": 1, "refused": 2, "failed": 3}
    candidates = sorted(
        (_candidate(item) for item in records(optimize, "candidates")),
        key=lambda candidate: (order.get(candidate.verdict, 4), -(candidate.speedup or 0)),
    )
    return Optimization(
        chosen=text(optimize, "backend"),
        candidates=tuple(candidates),
        speedup=amount(optimize, "speedup"),
        speedup_interval=interval(optimize, "speedup_interval"),
        latency_ms_p50=amount(optimize, "latency_ms_p50"),
        eager_latency_ms_p50=amount(optimize, "eager_latency_ms_p50"),
        drop=number(optimize, "accuracy_drop"),
        max_drop=number(optimize, "max_drop"),
        batch_size=amount(optimize, "batch_size"),
        unsteady_range=interval(optimize, "unsteady_range"),
        artifact=text(optimize, "artifact"),
    )


def _candidate(item: Record) -> Candidate:
    return Candidate(
        name=text(item, "name"),
        verdict=text(item, "verdict"),
        reason=text(item, "reason"),
        speedup=amount(item, "speedup"),
        speedup_interval=interval(item, "speedup_interval"),
        accuracy=number(item, "accuracy"),
        drop=number(item, "accuracy_drop"),
        drop_upper=number(item, "accuracy_drop_upper"),
        latency_ms_p50=amount(item, "latency_ms_p50"),
        unsteady_range=interval(item, "unsteady_range"),
        record=item,
    )
