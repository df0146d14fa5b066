"""`tune`: the fastest training plan of a recipe, or of a model of the user's own, and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from upshift.core import environment
from upshift.core.files import refuse_unwritable
from upshift.core.limits import Limits, limits
from upshift.core.records import RunFolder
from upshift.core.reference import refuse_while_importing
from upshift.errors import ConfigError, Interrupted, StorageError, TrainingInterrupted, shown
from upshift.recipes.recipe import Recipe
from upshift.training.config import MAX_EPOCHS
from upshift.training.interrupt import StoppedAtOnce, stop_on_signals
from upshift.training.rng import seed_everything
from upshift.tuning.batch_size import checked_allowed
from upshift.tuning.config import TunerConfig
from upshift.tuning.live import TuningDone
from upshift.tuning.numerics import notes_of_plan
from upshift.tuning.own_loop import OwnLoop
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.subject import subject_of
from upshift.tuning.trials import Trial
from upshift.tuning.tuner import Tuner
from upshift.tuning.undisturbed import torch_settings_put_back, undisturbed
from upshift.workflows.algorithm import with_allowed
from upshift.workflows.arguments import verb
from upshift.workflows.live_tuning import LiveTuning, fast_dtypes, start_tuning
from upshift.workflows.preparation import Prepared, prepare_training


@dataclass(frozen=True)
class TunedPlan:
    """What `tune` found.

    Attributes:
        plan: The plan, with the trials that it was chosen by.
        speedup: Of a step, beside the plain plan.
        notes: What the user should know.
        result: All of it for scripts: {"recipe", "plan", "tuning", "algorithm", "speedup", "path", "notes"}.
    """

    plan: Plan
    speedup: float
    notes: tuple[str, ...]
    result: dict[str, Any]

    def __repr__(self) -> str:
        """In short: `result` holds the plan and its trials once more."""
        return f"TunedPlan(plan={self.plan!r}, speedup={self.speedup:.3g}, ...)"

    def apply(self, model: nn.Module, optimizer: Any = None, loader: Any = None) -> tuple[nn.Module, Any, Any]:
        """Make a loop of your own execute like this; see `Plan.apply`."""
        return self.plan.apply(model, optimizer, loader)


@verb
def tune(
    recipe: str | Path | Recipe | None = None,
    *,
    model: nn.Module | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    variant: str | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    out: str | Path | None = None,
    budget_seconds: float | None = None,
    data: Mapping[str, Any] | Iterable[Any] | Dataset[Any] | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    allow: Sequence[str] = (),
    on_data_progress: Callable[[str, int, int], None] | None = None,
    on_trial: Callable[[str], None] | None = None,
) -> TunedPlan:
    """Find the fastest plan of training steps on this machine, by making some of them.

    Of a recipe, the steps are those of its training; the weights that they come to are thrown away. Of a model of your
    own, they are made with a copy of it, your loss, and batches of your loader. Every candidate is tried, whatever it
    costs: the plan is for as many trainings as it is used for.

    Args:
        recipe: A built-in name, a Python file, "package.module:RECIPE", or a `Recipe`.
        model: Instead of a recipe: a model, in whose place a copy is trained.
        loss: Of (outputs, targets), a mean over the batch; None takes `outputs.loss`.
        optimizer: Of the model's parameters; plain SGD when None.
        variant: One of the recipe's variants.
        overrides: Fields of the recipe to change.
        seed: Of weights, order and augmentation.
        out: The plan file to write; None writes none.
        budget_seconds: Begin no further candidate after this long.
        data: With a recipe, torch datasets to use instead of its own, see `train`. With a model, a DataLoader or
            another iterable of batches: (inputs, targets), or a mapping of named inputs.
        data_dir: Where named datasets are looked for.
        skip_bad: Leave bad rows of the data out.
        allow: ("algorithm",) tunes at the batch size that upshift would choose, and names it; see `train`.
        on_data_progress: Called with (description, done, total) while data are packed.
        on_trial: Called with a line of text for each candidate.

    Raises:
        BadInputError: Something of the above cannot be served; nothing was written.
        Interrupted: Stopped by a signal; the best plan so far is in `out`.
    """
    refuse_while_importing("tune")
    if (recipe is None) == (model is None):
        raise ConfigError(
            "tune takes a recipe or a model",
            received="both" if recipe is not None else "neither",
            hint='tune("digits"), or tune(model=model, loss=loss, data=loader)',
        )
    if checked_allowed(allow) and model is not None:
        raise ConfigError(
            "the batch size of a loop of your own is your loader's",
            received=f"allow={tuple(allow)!r} with a model",
            hint="leave allow out, or tune a recipe",
        )
    of_recipes = {"variant": variant, "overrides": tuple(overrides), "data_dir": data_dir, "skip_bad": skip_bad}
    of_models = {"loss": loss, "optimizer": optimizer}
    _refuse_ignored(of_recipes if model is not None else of_models, "a recipe" if model is not None else "a model")
    path = _plan_file(out)
    if budget_seconds is not None and not budget_seconds > 0:  # nan neither
        raise ConfigError("budget must be above 0 seconds", received=budget_seconds, hint="leave it out for no limit")
    config = TunerConfig(stop_when_done=True, budget_seconds=budget_seconds, seed=seed)
    if model is not None:
        return _tune_model(model, loss, optimizer, data, config, path, on_trial)
    assert recipe is not None
    if data is not None and not isinstance(data, Mapping):
        raise ConfigError(
            "with a recipe, data must be a mapping of datasets",
            received=type(data).__name__,
            hint='data={"train": train_dataset, "test": test_dataset}',
        )
    prepared = prepare_training(
        recipe,
        variant=variant,
        overrides=overrides,
        plan=BASELINE,
        seed=seed,
        data=data,
        data_dir=data_dir,
        skip_bad=skip_bad,
        on_data_progress=on_data_progress,
    )
    prepared, changed = with_allowed(prepared, allow)
    tuning = start_tuning(prepared, config=config, use_cache=False, changed=changed)
    _tell_trials(tuning.tuner, on_trial)
    stopped = _make_steps(prepared, tuning)
    tuning.remember()
    notes = [*tuning.notes, *notes_of_plan(tuning.tuner.plan, tuning.tuner.ledger.first_plan)]
    if changed is not None and changed.adopted:
        notes.append(
            f"the plan was found at a batch size of {changed.new_batch_size}, which is not the recipe's: "
            f"train by it with {' '.join(f'--set {setting}' for setting in changed.settings)}"
        )
    result = {
        "recipe": prepared.recipe.name,
        "tuning": tuning.to_json(),
        "algorithm": changed.to_json() if changed is not None else None,
        "notes": notes,
    }
    return _result(result, tuning.plan(), tuning.tuner, path, stopped)


def _refuse_ignored(others: Mapping[str, Any], kind: str) -> None:
    """Refuse arguments that are for the other kind of what is tuned, and would do nothing."""
    for name, value in others.items():
        if value is not None and value is not False and value != ():
            raise ConfigError(
                f"tune takes {name} with {kind} alone",
                received=f"{name}={shown(value)} with {'a model' if kind == 'a recipe' else 'a recipe'}",
                hint=f"leave {name} out",
            )


def _plan_file(out: str | Path | None) -> Path | None:
    if out is None:
        return None
    path = Path(out)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise StorageError(
            "a plan is written as a file into a folder that exists", received=path, hint="for example --out plan.json"
        )
    refuse_unwritable(path)
    return path


def _tell_trials(tuner: Tuner, on_trial: Callable[[str], None] | None) -> None:
    if on_trial is None:
        return
    keep = tuner.ledger.on_trial

    def tell(trial: Trial) -> None:
        if keep is not None:
            keep(trial)
        on_trial(str(trial))

    tuner.ledger.on_trial = tell


@torch_settings_put_back()
def _make_steps(prepared: Prepared, tuning: LiveTuning) -> str | None:
    """Train until the tuner is done; gives the signal that stopped it, if one did."""
    endless = replace(
        prepared.recipe,
        epochs=MAX_EPOCHS,
        max_steps=None,
        evaluate_every=MAX_EPOCHS,
        patience=None,
        target={},
        stages=(),
        checkpoint_every_steps=None,
        checkpoint_every_minutes=None,
    )
    trainer = replace(prepared, record=replace(prepared.record, recipe=endless)).trainer(tuning.tuner)
    seed_everything(prepared.seed)
    with tempfile.TemporaryDirectory(prefix="upshift-tune-") as folder:
        try:
            # Between two steps many candidates may be compiled and refused: who stops tuning need not wait for that.
            trainer.train(RunFolder(Path(folder)), stops_at_once=True)
        except TuningDone:
            return None
        except StoppedAtOnce as stop:
            return f"stopped by {stop}"
        except TrainingInterrupted as error:
            return str(error).split(" after ")[0]
    return None


def _tune_model(
    model: nn.Module,
    loss: Callable[[Any, Any], torch.Tensor] | None,
    optimizer: torch.optim.Optimizer | None,
    data: Any,
    config: TunerConfig,
    path: Path | None,
    on_trial: Callable[[str], None] | None,
) -> TunedPlan:
    if data is None:
        raise ConfigError(
            "a model is tuned on data", received="none", hint="data=DataLoader(...), or a list of batches"
        )
    stopped, tuner = None, None
    description = environment.describe()  # now: a plan may change the number of threads
    with undisturbed(data):
        seed_everything(config.seed)
        loop = OwnLoop(model, loss, data, optimizer)
        try:
            with stop_on_signals(at_once=True) as stop:
                job = loop.job(fast_dtypes(_limits_of(loop.device)))
                tuner = Tuner(loop.plan, job=job, loader_for=loop.loader_for, config=config)
                _tell_trials(tuner, on_trial)
                loop.run(tuner, stop)
        except TuningDone:
            pass
        except KeyboardInterrupt as error:
            stopped = f"stopped by {error if isinstance(error, StoppedAtOnce) else 'SIGINT'}"
        finally:
            loop.close()
    if tuner is None:
        raise Interrupted(f"tuning was {stopped} before anything was tried")
    trials = tuple(trial.to_json() for trial in tuner.ledger.trials)
    plan = replace(tuner.plan, subject=subject_of(loop.model), environment=description, trials=trials)
    notes = [*tuner.ledger.notes, *loop.notes, *notes_of_plan(tuner.plan, tuner.ledger.first_plan)]
    result = {"recipe": None, "tuning": None, "algorithm": None, "notes": notes}
    return _result(result, plan, tuner, path, stopped)


def _limits_of(device: torch.device) -> Limits | None:
    """What a device can do; None where that cannot be measured."""
    try:
        return limits(device)
    except ConfigError:  # of a kind that upshift does not know
        return None


def _result(about: dict[str, Any], plan: Plan, tuner: Tuner, path: Path | None, stopped: str | None) -> TunedPlan:
    if path is not None:
        plan.save(path)
    if stopped is not None:
        kept = f"the best plan so far is in {path}" if path is not None else "no --out was given, so none is kept"
        raise Interrupted(f"tuning was {stopped}; {kept}")
    where = {"plan": plan.to_json(), "speedup": tuner.ledger.speedup, "path": str(path) if path is not None else None}
    return TunedPlan(plan, tuner.ledger.speedup, tuple(about["notes"]), about | where)
