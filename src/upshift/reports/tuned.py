"""The tuning of a training as lines of text: what was gained, what it cost, and every candidate with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upshift.core import units
from upshift.reports.fields import Record, amount, count, number, record, records, sequence, text
from upshift.reports.lines import EMPTY, Line, columns, wrapped
from upshift.reports.profile_facts import NOISE, is_looked_into, parts_of, percent

FIRST_AGAIN = "the first plan again"
LEAST_SECONDS = 0.05
"""That are worth telling."""
PLAIN_SETTINGS: Mapping[str, Any] = {
    "precision": "fp32",
    "memory_format": "contiguous",
    "compile": "none",
    "compile_mode": None,
    "activation_checkpointing": False,
    "num_threads": None,
    "micro_batch_size": None,
    "num_workers": 0,
    "keep_freed_memory": False,
}
"""Of a plan by which steps are plain."""
STYLES = {"adopted": "bold green", "refused": "", "failed": "yellow", "demoted": "yellow", "not tried": "dim"}


def tuning_lines(result: Mapping[str, Any], *, width: int | None = None) -> list[Line]:
    """What `tune` found.

    Args:
        result: Its result.
        width: Columns to wrap at; None for whole lines.
    """
    speedup = number(result, "speedup")
    lines = wrapped(f"  {text(result, 'recipe')}: {_gain(speedup)}", indent="  ", style="bold", width=width)
    if said := algorithm_sentence(result):
        lines += wrapped(f"  {said}", indent="  ", style="yellow", width=width)
    lines += [EMPTY, *trial_lines(records(record(result, "plan"), "trials"), width=width)]
    splits = [("before", "split"), ("after", "last_split")]
    told = [(name, said) for name, field in splits if (said := split_sentence(record(result, "tuning"), field))]
    lines += [EMPTY] if told else []
    for name, said in told:
        lines += wrapped(f"  {name + ':':<7} {said}", indent="  ", width=width)
    lines += _limit(record(record(result, "tuning"), "limit"), width)
    notes = [note for note in sequence(result, "notes") if isinstance(note, str)]
    lines += [line for note in notes for line in wrapped(f"! {note}", indent="  ", style="yellow", width=width)]
    if path := text(result, "path"):
        lines += [EMPTY, Line(units.plain(f"plan  {path}"), "bold")]
    return lines


def _limit(limit: Record, width: int | None) -> list[Line]:
    share, by = number(limit, "share"), text(limit, "limited_by")
    if share is None:
        return []
    said = f"a step comes to {units.percent(min(share, 1.0))} of what {by} on this machine allows"
    return [EMPTY, *wrapped(f"  {said}", indent="  ", width=width)]


def _gain(speedup: float | None) -> str:
    if speedup is None or speedup <= 1.0:
        return "the plain plan is the fastest here"
    return f"steps are {units.factor(speedup)} faster than by the plain plan"


def tuning_fact(result: Record) -> tuple[str, str, str] | None:
    """What tuning came to in a training, or the plan that was given: a name, a value, and what there is to say of it.

    None where neither is of any account.
    """
    tuning = record(result, "tuning")
    net, seconds = number(tuning, "net_seconds"), number(tuning, "seconds")
    if net is None or seconds is None:
        plan = record(result, "plan")
        given = [f"{name}={plan[name]}" for name, plain in PLAIN_SETTINGS.items() if plan.get(name, plain) != plain]
        return ("plan", "given", ", ".join(given)) if given else None
    trials = records(record(result, "plan"), "trials")
    adopted = adopted_names(trials)
    if not adopted:
        return "plan", "plain", f"{why_plain(tuning, trials)}.{spent_sentence(tuning)}".removesuffix(".")
    saved = f"{units.duration(seconds)} spent on tuning, about {units.duration(net + seconds)} saved"
    if rests_on_record(tuning):
        saved += ", by what the plan gained when it was found"
    return "plan", "tuned", f"{', '.join(adopted)}: {saved}"


def algorithm_fact(result: Record) -> tuple[str, str, str] | None:
    """What was changed of the algorithm: a name, a value, and how; None where nothing was allowed."""
    said = algorithm_sentence(result)
    adopted = record(result, "algorithm").get("adopted") is True
    return ("algorithm", "changed" if adopted else "as it was", said) if said else None


def algorithm_sentence(result: Record) -> str:
    """What was changed of what is learnt, as it was allowed."""
    changed = record(result, "algorithm")
    rates = record(changed, "rates")
    sizes = [count(changed, "batch_size"), count(changed, "new_batch_size")]
    before, after = (amount(rates, str(size)) for size in sizes)
    if changed.get("adopted") is not True:
        why = text(changed, "reason")
        return f"the batch stays at {sizes[0]} samples: {why}" if sizes[0] and why else ""
    if before is None or after is None:
        return ""
    rate, new_rate = amount(changed, "learning_rate"), amount(changed, "new_learning_rate")
    rates_said = f"{units.rate(before)} → {units.rate(after)}"
    found = record(changed, "speedups").get(str(sizes[1]))
    if isinstance(found, list) and len(found) == 3 and all(isinstance(end, float) for end in found):
        ends = found[1], found[2]
        rates_said += f", {units.factor(found[0], ends)}, interval {units.factor_range(*ends)}"
    said = f"batches of {sizes[1]} in place of {sizes[0]} samples ({rates_said})"
    if rate is not None and new_rate is not None:
        to = units.setting(float(f"{new_rate:.3g}"))
        said += f", learning rate {units.setting(rate)} → {to} ({text(changed, 'rule')} rule)"
    if warmup := amount(changed, "warmup_fraction"):
        said += f", warm-up over {units.percent(warmup)} of the steps"
    return f"{said}: what is learnt is no longer the recipe's"


def step_fact(result: Record) -> tuple[str, str, str] | None:
    """Where the time of a step went: a name, a value, and the parts; None without tuning.

    It is a step of the plan that trained in the end. Where only one before tuning was looked at, it is called so.
    """
    tuning = record(result, "tuning")
    before, after = (amount(record(tuning, field), "seconds") for field in ("split", "last_split"))
    if after is not None and (said := split_sentence(tuning, "last_split")):
        return "step", units.duration(after), said + (f"; {units.duration(before)} before tuning" if before else "")
    if before is None or not (said := split_sentence(tuning)):
        return None
    is_tuned = adopted_names(records(record(result, "plan"), "trials")) != []
    return "step", units.duration(before), f"before tuning: {said}" if is_tuned else said


def split_sentence(tuning: Record, field: str = "split") -> str:
    """Where the time of a step went, and what its loader and its steps could do alone.

    Args:
        tuning: The tuning part of a result.
        field: "split" for the first plan, "last_split" for the final one.
    """
    split = record(tuning, field)
    if not split:
        return ""
    parts = [f"{part.title} {percent(part.share)}" for part in parts_of(split) if part.share >= 0.005]
    said = f"bound by {text(split, 'bound_by')} ({', '.join(parts)})" if is_looked_into(split) else ", ".join(parts)
    reached = amount(split, "samples_per_second") or 0.0
    ceilings = [
        f"{title} {units.rate(speed)}"
        for title, name in (
            ("without waiting", "synthetic_samples_per_second"),
            ("the loader alone", "loader_samples_per_second"),
        )
        if (speed := amount(split, name)) is not None and speed > NOISE * reached
    ]
    return f"{said}; {', '.join(ceilings)}" if ceilings else said


def adopted_names(trials: Sequence[Record]) -> list[str]:
    """What the plan has beyond the plain one; nothing where that was taken again in the end."""
    names = [
        text(trial, "name") for trial in trials if text(trial, "verdict") == "adopted" and text(trial, "tier") != "C"
    ]
    return [] if names and names[-1] == FIRST_AGAIN else names


def why_plain(tuning: Record, trials: Sequence[Record]) -> str:
    """Why the plain plan was kept, or taken again."""
    verdicts = [text(trial, "verdict") for trial in trials]
    if "demoted" in verdicts:
        return "what was adopted before was dropped again"
    refused_before = count(tuning, "num_refused_before")
    if tuning.get("from_cache") is True and refused_before != 0:  # None in a record of an earlier version
        return "an earlier run of the same job found nothing faster"
    tried = sum(text(trial, "verdict") != "not tried" and text(trial, "tier") != "C" for trial in trials)
    if tried:
        return f"{units.counted(tried, 'candidate')} tried, none proven faster"
    if trials or tuning.get("from_cache") is True:
        return "nothing else could have paid for itself"
    return "no other plan was tried"


def rests_on_record(tuning: Record) -> bool:
    """Whether what was saved is counted by what the plan gained when an earlier run found it."""
    is_confirmed = text(record(tuning, "confirmation"), "verdict") == "confirmed"
    return tuning.get("from_cache") is True and not is_confirmed


def spent_sentence(tuning: Record) -> str:
    """What tuning cost where nothing came of it, and what steps of trials saved all the same; "" where it was free."""
    seconds, saved = amount(tuning, "seconds"), amount(tuning, "saved_seconds")
    if seconds is None or seconds < LEAST_SECONDS:
        return ""
    said = f" {units.duration(seconds)} went into checks, switches and slower steps"
    if saved is not None and saved >= LEAST_SECONDS:
        return f"{said}; steps of trials that were faster saved about {units.duration(saved)} meanwhile."
    return f"{said}, and nothing was saved."


def trial_lines(trials: Sequence[Record], *, width: int | None) -> list[Line]:
    """A table of candidates, each with its reason."""
    if not trials:
        return []
    head = ("  candidate", "speedup", "cost", "verdict")
    rows = columns([head, *(_row(trial) for trial in trials)], "<>><")
    lines = [Line(rows[0], "dim")]
    for trial, row in zip(trials, rows[1:], strict=True):
        lines.append(Line(row, STYLES.get(text(trial, "verdict"), "")))
        if reason := text(trial, "reason"):
            lines += wrapped(f"    {units.plain(reason)}", indent="    ", style="dim", width=width)
    return lines


def _row(trial: Record) -> tuple[str, ...]:
    speedup, seconds = number(trial, "speedup"), number(trial, "seconds")
    return (
        f"  {units.plain(text(trial, 'name'))}",
        units.MISSING if speedup is None else units.factor(speedup),
        units.MISSING if not seconds else units.duration(seconds),
        text(trial, "verdict"),
    )
