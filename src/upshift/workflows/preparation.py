"""What every verb that makes training steps needs: recipe, data, model, loaders and trainer, all checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upshift.data.config import DataConfig
from upshift.data.dataset import DataInfo
from upshift.errors import ConfigError, PlanError, UnknownNameError
from upshift.recipes.overrides import with_overrides
from upshift.recipes.recipe import Recipe
from upshift.recipes.record import model_spec
from upshift.recipes.registry import find_recipe
from upshift.training.batches import micro_batch_sizes
from upshift.training.buffers import Buffers
from upshift.training.conductor import Conductor
from upshift.training.loss import CrossEntropy, check_loss
from upshift.training.metrics import check_logits
from upshift.training.optimizer_check import check_optimizer
from upshift.training.rng import check_seed, restore_rng_state, rng_state, seed_everything
from upshift.training.trainer import Trainer
from upshift.tuning.plan import Plan
from upshift.workflows.datasets import Data, Loaders, load_data, make_loaders, with_lasting_source
from upshift.workflows.model import RunRecord, preprocessing_of

TARGET_METRICS = ("accuracy", "loss")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training that can begin.

    Attributes:
        record: What `recipe.json` of the run will hold.
        dataset: Its data.
        model: On its device, in the plan's layout, with its first weights.
        loaders: Of the plan.
        plan: How it is executed.
        device: Where.
        seed: Of the run.
    """

    record: RunRecord
    dataset: Data
    model: nn.Module
    loaders: Loaders
    plan: Plan
    device: torch.device
    seed: int

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.record.recipe

    def trainer(self, conductor: Conductor | None = None) -> Trainer:
        """A trainer of the model; see `Trainer` for the conductor."""
        return Trainer(
            self.model,
            self.recipe.loss or CrossEntropy(self.recipe.label_smoothing),
            self.loaders.train,
            self.loaders.monitor,
            eval_split=self.loaders.monitor_split,
            config=self.recipe,
            execution=self.plan,
            device=self.device,
            conductor=conductor,
        )


def prepare_training(
    recipe: str | Path | Recipe,
    *,
    variant: str | None,
    overrides: Sequence[str],
    plan: Plan,
    seed: int,
    data: Mapping[str, Any] | None,
    data_dir: str | Path | None,
    skip_bad: bool,
    on_data_progress: Callable[[str, int, int], None] | None,
) -> Prepared:
    """Resolve and check all that a training needs; see `train` for the arguments.

    Nothing is written, and nothing of the process is set: the plan is executed by the trainer.

    Raises:
        BadInputError: Something cannot be served.
    """
    found, origin = find_recipe(recipe)
    resolved = with_overrides(found, variant, overrides)
    if skip_bad:
        resolved = replace(resolved, data=replace(resolved.data, skip_bad=True))
    check_seed(seed)
    _check_target(resolved)
    device = device_of(plan)
    dataset = load_data(resolved, data, data_dir=data_dir, seed=seed, on_progress=on_data_progress)
    _refuse_without_effect(resolved, dataset.info)
    if data is None:
        resolved = with_lasting_source(resolved, data_dir)
    record = RunRecord(
        recipe=resolved,
        origin=origin,
        spec=model_spec(resolved, dataset.info),
        info=dataset.info,
        preprocessing=preprocessing_of(resolved, dataset),
        data_handed_over=data is not None,
        seed=seed,
        variant=variant,
    )
    seed_everything(seed)
    model = _build_model(record, device, plan)
    loaders = make_loaders(dataset, resolved, plan, device, seed)
    if resolved.patience is not None and loaders.monitor_split == "test":
        raise ConfigError(
            "patience needs a validation split: the test split must not choose when to stop",
            received=f"patience={resolved.patience} and no validation split",
            hint="--set data.validation_fraction=0.1 holds one out",
        )
    _check_model(model, loaders, dataset.info.num_classes, resolved)
    _check_single_samples(model, loaders, resolved, plan)
    check_optimizer(model, resolved.optimizer)
    return Prepared(record=record, dataset=dataset, model=model, loaders=loaders, plan=plan, device=device, seed=seed)


