"""What training does: optimizer, schedule, regularisation, checkpoints. Every value is checked when made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from upshift.core.typed_fields import check_fields
from upshift.errors import ConfigError

SCHEDULES = ("constant", "cosine", "one_cycle", "linear")
MAX_EPOCHS, MAX_STEPS = 1_000_000, 1_000_000_000
"""More are a slip of the finger: even on the smallest data they take years."""


def _require(holds: bool, rule: str, received: object, hint: str) -> None:
    if not holds:
        raise ConfigError(rule, received=received, hint=hint)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights are updated.

    Attributes:
        name: "sgd", "adam", "adamw", "muon" (2-D hidden weights; AdamW for the rest), or one of the package
            pytorch_optimizer (docs/optimizers.md says which).
        lr: Peak learning rate.
        momentum: For SGD and Muon.
        nesterov: For SGD and Muon.
        weight_decay: Decoupled for AdamW and Muon, as L2 for SGD and Adam, as torch.optim has it.
        decay_norm_and_bias: Apply weight decay to 1-D parameters (norms and biases) too.
        betas: For Adam, AdamW, and the AdamW part of Muon.
        eps: Likewise.
        adamw_lr: Learning rate of Muon's AdamW part; `lr` when None.
        options: Further keyword arguments of the optimizer's constructor.
    """

    name: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_norm_and_bias: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    adamw_lr: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.")
        _require(self.lr > 0, "optimizer.lr must be above 0", self.lr, "for example --set optimizer.lr=0.01")
        _require(
            self.adamw_lr is None or self.adamw_lr > 0,
            "optimizer.adamw_lr must be above 0",
            self.adamw_lr,
            "leave it out to use optimizer.lr",
        )
        _require(
            0 <= self.momentum < 1,
            "optimizer.momentum must be at least 0 and below 1",
            self.momentum,
            "0.9 is the usual value",
        )
        _require(
            self.weight_decay >= 0,
            "optimizer.weight_decay must not be negative",
            self.weight_decay,
            "0 turns it off",
        )
        _require(self.eps > 0, "optimizer.eps must be above 0", self.eps, "1e-8 is the usual value")
        _require(
            all(0 <= beta < 1 for beta in self.betas),
            "optimizer.betas must be at least 0 and below 1",
            self.betas,
            "0.9,0.999 are the usual values",
        )
        _require(
            not self.nesterov or self.momentum > 0,
            "optimizer.nesterov needs momentum",
            f"momentum={self.momentum}",
            "set optimizer.momentum=0.9",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate goes from step to step.

    Attributes:
        name: "constant", "cosine" (to `final_fraction`), "linear" (to `final_fraction`), or "one_cycle"
            (rises for `warmup_fraction` of the steps, then anneals by cosine; arXiv 1708.07120).
        warmup_fraction: Share of all steps in which the rate rises linearly from near 0 to its peak; None is
            0.3 for "one_cycle" and 0 for the others.
        final_fraction: Rate at the last step, as a share of the peak.
    """

    name: str = "constant"
    warmup_fraction: float | None = None
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "schedule.")
        _require(self.name in SCHEDULES, f"schedule.name must be one of {', '.join(SCHEDULES)}", self.name, "constant")
        _require(
            self.warmup_fraction is None or 0 <= self.warmup_fraction < 1,
            "schedule.warmup_fraction must be at least 0 and below 1",
            self.warmup_fraction,
            "0.1 warms up over a tenth of the steps",
        )
        _require(
            0 <= self.final_fraction <= 1,
            "schedule.final_fraction must lie between 0 and 1",
            self.final_fraction,
            "0 ends at a learning rate of 0",
        )


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stretch of epochs with its own image size and frozen parameters.

    Attributes:
        epochs: How many epochs the stage lasts.
        image_size: Height and width that images are resized to in it; None keeps them.
        freeze: Glob patterns of parameter names that are not trained in it.
    """

    epochs: int
    image_size: tuple[int, int] | None = None
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "stages.")
        _require(self.epochs >= 1, "stages.epochs must be at least 1", self.epochs, "leave the stage out")
        _require(
            self.image_size is None or min(self.image_size) >= 1,
            "stages.image_size must be two positive numbers",
            self.image_size,
            "for example [24, 24]",
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What training does, whatever the model and data are.

    Attributes:
        batch_size: Samples per optimizer step, however a plan splits them into micro-batches.
        epochs: Passes over the training split.
        max_steps: Optimizer steps after which training ends, maybe within an epoch; None leaves it to `epochs`.
        optimizer: How weights are updated.
        schedule: How the learning rate goes.
        label_smoothing: Share of the target's mass spread over all classes (arXiv 1512.00567).
        clip_grad_norm: Largest L2 norm of all gradients together; None leaves them.
        ema_decay: Decay a step of an exponential moving average of the weights, which is then what is
            evaluated and saved; None keeps none.
        target: Metric to its goal, as {"accuracy": 0.99}; training stops where it is reached.
        patience: Epochs without a better validation accuracy after which training stops; None never. Needs a
            validation split.
        stages: Stretches of epochs with their own image size and frozen parameters; their epochs must
            add up to `epochs`.
        evaluate_every: Epochs between two evaluations while training; the last epoch always has one.
        log_every: Steps between two lines of metrics.jsonl; None picks about 50 lines an epoch, at least 10
            steps apart. The last step of an epoch always has one.
        checkpoint_every_steps: Steps between two checkpoints; None leaves it to the minutes.
        checkpoint_every_minutes: Minutes between two checkpoints; None leaves it to the steps.
        keep_checkpoints: How many of the newest checkpoints are kept, beside the best.
        max_nonfinite_steps: Skipped steps in a row after which training gives up.
    """

    batch_size: int = 64
    epochs: int = 10
    max_steps: int | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    label_smoothing: float = 0.0
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    target: Mapping[str, float] = field(default_factory=dict)
    patience: int | None = None
    stages: tuple[StageConfig, ...] = ()
    evaluate_every: int = 1
    log_every: int | None = None
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float | None = 5.0
    keep_checkpoints: int = 2
    max_nonfinite_steps: int = 20

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("batch_size", "epochs", "evaluate_every", "keep_checkpoints", "max_nonfinite_steps"):
            value = getattr(self, name)
            _require(value >= 1, f"{name} must be at least 1", value, f"for example --set {name}=1")
        for name, most in (("epochs", MAX_EPOCHS), ("max_steps", MAX_STEPS)):
            value = getattr(self, name)
            hint = f"for example --set {name}=100; a training is stopped at any time, and resumed with more"
            _require(value is None or value <= most, f"{name} must be at most {most:,}", value, hint)
        optional = ("max_steps", "log_every", "patience", "clip_grad_norm")
        for name in (*optional, "checkpoint_every_steps", "checkpoint_every_minutes"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} must be above 0", value, "none turns it off")
        _require(
            0 <= self.label_smoothing < 1,
            "label_smoothing must be at least 0 and below 1",
            self.label_smoothing,
            "0.1 is the usual value",
        )
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "ema_decay must lie between 0 and 1",
            self.ema_decay,
            "0.999 is the usual value",
        )
        total = sum(stage.epochs for stage in self.stages)
        _require(
            not self.stages or total == self.epochs,
            f"the epochs of the stages must add up to epochs={self.epochs}",
            total,
            "set epochs, or change a stage",
        )
