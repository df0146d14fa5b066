"""The same training by PyTorch Lightning, in its own fastest setting."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import lightning
import torch
from torch.nn import functional as F

from loops.articles import sample_loader
from loops.job import Job, Turn


class LightningTrainer:
    """`Trainer(barebones=True)`: no progress bar, logger, checkpoints or summary. Nothing is logged in a step."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loader = sample_loader(job)
        self._module = _Module(job)
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def __call__(self, num_steps: int | None = None) -> Turn:
        num_steps = num_steps or self._job.num_steps
        self._job.reset(self._module.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few loader workers; the articles' loader has none either
            trainer = lightning.Trainer(
                max_epochs=-1, max_steps=num_steps, barebones=True, accelerator="auto", devices=1
            )
            trainer.fit(self._module, self._loader)
        return Turn(self._module.seconds, float(self._module.total_loss) / num_steps)


class _Module(lightning.LightningModule):
    """Loss and optimizer; notes the time of the batches, without Lightning's set-up and end."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job, self.model = job, job.model()
        self.total_loss = torch.zeros(())
        self.seconds = 0.0

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.total_loss += loss.detach()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.job.optimizer(self.model)

    def on_train_start(self) -> None:
        self.total_loss = torch.zeros((), device=self.device)
        self._start = time.perf_counter()

    def on_train_end(self) -> None:
        self.job.synchronize()
        self.seconds = time.perf_counter() - self._start
