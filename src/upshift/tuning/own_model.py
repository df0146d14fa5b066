"""A model, its loss and its optimizer as tuning takes them: refused where no step can be made, and copied."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from upshift.errors import ConfigError, shown
from upshift.tuning.apply import is_compiled
from upshift.tuning.live import first_line

Loss = Callable[[Any, Any], torch.Tensor]
ONE_BY_ONE = "tune each model of several (as of a GAN) by itself, with its own loss and optimizer"


def refuse_what_makes_no_step(model: nn.Module, loss: Any, optimizer: Any) -> None:
    """Refuse what is not one model with one optimizer.

    Raises:
        ConfigError: The model is compiled or has nothing to train; the optimizer is of others, or needs a closure.
    """
    if is_compiled(model):
        raise ConfigError(
            "a model is tuned as it was before torch.compile",
            received="a compiled model",
            hint="give the model itself: compiling it is among what is tried",
        )
    if type(model).forward is nn.Module.forward and "forward" not in model.__dict__:
        raise ConfigError(
            "a model must have a forward of its own", received=f"a {type(model).__name__} without one", hint=ONE_BY_ONE
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "a model must have parameters to train",
            received=f"a {type(model).__name__} without any",
            hint="leave requires_grad on for some of them",
        )
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError("tune makes steps with one torch optimizer", received=shown(optimizer), hint=ONE_BY_ONE)
    owned = {id(parameter) for parameter in all_parameters(model, loss).values()}
    if any(id(parameter) not in owned for group in optimizer.param_groups for parameter in group["params"]):
        raise ConfigError(
            "the optimizer must be of the model's parameters", received="one that has others", hint=ONE_BY_ONE
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            "the optimizer must make a step without a closure",
            received=type(optimizer).__name__,
            hint="leave optimizer= out: the plan that is found is for model and loss",
        )


def all_parameters(model: nn.Module, loss: Any) -> dict[str, nn.Parameter]:
    """Those of a model, and of a loss that has some itself, by name."""
    of_loss = loss.named_parameters(prefix="loss") if isinstance(loss, nn.Module) else ()
    return dict(model.named_parameters()) | dict(of_loss)


def copies(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, loss: Loss | None
) -> tuple[nn.Module, torch.optim.Optimizer | None, Loss | None]:
    """All at once: the optimizer's copy updates the model's copy, and a loss that is its method is the copy's."""
    has_state = isinstance(loss, nn.Module) or (isinstance(loss, MethodType) and isinstance(loss.__self__, nn.Module))
    try:
        copied = copy.deepcopy((model, optimizer, loss if has_state else None))
    except Exception as error:  # whatever a module's attributes raise
        raise ConfigError(
            "a model must be one that can be copied: its own weights are not touched",
            received=first_line(error),
            hint="give it a __deepcopy__, and keep tensors with gradients out of its attributes",
        ) from error
    return copied[0], copied[1], copied[2] if has_state else loss


@contextmanager
def gradients_set_aside(model: nn.Module) -> Iterator[None]:
    """Refuse a loss that goes back to the user's own model, which would train that instead of the copy."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
        if any(parameter.grad is not None for parameter, _ in kept):
            raise ConfigError(
                "the loss must be computed from the outputs that it is given",
                received="a loss that uses the model's own parameters",
                hint="leave such a penalty out, or make it part of the model's outputs: tuning works on a copy",
            )
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def checked(loss: Loss) -> Loss:
    """The loss, refused by name where no gradient can come from it."""

    def one_number(outputs: Any, targets: Any) -> torch.Tensor:
        value = loss(outputs, targets)
        if not isinstance(value, torch.Tensor):
            raise ConfigError("the loss must be a tensor", received=shown(value), hint="leave out item() and float()")
        if value.numel() != 1:
            raise ConfigError(
                "the loss must be one number, a mean over the batch",
                received=f"a tensor of shape {tuple(value.shape)}",
                hint='take its mean(), or leave reduction="none" out',
            )
        if not value.requires_grad:
            raise ConfigError(
                "the loss must depend on the parameters that are trained",
                received="a loss without gradients",
                hint="compute it from the outputs, without detach(), argmax() or no_grad()",
            )
        return value

    return one_number


def loss_of_outputs(outputs: Any, targets: Any) -> torch.Tensor:
    """The loss that a model's outputs hold, as those of transformers do.

    Raises:
        ConfigError: They hold none.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if not isinstance(loss, torch.Tensor):
        raise ConfigError(
            "without loss=, the model's outputs must hold their loss",
            received=f"outputs of type {type(outputs).__name__} without one",
            hint="give loss=, a function of (outputs, targets)",
        )
    return loss
