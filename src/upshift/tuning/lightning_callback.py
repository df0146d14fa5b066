"""A plan in the loop of Lightning: its callback."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from upshift.errors import BadInputError, ConfigError, MissingExtraError, UnknownNameError
from upshift.tuning.framework import PlanInFramework
from upshift.tuning.plan import Plan


def lightning_callback(plan: Plan, model: str | None) -> Any:
    """A `lightning.Callback` that trains by a plan; see `upshift.lightning_callback`."""
    try:
        import lightning
    except ImportError as error:
        raise MissingExtraError("lightning", extra="lightning", purpose="a callback for Lightning") from error

    class PlanCallback(lightning.Callback):  # type: ignore[misc] # lightning is not imported for type checks
        """Executes as a plan says, from the first step of `Trainer.fit` to its last."""

        def __init__(self) -> None:
            self._in_loop = PlanInFramework(plan)

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if stage == "fit" and trainer.world_size > 1:
                # A network that is made later, in configure_model, has to be laid out there.
                with contextlib.suppress(BadInputError):
                    self._in_loop.lay_out(_tuned_part(pl_module, model))

        # Not on_fit_start: a checkpoint that is resumed from is loaded after it, and brings an optimizer's state.
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            part = _tuned_part(pl_module, model)
            self._in_loop.begin(part, trainer.optimizers, is_distributed=trainer.world_size > 1)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self._in_loop.end()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self._in_loop.end()

    return PlanCallback()


def _tuned_part(module: nn.Module, name: str | None) -> nn.Module:
    """The network in a LightningModule: the one by that name, or the only one that has parameters."""
    if name is not None:
        parts: dict[str, nn.Module] = dict(module.named_modules())
        if name not in parts:
            raise UnknownNameError("model", name, [part for part in parts if part], hint="")
        return parts[name]
    found = {
        part: child
        for part, child in module.named_children()
        if any(parameter.requires_grad for parameter in child.parameters())
    }
    if len(found) != 1:
        raise ConfigError(
            "a LightningModule must have one network, or be told which one the plan is of",
            received=f"{type(module).__name__} with {', '.join(found) or 'none'}",
            hint='lightning_callback(plan, model="…"), by its attribute; "" is the LightningModule\'s own forward',
        )
    return next(iter(found.values()))
