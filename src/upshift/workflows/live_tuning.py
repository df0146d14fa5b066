"""The tuner of a training: what it starts from, and what is kept of what it finds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upshift.core import environment
from upshift.core.cache import TuningCache
from upshift.core.environment import num_usable_cores
from upshift.core.files import finite, write_bytes, write_json
from upshift.core.limits import Limits, known_limits, limits
from upshift.core.records import RunFolder
from upshift.core.roofline import share_of_limit
from upshift.core.slowdowns import slowdown_counts, slowdowns
from upshift.core.typed_fields import to_json
from upshift.data.dataset import PackedDataset
from upshift.data.loaders import Loader, free_memory_bytes
from upshift.data.rates import DataRates, data_rates, known_data_rates
from upshift.data.torch_datasets import TorchDataset
from upshift.errors import StorageError
from upshift.tuning.batch_size import ChangedAlgorithm
from upshift.tuning.candidates import Job, job_of
from upshift.tuning.config import KnownPlan, TunerConfig
from upshift.tuning.plan import BASELINE, Plan, load_plan, read_plan
from upshift.tuning.subject import is_of_another, subject_of
from upshift.tuning.trials import Trial
from upshift.tuning.tuner import Tuner
from upshift.tuning.whole_plans import HANDED_OVER
from upshift.workflows.datasets import make_train_loader
from upshift.workflows.preparation import Prepared
from upshift.workflows.tuning_memory import account_in, from_document, interrupted_in, kept_document, to_document

AUTO = "auto"
WORTHWHILE = 1.3


@dataclass(frozen=True)
class StartingPlan:
    """What a training begins with.

    Attributes:
        plan: Its plan.
        tunes: Whether a faster one is looked for.
        handed_over: A plan that was measured on another machine, or with another model: it has to prove itself here.
        origin: Why it has to, as in "was measured on another machine".
        known: What a run that is resumed had found when it was stopped while tuning: `plan` is its.
        account: What tuning came to, where the run that is resumed had come to its end: the tuning part of its result.
        note: What the user should know of that.
    """

    plan: Plan
    tunes: bool
    handed_over: Plan | None = None
    origin: str = "was measured elsewhere"
    known: KnownPlan | None = None
    account: Mapping[str, Any] | None = None
    note: str | None = None


def with_model(start: StartingPlan, model: nn.Module, resumed: Path | None) -> StartingPlan:
    """What a training of a model begins with: a plan that was found for another one has to prove itself.

    Args:
        start: What it would begin with.
        model: Of the training.
        resumed: The run folder that is resumed, if one is.
    """
    if not is_of_another(start.plan, model):
        return start
    proving = StartingPlan(
        replace(BASELINE, device=start.plan.device),
        tunes=True,
        handed_over=start.plan,
        origin="was found for another model",
    )
    return proving if resumed is None else _as_it_was_left(proving, resumed)


def plan_to_start_with(reference: str | Path | Plan, resumed: Path | None) -> StartingPlan:
    """What a training begins with.

    Args:
        reference: "auto", "baseline", a plan file, or a plan.
        resumed: The run folder that is resumed, if one is: a plan that was found there is kept.

    Raises:
        PlanError: The plan cannot be read, or is not for this machine.
    """
    is_auto = isinstance(reference, str) and reference == AUTO
    start = StartingPlan(BASELINE, tunes=True) if is_auto else _kept(load_plan(reference))
    return start if resumed is None else _as_it_was_left(start, resumed)


def _as_it_was_left(start: StartingPlan, resumed: Path) -> StartingPlan:
    """A start of tuning, with what the run that is resumed had found."""
    folder = RunFolder(resumed)
    if not start.tunes or not folder.plan.is_file():
        return start
    found = read_plan(folder.plan)
    known = interrupted_in(folder)
    if known is not None and _is_of_this_machine(known.plan):
        # As it was left: there may be too few steps to find it again.
        plan = replace(known.plan, subject=None, environment={}, trials=())
        is_decided = any(trial.get("name") == HANDED_OVER for trial in known.decided)
        return replace(start, plan=plan, known=known, handed_over=None if is_decided else start.handed_over)
    if start.handed_over is not None and all(trial.get("name") != HANDED_OVER for trial in found.trials):
        return start  # the folder's plan is that of a start without the plan that is handed over now
    if not found.trials:
        return start
    if not found.is_for_this_machine():
        return start
    kept = _kept(found)
    account = None if kept.tunes else account_in(folder)
    note = "tuning had come to its end before the run was resumed: its seconds are those until then"
    return replace(kept, account=account, note=note if account is not None else None)


def _kept(plan: Plan) -> StartingPlan:
    """A plan as it is where it was measured here, or not at all; else it has to prove itself."""
    if plan.environment and not _is_of_this_machine(plan):
        start = replace(BASELINE, device=plan.device)
        return StartingPlan(start, tunes=True, handed_over=plan, origin=_origin(plan.environment))
    return StartingPlan(plan, tunes=False)


def _origin(described: Mapping[str, Any]) -> str:
    """What was other where a plan was measured, of all that its environment describes."""
    here = environment.describe()

    def differs(*names: str) -> bool:
        shown = [{name: of[name] for name in names if name in of} for of in (described, here)]
        return environment.fingerprint(shown[0]) != environment.fingerprint(shown[1])

    if differs(*(name for name in here if name not in ("python", "packages", "kernels", "settings"))):
        return "was measured on another machine"
    if differs("python", "packages", "kernels"):
        return "was measured with other versions of its libraries"
    before, now = (of.get("settings") for of in (described, here))
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        return f"was measured with other settings of this machine ({', '.join(map(str, changed))})"
    return "was measured with other settings of this machine"


def _is_of_this_machine(plan: Plan) -> bool:
    """Whether it was measured here, with the same versions."""
    return environment.fingerprint(dict(plan.environment)) == environment.fingerprint(environment.describe())


class LiveTuning:
    """A tuner with its memory.

    Attributes:
        tuner: Conducts the training.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: TunerConfig,
        *,
        use_cache: bool,
        handed_over: Plan | None,
        origin: str,
        known: KnownPlan | None,
        changed: ChangedAlgorithm | None,
    ) -> None:
        self._changed = changed
        self._cache = TuningCache()
        self._description = environment.describe()  # now: a plan may change the number of threads
        self._environment = environment.fingerprint(self._description)
        self._subject, self._subject_of_plan = _subject(prepared), subject_of(prepared.model)
        self._counts = slowdown_counts()
        # Measuring takes seconds, which a training has to have won, or to be long enough for.
        find_limits, find_rates = (limits, data_rates) if config.stop_when_done else (known_limits, known_data_rates)
        machine = find_limits(prepared.device, cache=self._cache, environment=self._environment)
        self._data_rates = find_rates(cache=self._cache, environment=self._environment)
        self._earlier = self._cache.load_plan(self._environment, self._subject)
        first_plan = replace(BASELINE, device=prepared.plan.device) if known is not None else None
        if known is None and use_cache and handed_over is None:
            known = from_document(self._earlier)
            self._of_before: tuple[Mapping[str, Any], ...] = ()
        else:  # what the plan that is begun with was chosen by
            self._of_before = known.decided if known is not None else ()
        self._trials_file: Path | None = None
        self._kept: tuple[object, ...] | None = None
        self._folder: RunFolder | None = None
        self._notes: list[str] = []

        first, first_path = prepared.loaders.train, _first_data_path(prepared)

        def loader_for(plan: Plan) -> Loader:
            of_arrays = isinstance(prepared.dataset, PackedDataset)
            if of_arrays and plan.data_path == "auto":
                plan = replace(plan, data_path="resident" if first_path == "resident" else "mmap")
            if plan.data_path == "resident" and not _fits_once_more(prepared):
                return first  # batches are then brought into the plan's layout one by one
            return make_train_loader(prepared.dataset, prepared.recipe, plan, prepared.device, prepared.seed)

        def with_limits(job: Job) -> Job:
            found = limits(prepared.device, cache=self._cache, environment=self._environment)
            return replace(job, limits=found, fast_dtypes=fast_dtypes(found))

        self.tuner = Tuner(
            prepared.plan,
            job=_job(prepared, machine, self._data_rates),
            loader_for=loader_for,
            config=config,
            history=self._cache.trials(self._environment),
            on_adopted=self._keep,
            on_pause=self._keep_news,
            first_plan=first_plan,
            known=known,
            handed_over=handed_over,
            origin=origin,
            with_limits=with_limits,
        )

    def keep_plan_in(self, folder: RunFolder) -> None:
        """Write each plan that is adopted into the folder's `plan.json`."""
        self._folder = folder

    def _keep_news(self) -> None:
        """The loop pauses: keep what is new since the last time, so that a checkpoint is never ahead of it.

        Not each time that a candidate is decided: files are flushed to disk, which takes longer than many a trial.
        """
        if self._made() and self._found() != self._kept:
            self.tuner.ledger.start_spending()
            self._keep(self.tuner.plan)
            self.tuner.ledger.book_spent()

    def _keep(self, plan: Plan) -> None:
        """Keep what there is now, as a plan was adopted or dropped, or the loop pauses."""
        self._kept = self._found()
        try:
            if self._folder is not None:
                self._write(self._folder, self.plan())
            self.remember()
        except StorageError as error:  # of a disk that is full now: training goes on, and a checkpoint will tell
            note = f"what tuning has found so far could not be written into the run folder: {error.received}"
            if note not in self._notes:
                self._notes.append(note)

    def _found(self) -> tuple[object, ...]:
        """What later runs would begin with otherwise than before."""
        return self.tuner.plan, [(trial.name, trial.verdict) for trial in self._made()], self.tuner.is_complete

    def _made(self) -> list[Trial]:
        return [trial for trial in self.tuner.ledger.trials if trial.verdict != "not tried"]

    def _write(self, folder: RunFolder, plan: Plan) -> None:
        plan.save(folder.plan)
        lines = "".join(
            json.dumps({"of": "training"} | finite(dict(trial)), allow_nan=False) + "\n" for trial in plan.trials
        )
        write_bytes(folder.trials, lines.encode())

    def plan(self) -> Plan:
        """The best plan so far, with the evidence for it."""
        first = [self._changed.trial()] if self._changed is not None else []
        before = self.tuner.ledger.earlier_trials(self._of_before)
        return replace(
            self.tuner.plan,
            subject=self._subject_of_plan,
            environment=self._description,
            trials=(*before, *(trial.to_json() for trial in [*first, *self.tuner.ledger.trials])),
        )

    @property
    def notes(self) -> list[str]:
        """What the user should know."""
        slowed = slowdowns(since=self._counts) if self.tuner.ledger.trials else []
        return [*self.tuner.ledger.notes, *slowed, *self._cache.notes, *self._notes]

    def finish(self, folder: RunFolder) -> Plan:
        """Write plan and trials into the run folder, remember them for later runs, and give the plan."""
        plan = self.plan()
        self._write(folder, plan)
        self.remember()
        return plan

    def remember(self) -> None:
        """Keep the plan and the new trials for later runs on this machine, and for this one when it is resumed.

        That is done whenever the plan changes and before checkpoints, so that a run which is stopped leaves all that it
        has learnt by then. A plan that was known, and taken without a race, tells nothing of what such trials come to.
        """
        raced = [trial for trial in self._made() if trial.verdict in ("refused", "failed") or trial.num_rounds]
        records = [trial.to_json() | dict(trial.changes) for trial in raced]
        self._trials_file = self._cache.add_trials(self._environment, records, replaced=self._trials_file)
        document = to_document(self.tuner, self.plan())
        if document is not None:
            kept = kept_document(self._earlier, document, self.tuner)
            self._cache.save_plan(self._environment, self._subject, kept)
            if self._folder is not None:
                write_json(self._folder.tuning, document | {"account": finite(self.to_json())})

    def _limit_share(self) -> dict[str, Any] | None:
        """How near a step of the plan comes to what this machine can do; None where that was not measured."""
        observer, step, precision = self.tuner.observer, self.tuner.ledger.measured_step, self.tuner.plan.precision
        cost, machine = observer.cost, observer.job.limits
        if machine is None or cost is None or step is None or precision not in machine.matmul_flops:
            return None
        return asdict(share_of_limit(cost, step.step_seconds, machine, precision))

    def _last_split(self) -> dict[str, Any] | None:
        """Where the time of a step goes by the final plan; None where that is the one that training began with."""
        observer, ledger = self.tuner.observer, self.tuner.ledger
        split = observer.split_by_plan() if ledger.plan != ledger.first_plan else None
        return split.to_json() | {"looked_into": observer.looks_into_plan} if split is not None else None

    def to_json(self) -> dict[str, Any]:
        """The tuning part of a result; the trials are in its plan."""
        ledger, observer = self.tuner.ledger, self.tuner.observer
        account, step, first = ledger.account, ledger.measured_step, ledger.first_step
        split = observer.first_split
        return {
            "seconds": account.spent,
            "saved_seconds": account.saved,
            "net_seconds": account.net,
            "saved_seconds_interval": ledger.saved_interval,
            "confirmation": ledger.confirmation.to_json() if ledger.confirmation is not None else None,
            "complete": self.tuner.is_complete and not ledger.ran_out,
            "from_cache": self.tuner.took_known,
            "num_refused_before": sum(trial.get("verdict") != "adopted" for trial in self.tuner.decided_before),
            "first_step_seconds": first.step_seconds if first is not None else None,
            "step_seconds": step.step_seconds if step is not None else None,
            "data_seconds": first.data_seconds if first is not None else None,
            "limit": self._limit_share(),
            "split": split.to_json() | {"looked_into": observer.first_split_has_mix} if split is not None else None,
            "last_split": self._last_split(),
            "data_rates": to_json(self._data_rates) if self._data_rates is not None else None,
        }


