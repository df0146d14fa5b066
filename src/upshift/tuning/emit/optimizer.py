"""The sections of what updates the weights: the optimizer, its learning rate, the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upshift.training.builtin_optimizers import BUILTIN
from upshift.training.config import OptimizerConfig
from upshift.training.schedules import ONE_CYCLE_WARMUP
from upshift.tuning.emit.carry import Carried
from upshift.tuning.emit.decay import decay_groups, splits_decay
from upshift.tuning.emit.job import Job
from upshift.tuning.emit.muon import make_muon
from upshift.tuning.emit.source import call, keywords, lines, literal, when


def make_optimizer(job: Job) -> str:
    """The function `make_optimizer`."""
    config = job.config.optimizer
    if config.name == "muon":
        return make_muon(job)
    groups = splits_decay(config)
    # Not False: torch takes its kernels for many tensors at once only where it is not told.
    fused = {"fused": True} if config.name in BUILTIN and job.fused and not thaws_momentum(job) else {}
    parameters = "groups" if groups else "parameters"
    decay: dict[str, Any] = {} if groups else {"weight_decay": config.weight_decay}
    values = {"lr": None, **_hyperparameters(config), **decay, **fused, **config.options}
    arguments = [parameters, *("lr=LEARNING_RATE" if key == "lr" else text for key, text in _named(values))]
    function = {"sgd": "torch.optim.SGD", "adam": "torch.optim.Adam", "adamw": "torch.optim.AdamW"}.get(
        config.name, f"pytorch_optimizer.load_optimizer({literal(config.name)})"
    )
    return lines(
        "def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:",
        "    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]",
        when(groups, *decay_groups(config, "parameters")),
        f"    return {call(function, arguments, indent=4, used=11)}",
    )


def thaws_momentum(job: Job) -> bool:
    """Whether parameters without a momentum join others of SGD's, which torch's fused kernels do not take (2.13)."""
    config = job.config.optimizer
    return config.name == "sgd" and bool(config.momentum) and any(stage.freeze for stage in job.config.stages)


def _named(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(zip(values, keywords(values, indent=4), strict=True))


def _hyperparameters(config: OptimizerConfig) -> dict[str, Any]:
    """What the constructor takes of the config, as the trainer hands it over."""
    if config.name == "sgd":
        return {"momentum": config.momentum, "nesterov": config.nesterov}
    if config.name in ("adam", "adamw"):
        return {"betas": config.betas, "eps": config.eps}
    defaults = OptimizerConfig()
    names = ("momentum", "nesterov", "betas", "eps")
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(defaults, name)}


def has_schedule(job: Job) -> bool:
    """Whether the learning rate changes from step to step."""
    schedule = job.config.schedule
    return schedule.name != "constant" or bool(schedule.warmup_fraction)


def learning_rate_factor(job: Job) -> str:
    """The function `learning_rate_factor`."""
    schedule = job.config.schedule
    warmup = schedule.warmup_fraction
    if warmup is None:
        warmup = ONE_CYCLE_WARMUP if schedule.name == "one_cycle" else 0.0
    remaining = "1.0 - progress" if schedule.name == "linear" else "0.5 * (1.0 + math.cos(math.pi * progress))"
    final = schedule.final_fraction
    from_step = "(step - warmup_steps)" if warmup else "step"
    of_steps = "total_steps - 1 - warmup_steps" if warmup else "total_steps - 1"
    return lines(
        "def learning_rate_factor(step: int, total_steps: int) -> float:",
        '    """The learning rate of a step as a share of its peak; the step about to be made, from 0."""',
        when(
            warmup,
            f"    warmup_steps = round({literal(warmup)} * total_steps)",
            "    if step < warmup_steps:",
            "        return (step + 1) / warmup_steps",
        ),
        when(schedule.name == "constant", "    return 1.0"),
        when(
            schedule.name != "constant",
            f"    progress = min(1.0, {from_step} / max(1, {of_steps}))",
            f"    return {remaining}" if final == 0 else f"    remaining = {remaining}",
        ),
        when(
            schedule.name != "constant" and final != 0,
            f"    return {literal(final)} + (1.0 - {literal(final)}) * remaining",
        ),
    )


def loss_sections(job: Job, carried: Carried) -> list[str]:
    """The function `compute_loss`, after the recipe's own loss."""
    smoothing = job.config.label_smoothing
    loss = f"F.cross_entropy(logits.float(), labels{f', label_smoothing={literal(smoothing)}' if smoothing else ''})"
    if job.loss is not None:
        loss = f"{carried.add_reference(job.loss.name, job.loss.file)}(logits.float(), labels)"
    function = lines(
        "def compute_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:",
        '    """The mean loss of a batch."""',
        f"    return {loss}",
    )
    return [carried.take(), function]
