"""The sections of a plan that compiles model, loss and gradients as one graph."""

from __future__ import annotations

from collections.abc import Sequence

from upshift.training.execution import AUTOCAST_DTYPES
from upshift.tuning.emit.job import Job
from upshift.tuning.emit.source import lines, literal, when


def compiles_step(job: Job) -> bool:
    """Whether a step is one graph."""
    return job.plan.compile == "step"


def autocast(job: Job) -> str:
    """The context that the plan's precision has a model called in; "" where it has none."""
    dtype = AUTOCAST_DTYPES.get(job.plan.precision)
    return "" if dtype is None else f"torch.autocast(DEVICE.type, {dtype})"


def step_graph_section(job: Job) -> Sequence[str]:
    """The class `StepGraph`, if the plan has use for it."""
    if not compiles_step(job):
        return []
    mode = "" if job.plan.compile_mode is None else f"mode={literal(job.plan.compile_mode)}, "
    logits = "torch.func.functional_call(model, (trained, buffers), (inputs,))"
    context = autocast(job)
    share = ", share: float" if job.accumulates else ""
    return [
        lines(
            "class StepGraph:",
            '    """Loss and gradients of batches of the usual size, as one compiled function."""',
            "",
            "    def __init__(self, model: nn.Module) -> None:",
            "        self.trained = trained_parameters(model)",
            "        self.buffers = dict(model.named_buffers())",
            "",
            "        def loss_of(trained: Any, buffers: Any, inputs: torch.Tensor, labels: torch.Tensor) -> Any:",
            when(context, f"            with {context}:", f"                logits = {logits}"),
            when(not context, f"            logits = {logits}"),
            "            return compute_loss(logits, labels)",
            "",
            "        gradients_and_loss = torch.func.grad_and_value(loss_of)",
            f"        self.compiled = torch.compile(gradients_and_loss, {mode}fullgraph=True, dynamic=False)",
            "",
            "    @torch.no_grad()  # the function differentiates by itself",
            f"    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor{share}) -> torch.Tensor:",
            when(not job.accumulates, '        """The loss of a batch; its gradients are put into the parameters."""'),
            when(job.accumulates, '        """The loss of a part of a batch, times its share; adds its gradients."""'),
            "        gradients, loss = self.compiled(self.trained, self.buffers, inputs, labels)",
            "        taken = set()",
            "        for name, parameter in self.trained.items():",
            f"            gradient = gradients[name]{' * share' if job.accumulates else ''}",
            "            # Fused optimizers go through both as they lie in memory; of a + b both have one gradient.",
            "            if gradient.stride() != parameter.stride() or gradient.untyped_storage().data_ptr() in taken:",
            "                gradient = torch.empty_like(parameter).copy_(gradient)",
            "            taken.add(gradient.untyped_storage().data_ptr())",
            when(not job.accumulates, "            parameter.grad = gradient"),
            when(
                job.accumulates,
                "            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)",
            ),
            f"        return loss{' * share' if job.accumulates else ''}",
        ),
        lines(
            "def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:",
            "    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}",
        ),
    ]