def start_tuning(
    prepared: Prepared,
    *,
    config: TunerConfig | None = None,
    use_cache: bool = True,
    handed_over: Plan | None = None,
    origin: str = "was measured elsewhere",
    known: KnownPlan | None = None,
    changed: ChangedAlgorithm | None = None,
) -> LiveTuning:
    """The tuner of a training that is about to start.

    Args:
        prepared: The training.
        config: How to go about it.
        use_cache: Begin with the plan that an earlier run of the same job found on this machine.
        handed_over: A plan from elsewhere, to be measured before all else.
        origin: Why it has to prove itself; see `StartingPlan`.
        known: What is to be begun with in place of that.
        changed: What became of the batch size, where changing it was allowed.
    """
    return LiveTuning(
        prepared,
        config or TunerConfig(),
        use_cache=use_cache,
        handed_over=handed_over,
        origin=origin,
        known=known,
        changed=changed,
    )


def fast_dtypes(machine: Limits | None) -> tuple[str, ...]:
    """Precisions in which products are clearly faster than in fp32."""
    if machine is None:
        return ("tf32", "bf16") if torch.cuda.is_available() else ()
    if "fp32" not in machine.matmul_flops:  # nothing to compare with
        return ()
    least = WORTHWHILE * machine.matmul_flops["fp32"]
    return tuple(name for name in ("tf32", "bf16", "fp16") if machine.matmul_flops.get(name, 0.0) > least)


