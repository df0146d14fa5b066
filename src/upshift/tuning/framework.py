"""A plan in the loop of a framework, from the beginning of its training to the end."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from upshift.tuning.apply import apply_plan, refuse_what_needs_the_loop, step_as_planned
from upshift.tuning.plan import Plan
from upshift.tuning.planned_calls import call_plainly


class PlanInFramework:
    """Applies a plan while a framework trains.

    Args:
        plan: It is refused at once where a loop would have to be written for it.

    Raises:
        PlanError: It takes batches in parts, scales the loss, or is for a device that is not here.
    """

    def __init__(self, plan: Plan) -> None:
        refuse_what_needs_the_loop(plan)
        plan.check_device()
        self._plan = plan
        self._model: nn.Module | None = None

    def begin(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Execute as the plan says from now on.

        Raises:
            PlanError: The model lies on another device than the plan is for.
        """
        self.end()
        self._threads, self._precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        self._model = model
        apply_plan(self._plan, model, None, None)
        for optimizer in optimizers:
            step_as_planned(optimizer, self._plan)

    def end(self) -> None:
        """Call the model as it was called before, with the threads and the precision of before.

        Layout and fused kernels stay: they make no difference to whoever goes on with model and optimizer.
        """
        if self._model is None:
            return
        call_plainly(self._model)
        self._model = None
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        torch.set_float32_matmul_precision(self._precision)
