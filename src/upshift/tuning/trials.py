"""What became of each candidate: the evidence that a plan carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

UNDECIDED = "tuning ended before it was decided"
UNEXPLAINED = "its gradients differ by more than round-off mostly does, and there was no time for a closer look"
SWITCHING = "no gain was seen that pays for switching to it and back, which costs more than may be lost"
TOO_DEAR = (UNEXPLAINED, SWITCHING)
"""Reasons for which a candidate was refused that a longer training may not have."""
OPEN = (UNDECIDED, *TOO_DEAR)
"""Reasons for which a candidate was refused that say nothing of it: with more time it may be adopted."""
NO_LONGER_PROPOSED = "it attacks nothing that is left in the plan as it has become"
PRESENT, REFUSED_BEFORE = "the plan has it already", "the same plan was refused before"
FAILED_BEFORE = "it failed after it was adopted"
GAINS_NOTHING = (NO_LONGER_PROPOSED, PRESENT, REFUSED_BEFORE, FAILED_BEFORE)
"""Reasons for which a candidate would not be tried with more time either."""
Verdict = Literal["adopted", "refused", "failed", "not tried", "demoted"]
ConfirmationVerdict = Literal["confirmed", "not confirmed", "refuted"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate.

    Attributes:
        name: For people.
        changes: The fields of the plan that it changes.
        tier: "A": the same mathematics; "B": changed numerics.
        verdict: "adopted" into the plan; "refused" as not faster or not faithful; "failed" with an error; "not tried"
            as it could not pay for itself; "demoted" after it was adopted.
        reason: Why.
        expected_gain: Share of the step's time that it was expected to save.
        expected_seconds: What trying it was expected to cost.
        build_seconds: Until its first gradients were there: compiling, converting.
        seconds: What trying it cost: checks, switches, and steps slower than the plan's before.
        speedup: Of the steps, beside the plan that it challenged.
        speedup_interval: 95 %, over all looks at the data.
        num_rounds: Pairs of live blocks that it was timed on.
        gradient_error: Relative deviation from plain fp32 gradients on the same batch.
        gradient_noise: The same measure of the noise between batches.
        num_operators: Of a step, where it was compiled.
        step: When it was decided.
    """

    name: str
    changes: Mapping[str, Any]
    tier: str
    verdict: Verdict
    reason: str
    expected_gain: float
    expected_seconds: float
    step: int
    build_seconds: float | None = None
    seconds: float = 0.0
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None
    num_rounds: int = 0
    gradient_error: float | None = None
    gradient_noise: float | None = None
    num_operators: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_decided(self) -> bool:
        """Whether there is nothing to be gained by trying it once more in the same job."""
        return self.verdict in ("adopted", "refused", "failed") and self.reason not in OPEN

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}, {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """The trial as a JSON object, without what is not known of it."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != {}}


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """What came of racing the plan that was found against the first one, once more.

    A plan is adopted change by change, each by a duel that it won; of many that are tried, those win first whose rounds
    were lucky, so that the product of their ratios is too good. Fresh rounds have no such bias.

    Attributes:
        verdict: "confirmed": proven faster again; "not confirmed": not proven again, or not raced, and kept;
            "refuted": no faster, and dropped.
        reason: In words.
        speedup: Of a step with its wait for data, beside the first plan; None if not raced.
        speedup_interval: 95 %.
        num_rounds: Pairs of live blocks that they rest on.
    """

    verdict: ConfirmationVerdict
    reason: str
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None
    num_rounds: int = 0

    def to_json(self) -> dict[str, Any]:
        """The confirmation as a JSON object."""
        return asdict(self)