def _fits_once_more(prepared: Prepared) -> bool:
    """Whether memory holds another copy of the training data, and as much again."""
    if not isinstance(prepared.dataset, PackedDataset):
        return False
    return prepared.dataset.splits["train"].inputs.nbytes <= free_memory_bytes(prepared.device) // 2


def _first_data_path(prepared: Prepared) -> str:
    """What "auto" means in a training: resolved as it begins, as with less memory left it could mean something else."""
    loader = prepared.loaders.train
    if prepared.plan.data_path == "auto" or not isinstance(prepared.dataset, PackedDataset):
        return loader.data_path
    # A training that is resumed begins with the plan that it had found, and not with that of its beginning.
    return "resident" if loader.data_path == "resident" or _fits_once_more(prepared) else "mmap"


def _job(prepared: Prepared, machine: Limits | None, rates: DataRates | None) -> Job:
    info, of_torch = prepared.dataset.info, isinstance(prepared.dataset, TorchDataset)
    is_stored = rates is not None and info.kind == "image" and not of_torch and prepared.device.type == "cpu"
    return job_of(
        prepared.model,
        prepared.device,
        prepared.recipe.batch_size,
        changes_size=any(stage.image_size is not None for stage in prepared.recipe.stages),
        data_paths=("worker",) if of_torch else ("resident", "mmap") if _fits_once_more(prepared) else ("mmap",),
        data_path=_first_data_path(prepared),
        fast_dtypes=fast_dtypes(machine),
        num_cores=num_usable_cores(),
        limits=machine,
        stored_samples_per_second=rates.stored_images_per_second(info.input_shape) if rates and is_stored else None,
    )


def _subject(prepared: Prepared) -> str:
    """A short hash of what decides how fast a step can be: equal for two runs of the same job."""
    model, recipe = prepared.model, prepared.recipe
    parts: Mapping[str, Any] = {
        "modules": [type(module).__qualname__ for module in model.modules()],
        "parameters": [[name, list(p.shape), str(p.dtype), p.requires_grad] for name, p in model.named_parameters()],
        "batch_size": recipe.batch_size,
        "input_shape": list(prepared.dataset.info.input_shape),
        "data_path": _first_data_path(prepared),
        "augment": repr(recipe.augment),
        "stages": repr(recipe.stages),
        "clip_grad_norm": recipe.clip_grad_norm,
        "ema_decay": recipe.ema_decay,
        "optimizer": recipe.optimizer.name,
        "device": prepared.device.type,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
