"""torch's own optimizers that have fused kernels: how they are made, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from upshift.training.config import OptimizerConfig

ParamGroups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerInfo:
    """What is known of a built-in optimizer."""

    type: type[torch.optim.Optimizer]
    make: Callable[[ParamGroups, OptimizerConfig, bool | None], torch.optim.Optimizer]
    fused_dtypes: tuple[torch.dtype, ...]
    takes: tuple[str, ...]


def _sgd(groups: ParamGroups, config: OptimizerConfig, fused: bool | None) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused, **config.options
    )


def _adam(groups: ParamGroups, config: OptimizerConfig, fused: bool | None) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused, **config.options)


def _adamw(groups: ParamGroups, config: OptimizerConfig, fused: bool | None) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused, **config.options)


_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BUILTIN = {
    "sgd": OptimizerInfo(torch.optim.SGD, _sgd, _FLOATS, ("momentum", "nesterov")),
    "adam": OptimizerInfo(torch.optim.Adam, _adam, _FLOATS, ("betas", "eps")),
    "adamw": OptimizerInfo(torch.optim.AdamW, _adamw, _FLOATS, ("betas", "eps")),
}


def builtin_info(optimizer: torch.optim.Optimizer) -> OptimizerInfo | None:
    """What is known of an optimizer; None where it is not one of these, but of a subclass, say."""
    return next((info for info in BUILTIN.values() if type(optimizer) is info.type), None)


def has_fused_kernels(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch's fused kernels can be switched on and off for an optimizer."""
    return builtin_info(optimizer) is not None


def fused_or_torchs_choice(fused: bool | None) -> bool | None:
    """torch takes its kernels for many tensors at once only where `fused` and `foreach` are both None: with False,
    an accelerator would be given one parameter after another."""
    return True if fused else None
