"""The report's section on tuning: how the plan was found, what it cost, and what it saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from upshift.core import units
from upshift.reports.bars import LEAST_SHARE, StepBar, named, step_bars
from upshift.reports.fields import Record, amount, number, record, records, sequence, text
from upshift.reports.html import Child, Html, label, scrolling_table, tag
from upshift.reports.profile_facts import NOISE, Part, brief, is_looked_into, parts_of, percent
from upshift.reports.records import RunRecords
from upshift.reports.tuned import adopted_names, algorithm_sentence, rests_on_record, spent_sentence, why_plain

LOOKS = {"adopted": "chosen", "refused": "refused", "failed": "failed", "demoted": "failed"}
SIGNS = {"adopted": "✓", "refused": "–", "failed": "✗", "demoted": "✗", "not tried": "·"}
FIGURES = ("Speedup", "Gradient error", "Cost")
WHOSE_STEP = {"Before": "the plan that training began with", "After": "the plan that tuning came to"}
CEILINGS = (
    ("Without waiting for data", "synthetic_samples_per_second"),
    ("The loader alone", "loader_samples_per_second"),
)
ABOUT_ERRORS = (
    " A gradient error is how far a candidate’s gradient lies from that of plain fp32, as a share of its length, beside"
    " the noise that the gradient has anyway, as a batch is only a sample of the data."
)


def tuning(run: RunRecords) -> Html | None:
    """The candidates and what became of them; None where the plan was given."""
    account, changed = record(run.result, "tuning"), algorithm_sentence(run.result)
    if not account and not changed:
        return None
    trials = records(record(run.result, "plan"), "trials")
    return tag(
        "section",
        tag("h2", "Tuning"),
        tag("p", tag("strong", "Algorithm:"), f" {changed}.") if changed else None,
        tag("p", _outcome(account, trials)) if account else None,
        _where_time_goes(account) if account else None,
        _table(trials) if trials else None,
    )


def _outcome(account: Record, trials: Sequence[Record]) -> list[Child]:
    adopted = adopted_names(trials)
    seconds, saved, net = (number(account, name) for name in ("seconds", "saved_seconds", "net_seconds"))
    if not adopted:
        return [f"The steps were made by the plain plan: {why_plain(account, trials)}.{spent_sentence(account)}"]
    parts: list[Child] = [tag("strong", label(", ".join(adopted)))]
    parts.append(" made the steps faster, found while training: every step that timed a candidate was a training step.")
    if seconds is not None and saved is not None and net is not None:
        is_confirmed = text(record(account, "confirmation"), "verdict") == "confirmed"
        counted = "the confirmed speedup" if is_confirmed else "the speedups below"
        if rests_on_record(account):
            counted = "what the plan gained when it was found"
        sign = "won" if net >= 0 else "lost"
        parts.append(
            f" {units.duration(seconds)} went into checks, switches and slower steps,"
            f" about {units.duration(saved)} were saved, by {counted}: {units.duration(abs(net))} {sign}."
        )
    if said := _confirmed(record(account, "confirmation")):
        parts.append(said)
    if account.get("from_cache") is True:
        parts.append(" It began with the plan of an earlier run of the same job on this machine.")
    return parts


def _confirmed(confirmation: Record) -> str:
    """What racing the plan against the first one once more came to."""
    verdict, reason = text(confirmation, "verdict"), text(confirmation, "reason")
    if verdict == "confirmed":
        return f" At the end it was confirmed against the plain plan: {reason}."
    return f" It was not confirmed against the plain plan at the end: {reason}." if verdict else ""


def _where_time_goes(account: Record) -> Html | None:
    """A step before and after tuning: two bars, and a table of what each is made of."""
    splits = [(name, record(account, field)) for name, field in (("Before", "split"), ("After", "last_split"))]
    steps = [Step(name, split, parts_of(split)) for name, split in splits if amount(split, "seconds")]
    bars = step_bars([StepBar(f"{step.name} tuning" if len(steps) > 1 else "", step.parts) for step in steps])
    if bars is None:
        return None
    head = tag("tr", tag("th", "A step", scope="col"), [tag("th", step.name, scope="col") for step in steps])
    fields = {part.field: part for step in steps for part in step.parts if part.share >= LEAST_SHARE}
    body = [
        _values("All of it", [units.duration(sum(part.seconds for part in step.parts)) for step in steps]),
        *(_values(named(part), [step.share_of(field) for step in steps]) for field, part in fields.items()),
        _values("Bound by", [text(step.split, "bound_by") if is_looked_into(step.split) else "" for step in steps]),
        *(_values(title, [_ceiling(step.split, field) for step in steps]) for title, field in CEILINGS),
    ]
    said = ", and of ".join(WHOSE_STEP[step.name] for step in steps)
    return tag(
        "div",
        tag("figure", bars, tag("figcaption", f"A step of {said}.")),
        tag("table", tag("thead", head), tag("tbody", body), class_="numbers"),
        class_="beside",
    )


@dataclass(frozen=True)
class Step:
    """A step that was looked at.

    Attributes:
        name: "Before" or "After".
        split: Of the record.
        parts: What it is made of.
    """

    name: str
    split: Record
    parts: Sequence[Part]

    def share_of(self, field: str) -> str:
        """The time of a part and its share."""
        part = next((part for part in self.parts if part.field == field and part.share >= LEAST_SHARE), None)
        return f"{brief(part.seconds)}, {percent(part.share)}" if part is not None else ""


def _values(name: Child, values: Sequence[str]) -> Html | None:
    """A row of the table; None where it would be empty."""
    if not any(values):
        return None
    return tag("tr", tag("th", name, scope="row"), [tag("td", value or units.MISSING) for value in values])


def _ceiling(split: Record, field: str) -> str:
    speed, reached = amount(split, field), amount(split, "samples_per_second") or 0.0
    if speed is None:
        return ""
    return units.rate(speed) if speed > NOISE * reached else "as fast"


def _table(trials: Sequence[Record]) -> Html:
    names = ("Candidate", "Verdict", *FIGURES, "Reason")
    head = tag("tr", [tag("th", name, scope="col", class_="number" if name in FIGURES else None) for name in names])
    rows = [_row(trial) for trial in trials]
    said = "Every candidate and what became of it."
    if any(amount(trial, "gradient_error") is not None for trial in trials):
        said += ABOUT_ERRORS
    return scrolling_table(said, head, rows, name="Tuning", class_="candidates")


def _row(trial: Record) -> Html:
    verdict = text(trial, "verdict")
    speedup, seconds, error = number(trial, "speedup"), amount(trial, "seconds"), amount(trial, "gradient_error")
    ends = [float(end) for end in sequence(trial, "speedup_interval") if isinstance(end, int | float)]
    interval = (ends[0], ends[1]) if len(ends) == 2 else None
    noise = amount(trial, "gradient_noise")
    figures: list[list[Child]] = [
        [
            units.MISSING if speedup is None else units.factor(speedup, interval),
            tag("small", units.factor_range(*interval)) if interval else None,
        ],
        [
            units.MISSING if error is None else units.significant(error, 2),
            tag("small", f"beside noise of {units.significant(noise, 2)}") if noise is not None else None,
        ],
        [units.MISSING if not seconds else units.duration(seconds)],
    ]
    sign = tag("span", SIGNS.get(verdict, ""), aria_hidden="true", class_="sign")
    look = LOOKS.get(verdict)
    return tag(
        "tr",
        tag("th", label(text(trial, "name")), scope="row"),
        tag("td", tag("span", sign, " ", verdict, class_=f"verdict {look or ''}".strip())),
        [tag("td", figure, class_="number", data_label=name) for name, figure in zip(FIGURES, figures, strict=True)],
        tag("td", label(text(trial, "reason")), class_="reason"),
        class_=look,
    )
