"""A PyTorch loop as an expert writes it today: DataLoader workers, fused optimizer, no waiting for the device."""

from __future__ import annotations

import time
from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from loops.job import Job, Turn
from upshift.core.environment import num_usable_cores

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]
MAX_WORKERS = 4


class CarefulLoop:
    """Persistent workers that fetch whole batches of bytes, normalised on the device in one pass; sums left there.

    Args:
        job: What is trained.
        compiled: Let torch.compile compile the model, as it does by default.
    """

    def __init__(self, job: Job, *, compiled: bool = False) -> None:
        self._job, self._model = job, job.model()
        self._step_model = torch.compile(self._model) if compiled else self._model
        self._prepare = _Preparation(job)
        self._dataset = StoredRows(job)
        self._loaders: dict[int, DataLoader[Batch]] = {}

    def __call__(self, num_steps: int | None = None) -> Turn:
        job, num_steps = self._job, num_steps or self._job.num_steps
        job.reset(self._model)
        optimizer = job.optimizer(self._model, fused=True)
        total_loss = torch.zeros((), device=job.device)
        correct = torch.zeros((), dtype=torch.int64, device=job.device)
        start = time.perf_counter()
        for stored, labels in self._loader(num_steps):
            inputs = self._prepare(stored.to(job.device, non_blocking=True))
            labels = labels.to(job.device, non_blocking=True)
            outputs = self._step_model(inputs)
            loss = F.cross_entropy(outputs, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total_loss += loss.detach()
            correct += (outputs.detach().argmax(1) == labels).sum()
        job.synchronize()
        return Turn(time.perf_counter() - start, float(total_loss) / num_steps)

    def _loader(self, num_steps: int) -> DataLoader[Batch]:
        """Batches of that many steps, all whole; the workers of one number of steps live on."""
        if num_steps not in self._loaders:
            batch_size = self._job.recipe.batch_size
            self._loaders[num_steps] = DataLoader(
                self._dataset,
                batch_size=batch_size,
                sampler=RandomSampler(self._dataset, num_samples=num_steps * batch_size),
                num_workers=min(MAX_WORKERS, max(1, num_usable_cores() - 1)),
                persistent_workers=True,
                prefetch_factor=4,
                pin_memory=self._job.device.type == "cuda",
                collate_fn=_as_it_is,
            )
        return self._loaders[num_steps]


class StoredRows(Dataset[Batch]):
    """Rows as stored, in memory; a batch is one indexing (`__getitems__`, which the DataLoader asks for first)."""

    def __init__(self, job: Job) -> None:
        split = job.dataset.splits["train"]
        self._inputs, self._labels = (torch.from_numpy(np.array(rows)) for rows in (split.inputs, split.labels))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> Batch:
        return self._inputs[row], self._labels[row]

    def __getitems__(self, rows: list[int]) -> Batch:
        wanted = torch.tensor(rows)
        return self._inputs[wanted], self._labels[wanted]


def _as_it_is(batch: Batch) -> Batch:
    return batch


class _Preparation(nn.Module):
    """From stored rows to what the model takes: images are normalised, texts become int64."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._is_text = job.dataset.info.kind == "text"
        info = job.dataset.info
        mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(job.device) for values in (info.mean, info.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def forward(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.long() if self._is_text else stored.float().mul_(self._scale).add_(self._shift)
