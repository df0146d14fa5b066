"""All that a checkpoint has to hold, taken from the parts of a training and put back into them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn

from upshift.training.checkpoint import Checkpoint
from upshift.training.ema import ExponentialMovingAverage
from upshift.training.metrics import RunningMetrics
from upshift.training.optimizers import OptimizerSet
from upshift.training.progress import Progress
from upshift.training.rng import restore_rng_state, rng_state
from upshift.training.step import TrainingStep


@dataclass(frozen=True)
class RunState:
    """The parts of a training that change while it runs."""

    model: nn.Module
    optimizer: OptimizerSet
    step: TrainingStep
    metrics: RunningMetrics
    progress: Progress
    ema: ExponentialMovingAverage | None
    device: torch.device

    def checkpoint(self, best: dict[str, torch.Tensor]) -> Checkpoint:
        """A checkpoint of now, with the best weights so far."""
        optimizer_tensors, optimizer_rest = self.optimizer.state()
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors,
            "ema": self.ema.averages if self.ema else {},
            "best": best,
            "rng": rng_state(self.device),
        }
        state = {
            "progress": asdict(self.progress),
            "optimizer": optimizer_rest,
            "ema_updates": self.ema.num_updates if self.ema else 0,
            "training_step": self.step.state(),
            "metrics": self.metrics.state(),
        }
        flat = {f"{kind}/{name}": tensor for kind, group in tensors.items() for name, tensor in group.items()}
        return Checkpoint(self.progress.step, flat, state)

    def load(self, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """Take back what a checkpoint holds; gives the best weights so far."""
        groups: dict[str, dict[str, torch.Tensor]] = {"ema": {}, "best": {}, "optimizer": {}}
        for path, tensor in checkpoint.tensors.items():
            kind, name = path.split("/", 1)
            groups.setdefault(kind, {})[name] = tensor
        state = checkpoint.state
        self.model.load_state_dict(groups["model"])
        self.optimizer.load_state(groups["optimizer"], state["optimizer"])
        if self.ema is not None:
            self.ema.load(groups["ema"], state["ema_updates"])
        self.step.load_state(state["training_step"])
        self.metrics.load_state(state["metrics"])
        for name, value in state["progress"].items():
            setattr(self.progress, name, value)
        restore_rng_state(groups["rng"], self.device)
        return groups["best"]
