"""`train`: from a recipe and a plan to a trained, evaluated and recorded model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from upshift.core import clock, environment
from upshift.core.files import finite, read_json, sha256_file, write_json
from upshift.core.records import RunFolder
from upshift.core.reference import refuse_while_importing
from upshift.core.vouching import vouch
from upshift.errors import TrainingInterrupted
from upshift.models.spec import state_dict_on_cpu
from upshift.recipes.recipe import Recipe
from upshift.training.checkpoint import save_tensors
from upshift.training.evaluation import within_memory
from upshift.training.metrics import collect_logits, evaluate_logits, mean_loss, of_other_loss
from upshift.training.observer import Observer
from upshift.training.progress import TrainingResult
from upshift.training.rng import seed_everything
from upshift.training.tensorboard import TensorBoardObserver
from upshift.tuning.batch_size import ChangedAlgorithm, checked_allowed
from upshift.tuning.fallback import fallback
from upshift.tuning.plan import Plan
from upshift.tuning.undisturbed import torch_settings_put_back
from upshift.workflows.algorithm import keep, with_allowed
from upshift.workflows.arguments import verb
from upshift.workflows.evaluate import evaluation_record
from upshift.workflows.folders import link_latest, open_run_folder, refuse_folder
from upshift.workflows.live_tuning import LiveTuning, StartingPlan, plan_to_start_with, start_tuning, with_model
from upshift.workflows.model import RunRecord
from upshift.workflows.preparation import Prepared, prepare_training
from upshift.workflows.resumption import check_same_run

RESULT_VERSION = 1


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        folder: Its records.
        result: The content of its `result.json`.
        model: The trained model, in evaluation mode, on the CPU.
    """

    folder: RunFolder
    result: dict[str, Any]
    model: nn.Module

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path


@verb
def train(
    recipe: str | Path | Recipe,
    *,
    variant: str | None = None,
    overrides: Sequence[str] = (),
    plan: str | Path | Plan = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    data: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    allow: Sequence[str] = (),
    observers: Sequence[Observer] = (),
    on_data_progress: Callable[[str, int, int], None] | None = None,
) -> TrainedRun:
    """Train a recipe's model and evaluate it on the test split.

    Args:
        recipe: A built-in name, a Python file, "package.module:RECIPE", or a `Recipe`.
        variant: One of the recipe's variants, such as "fast".
        overrides: Fields to change, as "optimizer.lr=0.1".
        plan: "auto" finds the fastest one while training; "baseline" is the plain loop; or a plan file, or a `Plan`.
        seed: Of the weights, the order of samples, augmentation and dropout.
        out: The run folder; `runs/<recipe>-<time>` when None.
        resume: Go on with the run in `out` from its newest checkpoint.
        data: torch map-style datasets to use instead of the recipe's: {"train": …, "test": …} and
            optionally "validation".
        data_dir: Where named datasets are looked for.
        skip_bad: Leave bad rows of the data out and report them, instead of refusing.
        allow: ("algorithm",) lets upshift change what is learnt: the batch size, and the learning rate with it.
        observers: Who watches the training.
        on_data_progress: Called with (description, done, total) while data are packed.

    Raises:
        BadInputError: Something of the above cannot be served; nothing was written.
        TrainingInterrupted: Stopped by a signal; a checkpoint was saved.
        NonFiniteLossError: The loss stayed NaN or infinite.
    """
    refuse_while_importing("train")
    checked_allowed(allow)
    refuse_folder(Path(out) if out else None, resume=resume)
    resumed = Path(out) if out and resume else None
    start = plan_to_start_with(plan, resumed)
    prepare = partial(
        prepare_training,
        recipe,
        variant=variant,
        overrides=overrides,
        seed=seed,
        data=data,
        data_dir=data_dir,
        skip_bad=skip_bad,
        on_data_progress=on_data_progress,
    )
    prepared = prepare(plan=start.plan)
    if (fitting := with_model(start, prepared.model, resumed)) is not start:
        del prepared  # its data may lie in memory, and would twice
        start, prepared = fitting, prepare(plan=fitting.plan)
    kept = RunFolder(resumed).algorithm if resumed is not None else None
    prepared, changed = with_allowed(prepared, allow, kept=kept)
    record, model = prepared.record, prepared.model
    tuning = None
    if start.tunes:
        tuning = start_tuning(
            prepared, handed_over=start.handed_over, origin=start.origin, known=start.known, changed=changed
        )
    given = fallback(prepared.plan, prepared.device) if tuning is None else None
    with torch_settings_put_back():
        trainer = prepared.trainer(tuning.tuner if tuning is not None else given)
        with open_run_folder(prepared.recipe.name, Path(out) if out else None, resume=resume) as folder:
            if resume:
                check_same_run(read_json(folder.recipe, kind="a run's recipe"), record)
                folder.set_aside_results()
            vouch(record.spec.reference)
            write_json(folder.recipe, record.to_json())
            keep(changed, folder.algorithm)
            if not (resume and start.tunes and folder.plan.is_file()):  # which has what there is to go on with
                start.plan.save(folder.plan)
            if tuning is not None:
                tuning.keep_plan_in(folder)
            tensorboard = TensorBoardObserver(folder.tensorboard)
            if not resume:
                tensorboard.write_start(model, *prepared.loaders.first_samples())
            link_latest(folder)
            seed_everything(seed)
            try:
                trained = trainer.train(folder, (*observers, tensorboard), resume=resume)
            except TrainingInterrupted:
                if tuning is not None and tuning.tuner.is_complete:
                    tuning.remember()  # the account as it is now
                raise
            settings = changed.settings if changed is not None else ()
            command = reproduction_command(record, [*overrides, *settings], plan, data_dir)
            if tuning is not None:
                plan_made = tuning.finish(folder)
            elif given is not None and given.was_dropped:
                plan_made = given.plan
                plan_made.save(folder.plan)
            else:
                plan_made = prepared.plan
            result = _record_result(trained, prepared, plan_made, start, tuning, changed, folder, command)
    return TrainedRun(folder, result, model.to("cpu"))


