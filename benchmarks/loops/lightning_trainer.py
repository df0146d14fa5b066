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

    def __call__(self) -> Turn:
        self._job.reset(self._module.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few loader workers; the articles' loader has none either
            trainer = lightning.Trainer(
                max_epochs=1, limit_train_batches=self._job.num_steps, barebones=True, accelerator="auto", devices=1
            )
            trainer.fit(self._module, self._loader)
        return Turn(self._module.seconds, float(self._module.total_loss) / self._job.num_steps)


class _Module(lightning.LightningModule):
    """Loss and optimizer; notes the time of the epoch's batches, without Lightning's set-up and end."""

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
        return torch.optim.SGD(self.model.parameters(), lr=self.job.learning_rate)

    def on_train_epoch_start(self) -> None:
        self.total_loss = torch.zeros((), device=self.device)
        self._start = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        self.job.synchronize()
        self.seconds = time.perf_counter() - self._start
