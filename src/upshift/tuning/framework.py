"""A plan in the loop of a framework, from the beginning of its training to the end."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from upshift.errors import PlanError
from upshift.training.execution import lay_out
from upshift.tuning.apply import apply_plan, layout_of, refuse_what_needs_the_loop, step_as_planned
from upshift.tuning.plan import Plan
from upshift.tuning.planned_calls import call_plainly
from upshift.tuning.process_settings import set_by_plans, set_to


class PlanInFramework:
    """Applies a plan while a framework trains.

    Args:
        plan: It is refused at once where a loop would have to be written for it.

    Raises:
        PlanError: It needs a loop that is written for it (see `refuse_what_needs_the_loop`), or a device that is not
            here.
    """

    def __init__(self, plan: Plan) -> None:
        refuse_what_needs_the_loop(plan)
        plan.check_device()
        self._plan = plan
        self._model: nn.Module | None = None

    def lay_out(self, model: nn.Module) -> None:
        """Lay the model out before the framework wraps it for several processes.

        DistributedDataParallel makes the buckets that it sums gradients in of the layout that it finds.
        """
        lay_out(model, layout_of(self._plan))

    def begin(
        self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], *, is_distributed: bool = False
    ) -> None:
        """Execute as the plan says from now on.

        Args:
            model: On its device.
            optimizers: Of its parameters.
            is_distributed: Whether several processes train it together: it is wrapped by now.

        Raises:
            PlanError: The model lies on another device than the plan is for; or it is wrapped already, and has another
                layout.
        """
        if is_distributed and not _is_laid_out(model, layout_of(self._plan)):
            raise PlanError(
                "the layout of a model must be the plan's before it is wrapped for several processes",
                received=f'memory_format="{self._plan.memory_format}", and a model laid out otherwise',
                hint="hand the callback over when the Trainer is made, or call plan.apply where the model is made",
            )
        self.end()
        self._set_before, self._precision = set_by_plans(), torch.get_float32_matmul_precision()
        self._model = model
        apply_plan(self._plan, model, None, None)
        for optimizer in optimizers:
            step_as_planned(optimizer, self._plan)

    def end(self) -> None:
        """Call the model as it was called before, with the settings of the process that were there before.

        Layout and fused kernels stay: they make no difference to whoever goes on with model and optimizer.
        """
        if self._model is None:
            return
        call_plainly(self._model)
        self._model = None
        set_to(self._set_before)
        torch.set_float32_matmul_precision(self._precision)


def _is_laid_out(model: nn.Module, layout: torch.memory_format) -> bool:
    kernels = [tensor for tensor in [*model.parameters(), *model.buffers()] if tensor.dim() == 4]
    return all(kernel.is_contiguous(memory_format=layout) for kernel in kernels)