def _record_result(
    trained: TrainingResult,
    prepared: Prepared,
    plan: Plan,
    began_with: StartingPlan,
    tuning: LiveTuning | None,
    changed: ChangedAlgorithm | None,
    folder: RunFolder,
    command: list[str],
) -> dict[str, Any]:
    """Evaluate on the test split, save the weights, and write evaluation.json and result.json."""
    record, dataset, model, loaders = prepared.record, prepared.dataset, prepared.model, prepared.loaders
    recipe, progress, info = record.recipe, trained.progress, dataset.info
    start = clock.now()
    (logits, labels), _ = within_memory(
        lambda batches: collect_logits(model, batches),
        lambda: loaders.test.epoch(0),
        largest=trained.largest_batch,
        note=progress.notes.append,
    )
    evaluation = evaluate_logits(logits, labels, info.label_names)
    if recipe.loss is not None:
        of_logits = (outputs.to(prepared.device) for outputs in (logits, labels))
        evaluation = of_other_loss(evaluation, mean_loss(recipe.loss, *of_logits, batch_size=recipe.batch_size))
    evaluation_seconds = progress.evaluation_seconds + clock.now() - start
    write_json(folder.evaluation, evaluation_record(evaluation, labels, info, dataset.splits["test"].inputs))
    save_tensors(state_dict_on_cpu(model), folder.model)
    notes = [*dataset.notes, *progress.notes, *([began_with.note] if began_with.note is not None else [])]
    notes += tuning.notes if tuning is not None else ()
    if plan.micro_batch_size is not None and plan.micro_batch_size > recipe.batch_size:
        notes.append(
            f"the plan's micro_batch_size of {plan.micro_batch_size} is more than the batch size of "
            f"{recipe.batch_size}: whole batches were taken"
        )
    if loaders.monitor_split == "test":
        notes.append(_test_note(progress.stopped))
    if trained.num_skipped_steps:
        notes.append(f"{trained.num_skipped_steps} steps were skipped, as their loss or gradient was not finite")
    result = {
        "version": RESULT_VERSION,
        "recipe": recipe.name,
        "recipe_description": recipe.description,
        "variant": record.variant,
        "seed": record.seed,
        "plan": plan.to_json(),
        "tuning": tuning.to_json() if tuning is not None else began_with.account,
        "algorithm": changed.to_json() if changed is not None else None,
        "device": next(model.parameters()).device.type,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": math.ceil(progress.step / len(loaders.train)),
        "steps": progress.step,
        "train_seconds": progress.train_seconds,
        "evaluation_seconds": evaluation_seconds,
        "time_to_target_seconds": progress.time_to_target_seconds,
        "target": dict(recipe.target),
        "stopped": progress.stopped,
        "samples_per_second": progress.num_samples / max(progress.train_seconds, 1e-9),
        "num_skipped_steps": trained.num_skipped_steps,
        "micro_batch_size": trained.micro_batch_size,
        "resumed_from_step": trained.resumed_from_step,
        "metrics": evaluation.metrics,
        "model_sha256": sha256_file(folder.model),
        "data": {
            "source": info.source,
            "kind": info.kind,
            "input_shape": list(info.input_shape),
            "num_classes": info.num_classes,
            **{f"num_{name}": len(dataset.splits.get(name, ())) for name in ("train", "validation", "test")},
            "num_bad_rows": info.num_bad_rows,
        },
        "notes": list(dict.fromkeys(notes)),  # a training that was resumed may have said something before
        "environment": environment.describe(),
        "command": command,
        "run_dir": str(folder.path),
        "optimize": None,
    }
    written: dict[str, Any] = finite(result)
    write_json(folder.result, written)
    return written


def reproduction_command(
    record: RunRecord, overrides: Sequence[str], plan: str | Path | Plan, data_dir: str | Path | None
) -> list[str]:
    """The command line that makes the same run again; empty where only the Python program can."""
    if record.origin.reference == "python" or record.data_handed_over or isinstance(plan, Plan):
        return []
    command = ["upshift", "train", record.origin.reference, "--seed", str(record.seed)]
    command += ["--variant", record.variant] if record.variant else []
    for override in overrides:
        command += ["--set", override]
    command += ["--plan", str(plan)]
    command += ["--data-dir", str(data_dir)] if data_dir else []
    command += ["--skip-bad"] if record.recipe.data.skip_bad else []
    return command


def _test_note(stopped: str | None) -> str:
    if stopped == "target":
        return (
            "the test split said when to stop, as there is no validation split: its accuracy is optimistic; "
            "--set data.validation_fraction=0.1 holds a validation split out"
        )
    return "monitored on the test split while training, as there is no validation split; no weights were chosen by it"
