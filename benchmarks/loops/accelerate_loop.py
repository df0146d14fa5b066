"""The same training with Hugging Face Accelerate, as its documentation has the loop."""

from __future__ import annotations

import time
from itertools import islice

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from loops.articles import sample_loader
from loops.job import Job, Turn


class AccelerateLoop:
    """`accelerator.prepare` and `accelerator.backward`; no `.item()` in a step."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._accelerator = Accelerator(cpu=job.device.type == "cpu")
        model = job.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=job.learning_rate)
        self._model, self._optimizer, self._loader = self._accelerator.prepare(model, optimizer, sample_loader(job))

    def __call__(self) -> Turn:
        self._job.reset(self._accelerator.unwrap_model(self._model))
        total_loss = torch.zeros((), device=self._job.device)
        start = time.perf_counter()
        for images, labels in islice(self._loader, self._job.num_steps):
            self._optimizer.zero_grad()
            loss = F.cross_entropy(self._model(images), labels)
            self._accelerator.backward(loss)
            self._optimizer.step()
            total_loss += loss.detach()
        self._job.synchronize()
        return Turn(time.perf_counter() - start, float(total_loss) / self._job.num_steps)
