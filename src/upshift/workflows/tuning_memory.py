"""What a tuner has found so far, as a document: later runs of the job, and one that is resumed, begin with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upshift.core.files import read_json
from upshift.core.records import RunFolder
from upshift.errors import ArtifactError, BadInputError
from upshift.tuning.config import KnownPlan
from upshift.tuning.known_plan import refused_beside_first
from upshift.tuning.plan import Plan, plan_from_json
from upshift.tuning.stopwatch import Measured
from upshift.tuning.trials import Trial
from upshift.tuning.tuner import Tuner
from upshift.tuning.whole_plans import differences


def to_document(tuner: Tuner, plan: Plan) -> dict[str, Any] | None:
    """A tuner's plan with what is known of it; None where there is nothing yet.

    Args:
        tuner: At its end, or on its way: the document says which.
        plan: Its plan, with the evidence for it.
    """
    ledger = tuner.ledger
    made = [trial for trial in ledger.trials if trial.verdict != "not tried"]
    if ledger.step is None or not (made or tuner.is_complete):
        return None
    disturbed, before = tuner.was_disturbed, tuner.decided_before
    was_dropped = ledger.was_demoted or _gave_way(tuner, made)
    decided = [trial.to_json() for trial in made if _is_settled(trial, disturbed) and not (before and _is_known(trial))]
    return {
        "plan": plan.to_json(),
        **_figures(tuner, ledger.step),
        "untried_seconds": ledger.untried_seconds,
        "build_seconds": (ledger.build_seconds_before if ledger.plan != ledger.first_plan else 0.0)
        + sum(trial.build_seconds or 0.0 for trial in made if trial.verdict == "adopted"),
        # A plan that was dropped may have failed, or been slow, by chance: it is found anew. What a budget left out,
        # or other programs kept from being proven, is for later runs.
        "complete": tuner.is_complete and not was_dropped and not ledger.ran_out and not disturbed,
        # Those that were refused on top of a plan which was dropped then say nothing of the first one.
        "decided": [] if was_dropped else [*before, *decided],
    }


def _gave_way(tuner: Tuner, made: list[Trial]) -> bool:
    """Whether a plan that was found, by this run or the one that it goes on with, was dropped for the first one."""
    ledger = tuner.ledger
    if ledger.confirmation is not None and ledger.confirmation.verdict == "refuted":
        return True
    found_before = any(trial.get("verdict") == "adopted" for trial in tuner.decided_before)
    return any(trial.verdict == "demoted" for trial in made) or (found_before and ledger.plan == ledger.first_plan)


def _figures(tuner: Tuner, step: Measured) -> dict[str, float]:
    """What a step takes, and how much faster it is: as it was recorded, until it is proven to be otherwise.

    The few steps by which a known plan is looked at are no better a record than the one that it was found by: taken
    anew by each run, the figures would drift with what else the machine does.
    """
    ledger, recall = tuner.ledger, tuner.recall
    is_confirmed = ledger.confirmation is not None and ledger.confirmation.verdict == "confirmed"
    if recall is not None and recall.was_taken and not is_confirmed and not differences(recall.known.plan, tuner.plan):
        recorded = recall.known
        step = Measured(recorded.step_seconds, recorded.data_seconds)
        return {"step_seconds": step.step_seconds, "data_seconds": step.data_seconds, "speedup": recorded.speedup}
    return {"step_seconds": step.step_seconds, "data_seconds": step.data_seconds, "speedup": ledger.speedup}


def kept_document(earlier: Mapping[str, Any] | None, document: dict[str, Any], tuner: Tuner) -> dict[str, Any]:
    """What later runs of the job are to begin with: a plan that was proven gives way to proof alone.

    A run that was too short to build it, or too busy to time it, says nothing of it.

    Args:
        earlier: What an earlier run left; None where there is none.
        document: What this one has found.
        tuner: Of this run.
    """
    known, first = from_document(earlier), tuner.ledger.first_plan
    if earlier is None or known is None or not differences(known.plan, first):
        return document
    is_same = not differences(tuner.plan, known.plan)
    if is_same or _is_proven_faster(tuner, known) or _is_decided_against(tuner, known):
        return document
    # The known plan was found from the first one as well: what was refused beside that is of use to later runs.
    tried = [trial.get("changes") for trial in refused_beside_first(known.decided)]
    new = [trial for trial in refused_beside_first(document["decided"]) if trial.get("changes") not in tried]
    return {**earlier, "decided": [*new, *known.decided]}


def _is_proven_faster(tuner: Tuner, known: KnownPlan) -> bool:
    """Whether the plan that a run found is proven to be faster than one that it did not race, beside the same plan."""
    found, is_another = tuner.ledger.confirmation, differences(tuner.plan, tuner.ledger.first_plan)
    if found is None or found.verdict != "confirmed" or found.speedup_interval is None:
        return False
    return bool(is_another) and found.speedup_interval[0] > known.speedup


def _is_decided_against(tuner: Tuner, known: KnownPlan) -> bool:
    """Whether a run has shown that later ones should not begin with a plan that was proven before."""
    ledger, recall, disturbed = tuner.ledger, tuner.recall, tuner.was_disturbed
    changes = differences(known.plan, ledger.first_plan)
    trials = [trial for trial in ledger.trials if dict(trial.changes) == changes]
    if ledger.has_failed(known.plan) or any(_is_settled(trial, disturbed) for trial in trials):
        return True
    found = ledger.confirmation
    refuted = found if found is not None and found.verdict == "refuted" else None
    if refuted is not None and not _is_proven_no_faster(refuted.speedup_interval):
        return False  # no gain was seen, and one may be there
    if recall is None:  # all was raced anew
        return tuner.is_complete and ledger.untried_seconds is None and not ledger.ran_out and not disturbed
    # A run that is resumed begins with the plan of its folder, which may be another one.
    was_taken = recall.was_taken and not differences(recall.known.plan, known.plan)
    was_in_use = was_taken or any(trial.verdict == "demoted" for trial in trials)
    return was_in_use and (refuted is not None or not disturbed)  # it lost its place


def _is_settled(trial: Trial, disturbed: bool) -> bool:
    """Whether there is nothing to be gained by trying it once more; where other programs disturbed, that is proven."""
    if not disturbed or trial.verdict != "refused" or not trial.num_rounds:
        return trial.is_decided
    return _is_proven_no_faster(trial.speedup_interval)


def _is_proven_no_faster(speedup_interval: tuple[float, float] | None) -> bool:
    return speedup_interval is not None and speedup_interval[1] <= 1.0


def _is_known(trial: Trial) -> bool:
    """Whether it is what an earlier run adopted, and has told of."""
    return trial.verdict == "adopted" and not trial.num_rounds


def from_document(document: Mapping[str, Any] | None) -> KnownPlan | None:
    """The plan of a document; None where it is no such document, or not for this machine."""
    if document is None:
        return None
    try:
        plan = plan_from_json(document["plan"])
        plan.check_device()
        numbers = {name: document[name] for name in ("step_seconds", "data_seconds", "speedup", "build_seconds")}
        return KnownPlan(
            plan=plan,
            **numbers,
            untried_seconds=document.get("untried_seconds"),
            is_complete=document.get("complete", True),
            decided=tuple(document.get("decided", ())),
        )
    except (BadInputError, KeyError, TypeError):
        return None  # of an earlier version of upshift, or written by hand: it is found anew, and replaced


def account_in(folder: RunFolder) -> dict[str, Any] | None:
    """What the tuning of a run came to, for its result; None where there was none."""
    if not folder.tuning.is_file():
        return None
    try:
        account = read_json(folder.tuning, kind="a run's tuning").get("account")
    except ArtifactError:
        return None
    return account if isinstance(account, dict) else None


def interrupted_in(folder: RunFolder) -> KnownPlan | None:
    """What the tuning of a run had found when the run was stopped; None where it had come to its end, or not begun."""
    if not folder.tuning.is_file():
        return None
    try:
        document = read_json(folder.tuning, kind="a run's tuning")
    except ArtifactError:
        return None
    known = from_document(document)
    return known if known is not None and not known.is_complete else None
