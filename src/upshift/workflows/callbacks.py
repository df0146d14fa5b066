"""`lightning_callback` and `transformers_callback`: a plan in the loop of a framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upshift.core.arguments import checked_arguments
from upshift.tuning import lightning_callback as of_lightning
from upshift.tuning import transformers_callback as of_transformers
from upshift.tuning.plan import Plan, load_plan
from upshift.workflows.arguments import EXAMPLES, verb
from upshift.workflows.tune import TunedPlan


@checked_arguments(EXAMPLES, may_be_empty=("model",))
def lightning_callback(plan: str | Path | Plan | TunedPlan, *, model: str | None = None) -> Any:
    """A callback for `lightning.Trainer` that trains by a plan.

        trainer = lightning.Trainer(callbacks=[upshift.lightning_callback("plan.json")], …)

    When training starts, the network within the LightningModule and the optimizers are made to execute as the plan
    says (see `Plan.apply`); when it ends, the network is called as before. State-dict keys and checkpoints are those
    of a training without it. Evaluation is not compiled.

    Lightning has its loader before any callback is asked: the plan's workers are not set by this one. Hand
    `Trainer.fit` a DataLoader with `num_workers=plan.num_workers`. Device, precision by a scaler (fp16) and
    accumulation are the Trainer's own settings. The callback does not tune: tune the network before
    (docs/own-loop.md).

    Args:
        plan: The path of a plan file, a `Plan`, or what `tune` gave.
        model: The network's attribute in the LightningModule, as "net" or "net.encoder"; "" is the LightningModule
            itself, for a `training_step` that calls `self(...)`. None takes the only child with parameters.

    Raises:
        MissingExtraError: lightning is not installed.
        PlanError: The plan cannot be read, or needs a loop that is written for it.
    """
    return of_lightning.lightning_callback(_plan(plan), model)


@verb
def transformers_callback(plan: str | Path | Plan | TunedPlan) -> Any:
    """A callback for `transformers.Trainer` that trains by a plan.

        trainer = transformers.Trainer(model, arguments, callbacks=[upshift.transformers_callback("plan.json")], …)

    When training starts, model and optimizer are made to execute as the plan says (see `Plan.apply`); when it ends,
    the model is called as before. State-dict keys and checkpoints are those of a training without it. Evaluation is not
    compiled. The plan's workers are set in the Trainer's arguments; that takes a callback that was handed to the
    Trainer when it was made. transformers tells a callback nothing of an error: after one, the plan stays applied until
    `upshift.Plan().apply(model)` takes it back.

    The callback does not tune: tune before, on the Trainer's own batches (docs/own-loop.md).

    Device, precision by a scaler (fp16) and accumulation are settings of the TrainingArguments, which a callback comes
    too late for. `torch_compile=True` and several devices in one process are refused.

    Args:
        plan: The path of a plan file, a `Plan`, or what `tune` gave.

    Raises:
        MissingExtraError: transformers is not installed.
        PlanError: The plan cannot be read, or needs a loop that is written for it.
    """
    return of_transformers.transformers_callback(_plan(plan))


def _plan(plan: str | Path | Plan | TunedPlan) -> Plan:
    return load_plan(plan.plan if isinstance(plan, TunedPlan) else plan)
