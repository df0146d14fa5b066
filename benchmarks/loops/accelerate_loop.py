"""The same training with Hugging Face Accelerate, as its documentation has the loop."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from loops.articles import sample_loader
from loops.job import Job, Turn, first_batches


class AccelerateLoop:
    """`accelerator.prepare` and `accelerator.backward`; no `.item()` in a step."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._accelerator = Accelerator(cpu=job.device.type == "cpu")
        model = job.model()
        prepared = self._accelerator.prepare(model, job.optimizer(model), sample_loader(job))
        self._model, self._optimizer, self._loader = prepared

    def __call__(self, num_steps: int | None = None) -> Turn:
        num_steps = num_steps or self._job.num_steps
        self._job.reset(self._accelerator.unwrap_model(self._model))
        self._optimizer.optimizer.state.clear()  # what AdamW remembers is of the weights before
        total_loss = torch.zeros((), device=self._job.device)
        start = time.perf_counter()
        for images, labels in first_batches(self._loader, num_steps):
            self._optimizer.zero_grad()
            loss = F.cross_entropy(self._model(images), labels)
            self._accelerator.backward(loss)
            self._optimizer.step()
            total_loss += loss.detach()
        self._job.synchronize()
        return Turn(time.perf_counter() - start, float(total_loss) / num_steps)
