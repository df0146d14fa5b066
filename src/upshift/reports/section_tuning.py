"""The report's section on tuning: how the plan was found, what it cost, and what it saved."""

from __future__ import annotations

from collections.abc import Sequence

from upshift.core import units
from upshift.reports.fields import Record, amount, number, record, records, sequence, text
from upshift.reports.html import Child, Html, label, scrolling_table, tag
from upshift.reports.records import RunRecords
from upshift.reports.tuned import adopted_names, algorithm_sentence, spent_sentence, split_sentence, why_plain

LOOKS = {"adopted": "chosen", "refused": "refused", "failed": "failed", "demoted": "failed"}
SIGNS = {"adopted": "✓", "refused": "–", "failed": "✗", "demoted": "✗", "not tried": "·"}
FIGURES = ("Speedup", "Gradient error", "Cost")


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
        tag("p", _where_time_goes(account)) if account else None,
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


def _where_time_goes(account: Record) -> str:
    first, last, waits = (amount(account, name) for name in ("first_step_seconds", "step_seconds", "data_seconds"))
    if first is None:
        return ""
    milliseconds = f"{units.milliseconds(first * 1e3)}{units.SPACE}ms"
    said = f"At the beginning a step took {milliseconds} by the plain plan"
    if waits is not None:
        said += f", and {units.milliseconds(waits * 1e3)}{units.SPACE}ms of waiting for its batch"
    if last is not None and last < first:
        said += f"; it took {units.milliseconds(last * 1e3)}{units.SPACE}ms by the tuned one"
    said += "."
    if split := split_sentence(account):
        said += f" By the plain plan a step was {split}." if split.startswith("bound") else f" {split}."
    if split := split_sentence(account, "last_split"):
        said += f" By the tuned plan it is {split}." if split.startswith("bound") else f" By the tuned plan, {split}."
    return said


def _table(trials: Sequence[Record]) -> Html:
    names = ("Candidate", "Verdict", *FIGURES, "Reason")
    head = tag("tr", [tag("th", name, scope="col", class_="number" if name in FIGURES else None) for name in names])
    rows = [_row(trial) for trial in trials]
    return scrolling_table("Every candidate and what became of it", head, rows, name="Tuning", class_="candidates")


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
            tag("small", f"noise {units.significant(noise, 2)}") if noise is not None else None,
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
