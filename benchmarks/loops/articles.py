"""The loop as articles and tutorials have it, repaired only so that it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from loops.job import Job, Turn, first_batches


class ArticlesLoop:
    """`DataLoader(batch_size, shuffle=True)` over a dataset with transforms for each sample; `.item()` each step."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loader = sample_loader(job)
        self._model = job.model()

    def __call__(self, num_steps: int | None = None) -> Turn:
        model, device = self._job.reset(self._model), self._job.device
        criterion = nn.CrossEntropyLoss()
        optimizer = self._job.optimizer(model)
        running_loss, correct, total, step = 0.0, 0, 0, 0
        start = time.perf_counter()
        for images, labels in first_batches(self._loader, num_steps or self._job.num_steps):
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            outputs = model(images)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            _, predicted = torch.max(outputs.data, 1)
            total += labels.size(0)
            correct += (predicted == labels).sum().item()
            step += 1
        self._job.synchronize()
        return Turn(time.perf_counter() - start, running_loss / step)


def sample_loader(job: Job) -> DataLoader[tuple[torch.Tensor, int]]:
    """The DataLoader of the articles over a job's training split."""
    info = job.dataset.info
    split = job.dataset.splits["train"]
    dataset: Dataset[tuple[torch.Tensor, int]]
    if info.kind == "text":
        dataset = TextDataset(np.array(split.inputs), np.array(split.labels))
    else:
        transform = Compose([ToTensor(), Normalize(info.mean, info.std)])
        dataset = PictureDataset(np.array(split.inputs), np.array(split.labels), transform)
    return DataLoader(dataset, batch_size=job.recipe.batch_size, shuffle=True)


class PictureDataset(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory, made a PIL image each when asked for, as torchvision.datasets.MNIST and CIFAR10 do."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], torch.Tensor]
    ) -> None:
        stored = images.transpose(0, 2, 3, 1)
        self._images = np.ascontiguousarray(stored[..., 0] if stored.shape[-1] == 1 else stored)
        self._labels = [int(label) for label in labels]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


class TextDataset(Dataset[tuple[torch.Tensor, int]]):
    """Texts that were encoded beforehand, made an int64 tensor each when asked for."""

    def __init__(self, texts: np.ndarray, labels: np.ndarray) -> None:
        self._texts, self._labels = texts, [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor(self._texts[index], dtype=torch.long), self._labels[index]


# torchvision's wheels cannot be imported beside the CPU build of torch. These do for a sample what its transforms of
# the same names do, tensor operation by tensor operation, checks included.


class Compose:
    """Transforms one after the other."""

    def __init__(self, transforms: Sequence[Callable[..., torch.Tensor]]) -> None:
        self._transforms = transforms

    def __call__(self, image: Image.Image) -> torch.Tensor:
        value: Any = image
        for transform in self._transforms:
            value = transform(value)
        sample: torch.Tensor = value
        return sample


class ToTensor:
    """An 8-bit picture to float32 (C, H, W) in 0..1."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        width, height = image.size
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True)).view(height, width, len(image.getbands()))
        return pixels.permute((2, 0, 1)).contiguous().to(torch.get_default_dtype()).div(255)


class Normalize(nn.Module):
    """(x - mean) / std by channel: a module, not in place, with statistics made tensors for each sample."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        result = sample.clone()
        mean = torch.as_tensor(self.mean, dtype=result.dtype, device=result.device)
        std = torch.as_tensor(self.std, dtype=result.dtype, device=result.device)
        if (std == 0).any():
            raise ValueError("a standard deviation is 0")
        return result.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
