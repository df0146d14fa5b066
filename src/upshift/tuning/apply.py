"""A plan applied to a loop of the user's own: to its model, its optimizer and its loader."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from upshift.errors import ConfigError, PlanError, shown
from upshift.training.execution import lay_out
from upshift.training.optimizers import OptimizerSet, begin_momentum
from upshift.tuning.loader_workers import takes_workers, with_workers
from upshift.tuning.planned_calls import call_as_planned
from upshift.tuning.process_settings import set_process
from upshift.tuning.subject import is_of_another

if TYPE_CHECKING:
    from upshift.tuning.plan import Plan


def apply_plan(plan: Plan, model: nn.Module, optimizer: Any, loader: Any) -> tuple[nn.Module, Any, Any]:
    """Make a user's loop execute as a plan says; see `Plan.apply`."""
    refuse_what_needs_the_loop(plan)
    _refuse_other_models(plan, model)
    if is_of_another(plan, model):
        warnings.warn(
            f"this plan was found for another model than this {type(model).__name__}: it is applied, but may be slower "
            "than none; find one for this model with upshift.tune(model=...)",
            stacklevel=3,
        )
    set_process(plan)
    lay_out(model, layout_of(plan))
    if isinstance(optimizer, torch.optim.Optimizer):
        step_as_planned(optimizer, plan)
    call_as_planned(model, plan)
    return model, optimizer, _loader(plan, loader)


def layout_of(plan: Plan) -> torch.memory_format:
    """How kernels of 2-D convolutions lie in memory by a plan."""
    return torch.channels_last if plan.memory_format == "channels_last" else torch.contiguous_format


def step_as_planned(optimizer: torch.optim.Optimizer, plan: Plan) -> None:
    """Let an optimizer follow the layout of its parameters, with fused kernels or without."""
    optimizers = OptimizerSet([optimizer], {})
    optimizers.follow_layout()
    optimizers.set_fused(plan.fused_optimizer)
    is_fused_sgd = type(optimizer) is torch.optim.SGD and plan.fused_optimizer
    if is_fused_sgd and _begin_momentum_first not in optimizer._optimizer_step_pre_hooks.values():
        optimizer.register_step_pre_hook(_begin_momentum_first)


def _begin_momentum_first(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """The user's loop may thaw parameters, which torch's fused SGD would not take."""
    begin_momentum(optimizer)


def refuse_what_needs_the_loop(plan: Plan) -> None:
    """Refuse a plan that no loop can follow without being written for it.

    Raises:
        PlanError: It takes a batch in parts, scales the loss, or compiles the loss with the model.
    """
    if plan.compile == "step":
        raise PlanError(
            "a plan for a loop of your own cannot compile its loss and its backward pass",
            received='compile="step"',
            hint='set compile to "whole"; tuning with model= finds what is fastest there',
        )
    if plan.micro_batch_size is not None:
        raise PlanError(
            "a plan for a loop of your own cannot split its batches",
            received=f"micro_batch_size={plan.micro_batch_size}",
            hint="set it to null, and accumulate gradients in the loop",
        )
    if plan.precision == "fp16":
        raise PlanError(
            "fp16 needs a torch.amp.GradScaler in the loop itself",
            received='precision="fp16"',
            hint='tune with model=, which proposes no fp16, or set precision to "bf16"',
        )


def _refuse_other_models(plan: Plan, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError("a plan is applied to a torch module", received=shown(model), hint="plan.apply(model)")
    if is_compiled(model):
        raise ConfigError(
            "a plan is applied to the model as it was before torch.compile",
            received="a compiled model",
            hint="leave torch.compile out: the plan says whether to compile",
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ConfigError(
            "a plan is applied to the model itself, before it is wrapped for several devices",
            received=f"a {type(model).__name__}",
            hint="plan.apply(model), and then DistributedDataParallel(model)",
        )
    parameter = next(model.parameters(), None)
    if parameter is not None and plan.device not in ("auto", parameter.device.type):
        raise PlanError(
            f"a plan for the device {plan.device} needs a model there",
            received=f"a model on {parameter.device}",
            hint=f'model.to("{plan.device}") before the optimizer is made, or a plan of this device',
        )


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile stands before a model, as a wrapper or in its call."""
    return isinstance(getattr(model, "_orig_mod", None), nn.Module) or model._compiled_call_impl is not None


def _loader(plan: Plan, loader: Any) -> Any:
    if not says_how_many_workers(plan) or not takes_workers(loader) or loader.num_workers == plan.num_workers:
        return loader
    return with_workers(loader, plan.num_workers)


def says_how_many_workers(plan: Plan) -> bool:
    """Whether a plan's number of workers is meant.

    A loop that never waited for its data was tuned with the workers that it had: no other number was tried, and a
    loader elsewhere may need its own.
    """
    if plan.data_path != "worker":
        return False
    tried = [trial for trial in plan.trials if trial.get("verdict") != "not tried"]
    return not plan.trials or any("num_workers" in trial.get("changes", {}) for trial in tried)
