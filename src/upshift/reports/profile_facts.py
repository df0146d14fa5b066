"""What profile.json says, in the words that the terminal and the page share."""

from __future__ import annotations

from dataclasses import dataclass

from upshift.core import units
from upshift.reports.fields import Record, amount, count, number, record, records, text

PARTS = {
    "device_compute": "computing",
    "host_overhead": "overhead",
    "data_wait": "waiting for data",
    "synchronization": "reading values back",
    "communication": "between processes",
}
"""Parts of a step by their field, in the order in which they are shown."""
UNTOLD = "the step itself (not looked into)"
"""What is not waiting for data, where nobody told computing and overhead apart."""
NOISE = 1.05
"""Times the training's speed: what was timed in other steps, and is no faster than this, is not known to differ."""
LARGEST_NOISE = 1.15
"""Times by which a ceiling may come out below the training's speed and still be called the same."""


@dataclass(frozen=True)
class Part:
    """A part of a step.

    Attributes:
        field: Its name in the record.
        title: Its name for people.
        seconds: Of a step.
        share: Of the whole step.
    """

    field: str
    title: str
    seconds: float
    share: float


def parts_of(breakdown: Record) -> list[Part]:
    """The parts of a step; without communication where there is one process.

    Of a step that nobody looked into, all but the wait for its data is one part.
    """
    seconds = {field: amount(breakdown, field) or 0.0 for field in PARTS}
    total = sum(seconds.values()) or 1.0
    if not is_looked_into(breakdown):
        waited = seconds["data_wait"]
        rest = total - waited if any(seconds.values()) else 0.0
        return [
            Part("untold", UNTOLD, rest, rest / total),
            Part("data_wait", PARTS["data_wait"], waited, waited / total),
        ]
    shown = [field for field in PARTS if field != "communication" or seconds[field] > 0]
    return [Part(field, PARTS[field], seconds[field], seconds[field] / total) for field in shown]


def is_looked_into(breakdown: Record) -> bool:
    """Whether the operators of the step were seen; that of a tuning says so, and that of a profile always is."""
    return breakdown.get("looked_into", True) is True


def verdict(profile: Record) -> str:
    """One sentence: how fast it trains, and what it is bound by."""
    breakdown = record(profile, "breakdown")
    speed, bound = amount(breakdown, "samples_per_second"), text(breakdown, "bound_by")
    size, seconds = count(breakdown, "batch_size"), amount(breakdown, "seconds")
    if speed is None or size is None or seconds is None:
        return "The step could not be measured."
    step = f"a step of {units.counted(size, 'sample')} takes {units.duration(seconds)}"
    return f"{units.rate(speed)}: {step}, bound by {bound}"


def ceilings(breakdown: Record) -> list[tuple[str, str]]:
    """What the loader and the step could do alone, with what it means beside the training's speed."""
    speed = amount(breakdown, "samples_per_second")
    found = []
    for field, title in (
        ("loader_samples_per_second", "loader alone"),
        ("synthetic_samples_per_second", "step alone, on one batch"),
    ):
        ceiling = amount(breakdown, field)
        if ceiling is None or not speed:
            continue
        # Timed in other steps than the training, it can come out below the speed that it is a ceiling of.
        if ceiling > NOISE * speed:
            said = f"{units.rate(ceiling)}, {units.factor(ceiling / speed)} the training's speed"
        elif ceiling > speed / LARGEST_NOISE:
            said = "as fast as the training, within noise"
        else:
            said = "unknown: timed slower than within the training, as the machine was unsteady"
        found.append((title, said))
    return found


def memory_sentence(memory: Record) -> str:
    """The peak and what it is made of."""
    peak = count(memory, "peak")
    if peak is None:
        return ""
    by_phase = record(memory, "peak_by_phase")
    phases = ", ".join(f"{phase} {units.size(count(by_phase, phase) or 0)}" for phase in by_phase)
    kept = [
        f"{title} {units.size(size)}"
        for field, title in (
            ("parameters", "weights"),
            ("gradients", "gradients"),
            ("optimizer_state", "optimizer state"),
        )
        if (size := count(memory, field))
    ]
    return f"{units.size(peak)} at the peak ({phases}); {', '.join(kept)}"


def share_of_limit(row: Record) -> str:
    """How near an operator comes to the machine's limit, and which one that is."""
    share = number(row, "share_of_limit")
    if share is None:
        return units.MISSING
    if share > 1:
        return "in caches" if text(row, "limited_by") == "memory bandwidth" else units.percent(1.0)
    return f"{percent(share)} of {text(row, 'limited_by')}"


def percent(share: float) -> str:
    """A measured share: no more than a tenth of a per cent is known of it."""
    if 0 < share < 0.0005:
        return f"<0.1{units.SPACE}%"
    return f"{share * 100:.{1 if share < 0.0995 else 0}f}{units.SPACE}%"


def brief(seconds: float | None) -> str:
    """A time of an operator: in µs below a millisecond; nothing where it is less than a tenth of one."""
    if seconds is None or seconds < 1e-7:
        return units.MISSING
    return f"{units.significant(seconds * 1e6, 2)}{units.SPACE}µs" if seconds < 1e-3 else units.duration(seconds)


def gain(speedup: float) -> str:
    """A predicted speedup, with the digits that tell a small one from none."""
    return f"{units.significant(speedup, 3 if speedup < 1.1 else 2)}×"


def prediction(advice: Record) -> str:
    """What an advice is predicted to gain, and what that rests on."""
    spared, speedup, basis = amount(advice, "spared_seconds"), amount(advice, "speedup"), text(advice, "basis")
    if spared is None or speedup is None:
        return f"gain unknown: {basis}"
    limit = "up to " if advice.get("is_bound") is True else ""
    return f"{limit}{brief(spared)} a step spared, {limit}{gain(speedup)} the speed ({basis})"


def advices(profile: Record) -> list[Record]:
    """The advice, best first."""
    return records(profile, "advice")