def _refuse_without_effect(recipe: Recipe, info: DataInfo) -> None:
    """Refuse fields that were set and would change nothing."""
    if recipe.schedule.name == "constant" and recipe.schedule.final_fraction:
        raise ConfigError(
            "schedule.final_fraction needs a schedule that falls to have an effect",
            received=recipe.schedule.final_fraction,
            hint="leave it out, or --set schedule.name=cosine",
        )
    usual = DataConfig().max_text_bytes
    if info.kind != "text" and recipe.data.max_text_bytes != usual:
        raise ConfigError(
            "data.max_text_bytes needs texts to have an effect",
            received=f"{recipe.data.max_text_bytes} for {info.kind} data",
            hint=f"leave it out, or --set data.max_text_bytes={usual}",
        )


def device_of(plan: Plan) -> torch.device:
    """Where a plan is executed."""
    if plan.device != "auto":
        return torch.device(plan.device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def _build_model(record: RunRecord, device: torch.device, plan: Plan) -> nn.Module:
    record.spec.find_factory()  # a model that other processes cannot make again is refused now, not after training
    model = record.spec.make(record.recipe.model)
    # Layouts are for images: converting 2-D weights does nothing, and 3-D data have no such layout.
    layout = torch.channels_last if plan.memory_format == "channels_last" else torch.contiguous_format
    converted: nn.Module = model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    return converted


@torch.no_grad()
def _check_model(model: nn.Module, loaders: Loaders, num_classes: int, recipe: Recipe) -> None:
    """Refuse a model that does not take the data or give logits, or a loss of no use, before anything is written."""
    inputs = loaders.first_samples()[0][:2]
    # The largest label stands for all: a model with too few outputs would fail at the first sample that has it.
    labels = torch.full((len(inputs),), num_classes - 1)
    model.eval()
    try:
        outputs = model(inputs)
    except Exception as error:
        raise ConfigError(
            f"the model must take inputs of shape (N, {', '.join(map(str, inputs.shape[1:]))})",
            received=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint="change the model, or model_args and data.image_size",
        ) from error
    model.train()
    if check_logits(outputs, labels).shape[1] != num_classes:
        raise ConfigError(
            "a recipe's model must have one output for each class",
            received=f"{outputs.shape[1]} outputs and {num_classes} classes",
            hint=f"set model_args.num_classes={num_classes}",
        )
    if recipe.loss is not None:
        check_loss(recipe.loss, outputs, labels.to(outputs.device))


@torch.no_grad()
def _check_single_samples(model: nn.Module, loaders: Loaders, recipe: Recipe, plan: Plan) -> None:
    """Refuse to learn from one sample at a time where the model cannot, as batch norm needs two values a channel."""
    num_samples, batch_size = loaders.train.num_samples, recipe.batch_size
    most = plan.micro_batch_size or batch_size
    last = num_samples % batch_size or batch_size
    if 1 not in (*micro_batch_sizes(batch_size, most), *micro_batch_sizes(last, most)):
        return
    device = next(model.parameters()).device
    buffers, generators = Buffers(model), rng_state(device)
    try:
        model(loaders.first_samples()[0][:1])
    except ValueError as error:
        if 1 in (last, batch_size):
            sizes = (*range(batch_size - 1, 1, -1), *range(batch_size + 1, num_samples + 1))
            better = next((size for size in sizes if num_samples % size != 1), num_samples)
            raise ConfigError(
                "each batch must have at least 2 samples, as this model's batch norm needs them",
                received=f"batch_size={batch_size} of {num_samples} samples, whose last batch has {last} ({error})",
                hint=f"--set batch_size={better}",
            ) from error
        raise PlanError(
            "a micro-batch must have at least 2 samples, as this model's batch norm needs them",
            received=f"micro_batch_size={most} of batches of {batch_size} and {last} samples ({error})",
            hint="set micro_batch_size to 3 or more, or leave it out",
        ) from error
    finally:
        buffers.restore()
        restore_rng_state(generators, device)


def _check_target(recipe: Recipe) -> None:
    for name, goal in recipe.target.items():
        if name not in TARGET_METRICS:
            raise UnknownNameError("a target's metric", name, TARGET_METRICS)
        if name == "accuracy" and not 0 < goal <= 1:
            raise ConfigError(
                "a target accuracy must lie above 0 and at most 1", received=goal, hint="for example accuracy=0.99"
            )
        if name == "loss" and goal <= 0:
            raise ConfigError(
                "a target loss must lie above 0, which no cross-entropy gets below",
                received=goal,
                hint="for example loss=0.1",
            )
