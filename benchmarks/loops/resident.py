"""A loop written with care by hand: what a person who knows PyTorch well would do without upshift."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch.nn import functional as F

from loops.job import Job, Turn


class ResidentLoop:
    """Images as uint8 in memory, batches by indexing, normalised at once, fused SGD, metrics left on the device."""

    def __init__(self, job: Job) -> None:
        self._job = job
        split, info = job.dataset.splits["train"], job.dataset.info
        self._images = torch.from_numpy(np.array(split.inputs)).to(job.device)
        self._labels = torch.from_numpy(np.array(split.labels)).to(job.device)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(job.device) for values in (info.mean, info.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._model = job.model()

    def __call__(self) -> Turn:
        job = self._job
        model = job.reset(self._model)
        optimizer = job.optimizer(model, fused=True)
        total_loss = torch.zeros((), device=job.device)
        correct = torch.zeros((), dtype=torch.int64, device=job.device)
        start = time.perf_counter()
        order = torch.randperm(len(self._labels), device=job.device)
        for rows in order.split(job.recipe.batch_size)[: job.num_steps]:
            images = self._images[rows].float().mul_(self._scale).add_(self._shift)
            labels = self._labels[rows]
            outputs = model(images)
            loss = F.cross_entropy(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += loss.detach()
            correct += (outputs.detach().argmax(1) == labels).sum()
        job.synchronize()
        return Turn(time.perf_counter() - start, float(total_loss) / job.num_steps)
