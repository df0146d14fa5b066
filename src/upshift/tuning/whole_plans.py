"""Plans as candidates: all their fields at once, in place of one change after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

from upshift.errors import BadInputError
from upshift.tuning.candidates import Candidate, Job
from upshift.tuning.config import KnownPlan
from upshift.tuning.plan import EVIDENCE, Plan

COMPILE_SECONDS = 20.0
HANDED_OVER = "the plan handed over"
NOT_EXECUTED = ("device", *EVIDENCE)


def differences(plan: Plan, base: Plan) -> dict[str, Any]:
    """The fields that execution depends on in which a plan differs from another."""
    names = [field.name for field in fields(Plan) if field.name not in NOT_EXECUTED]
    if plan.fused_optimizer is None:  # it leaves the optimizer as it is
        names.remove("fused_optimizer")
    return {name: getattr(plan, name) for name in names if getattr(plan, name) != getattr(base, name)}


def known_candidate(known: KnownPlan, base: Plan) -> Candidate:
    """The plan that an earlier run of the same job found."""
    adopted = [
        trial.get("name")
        for trial in known.plan.trials
        if trial.get("verdict") == "adopted" and trial.get("tier") != "C"
    ]
    names = " + ".join(str(name).split(", known")[0] for name in adopted) or "the plan"
    return _candidate(
        f"{names}, known from an earlier run",
        known.plan,
        base,
        gain=max(0.0, 1.0 - 1.0 / known.speedup),
        build_seconds=known.build_seconds,
        reason="the same job on the same machine",
    )


def handed_over_candidate(plan: Plan, base: Plan, origin: str) -> Candidate:
    """A plan that has to prove itself here.

    Args:
        plan: The plan.
        base: What training begins with.
        origin: What is different here, as in "was measured on another machine".
    """
    return _candidate(
        HANDED_OVER,
        plan,
        base,
        gain=0.3,
        build_seconds=COMPILE_SECONDS if plan.compile != "none" else 0.0,
        reason=f"it {origin}",
    )


def first_candidate(first: Plan, tuned: Plan) -> Candidate:
    """The plan that training began with, against the tuned one that became slow."""
    return _candidate("the first plan again", first, tuned, gain=0.3, build_seconds=0.0, reason="the tuned one is slow")


def tier_of(changes: Mapping[str, Any]) -> Literal["A", "B"]:
    """Of changes of a plan: "B" where they change the numerics."""
    return "B" if changes.get("precision", "fp32") != "fp32" else "A"


def fitted(plan: Plan, job: Job) -> Plan:
    """A whole plan without what a job rules out: each size of images would be compiled anew."""
    return replace(plan, compile="none", compile_mode=None) if job.changes_size else plan


def refused_plans(decided: Sequence[Mapping[str, Any]], first: Plan) -> list[Plan]:
    """The plans that trials, one after another from the first plan on, found to be no better than the one before."""
    plan, refused = first, []
    for trial in decided:
        try:
            tried = replace(plan, **trial["changes"])
            is_adopted = trial["verdict"] == "adopted"
        except (BadInputError, KeyError, TypeError):  # written by hand, or of another version
            continue
        if is_adopted:
            plan = tried
        else:
            refused.append(tried)
    return refused


def _candidate(name: str, plan: Plan, base: Plan, *, gain: float, build_seconds: float, reason: str) -> Candidate:
    changes = differences(plan, base)
    return Candidate(
        name=name,
        changes=changes,
        tier=tier_of(changes),
        gain=gain,
        build_seconds=build_seconds,
        reason=reason,
    )
