"""Batches without a step of Python for each sample: from memory, or from a memory-mapped store."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from upshift.core.environment import available_memory_bytes
from upshift.data.augment import BatchTransform
from upshift.data.config import AugmentConfig
from upshift.data.dataset import DataInfo, Split
from upshift.data.order import Batch, checked_batch_size, epoch_order

DataPath: TypeAlias = Literal["auto", "resident", "mmap"]


class Loader(Protocol):
    """Model-ready batches of one split on the device.

    Attributes:
        batch_size: Samples in a batch; the last one of an epoch may have fewer.
        num_samples: Samples in an epoch.
        data_path: "resident", "mmap" or "worker".
    """

    batch_size: int
    num_samples: int
    data_path: str

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None) -> Iterator[Batch]:
        """The batches of an epoch from `start_batch` on, the same every time they are asked for.

        Yields:
            Inputs, float32 (N, C, H, W) or (N, F), or int64 (N, L) for text; labels, int64 (N,).
        """
        ...


CHUNK_BYTES = 4 * 2**20
"""Bytes of float inputs that are gathered and transformed at once. On CPU a chunk that stays in the cache is fastest
(1 to 8 MiB measured alike, 16 MiB up to 1.6 times slower); on an accelerator few launches of large kernels are."""
ACCELERATOR_CHUNK_BYTES = 64 * 2**20


def make_loader(
    split: Split,
    info: DataInfo,
    *,
    batch_size: int,
    device: torch.device | str,
    seed: int = 0,
    augment: AugmentConfig | None,
    training: bool,
    data_path: DataPath = "auto",
    channels_last: bool = False,
) -> Loader:
    """Make a loader of a split whose rows are an array; torch datasets have `WorkerLoader`.

    Args:
        split: Stored rows and labels.
        info: Facts of the dataset.
        batch_size: Samples in a batch; for evaluation at most the split is taken.
        device: Where batches are wanted.
        seed: Draws the order and the augmentation.
        augment: Augmentation and normalisation; None only normalises.
        training: Shuffled and augmented; otherwise in order and only normalised.
        data_path: "resident" keeps the stored rows on the device, "mmap" reads them from the store
            batch by batch, "auto" is resident where the rows fit into half of the device's free memory.
        channels_last: Give images in torch.channels_last memory format.

    Raises:
        ConfigError: The batch is larger than the training split, or augmentation does not fit the data.
    """
    device = torch.device(device)
    size = checked_batch_size(batch_size, len(split), training=training)
    if data_path == "auto":
        data_path = "resident" if split.inputs.nbytes <= free_memory_bytes(device) // 2 else "mmap"
    return ArrayLoader(
        split,
        info,
        batch_size=size,
        device=device,
        seed=seed,
        augment=augment if augment is not None else AugmentConfig(),
        training=training,
        data_path=data_path,
        channels_last=channels_last and info.kind == "image",
    )


def free_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory_bytes()


class ArrayLoader:
    """Loads a split whose rows are an array, a chunk of several batches at a time.

    Chunks lie on a fixed grid of the epoch: a batch is bitwise the same whether or not those before it are asked for.
    """

    def __init__(
        self,
        split: Split,
        info: DataInfo,
        *,
        batch_size: int,
        device: torch.device,
        seed: int,
        augment: AugmentConfig,
        training: bool,
        data_path: Literal["resident", "mmap"],
        channels_last: bool,
    ) -> None:
        self.batch_size = batch_size
        self.num_samples = len(split)
        self.data_path: str = data_path
        self._seed, self._training, self._device = seed, training, device
        self._stored = _shared_tensor(split.inputs)
        labels = torch.from_numpy(np.array(split.labels))
        self._labels = labels.to(device) if data_path == "resident" else labels
        self._is_channels_last = data_path == "resident" and channels_last
        self._resident = self._made_resident() if data_path == "resident" else None
        self._transform = BatchTransform(
            info, augment, device=device, seed=seed, training=training, channels_last=channels_last
        )
        chunk_bytes = CHUNK_BYTES if device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
        batch_bytes = batch_size * 4 * max(1, math.prod(info.input_shape))
        self._chunk_samples = batch_size * max(1, chunk_bytes // batch_bytes)

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self.batch_size)

    def free(self) -> None:
        """Give back the memory of rows that are resident; they are there again when the next batch is wanted."""
        self._resident = None

    @property
    def _rows(self) -> torch.Tensor:
        if self.data_path != "resident":
            return self._stored
        if self._resident is None:
            self._resident = self._made_resident()
        return self._resident

    def _made_resident(self) -> torch.Tensor:
        # A copy even on the CPU: pages of a mapped file can be dropped when memory gets short.
        rows = self._stored.to(self._device, copy=True)
        # Kept as the model wants them: converting each batch takes six times as long as gathering it.
        return rows.contiguous(memory_format=torch.channels_last) if self._is_channels_last else rows

    def epoch(self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None) -> Iterator[Batch]:
        """The batches of an epoch; see `Loader.epoch`."""
        order = epoch_order(self._seed, epoch, self.num_samples).to(self._rows.device) if self._training else None
        draw = self._transform.draw(epoch, self.num_samples)
        first = start_batch * self.batch_size // self._chunk_samples * self._chunk_samples
        skip = start_batch - first // self.batch_size
        starts = range(first, self.num_samples, self._chunk_samples)
        for start, (rows, labels) in zip(starts, self._gathered(starts, order), strict=True):
            inputs = self._transform(rows, draw, start, image_size=image_size)
            for at in range(skip * self.batch_size, len(labels), self.batch_size):
                yield inputs[at : at + self.batch_size], labels[at : at + self.batch_size]
            skip = 0

    def _gathered(self, starts: range, order: torch.Tensor | None) -> Iterator[Batch]:
        """Stored rows and labels of the chunks, on the device."""
        if self.data_path == "resident":
            yield from (self._gather(start, order) for start in starts)
            return
        # Reading the file (and the copy to an accelerator) goes on beside the training step.
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
            pending: deque[Future[Batch]] = deque()
            for start in starts:
                pending.append(reader.submit(self._gather, start, order))
                if len(pending) > READ_AHEAD_CHUNKS:
                    yield self._on_device(pending.popleft().result())
            while pending:
                yield self._on_device(pending.popleft().result())

    def _gather(self, start: int, order: torch.Tensor | None) -> Batch:
        stop = min(start + self._chunk_samples, self.num_samples)
        if order is None:
            rows, labels = self._rows[start:stop], self._labels[start:stop]
        else:
            wanted = order[start:stop]
            rows, labels = self._selected(wanted), self._labels.index_select(0, wanted)
        if self.data_path == "mmap" and self._device.type == "cuda":
            return rows.pin_memory(), labels.pin_memory()
        return rows, labels

    def _selected(self, wanted: torch.Tensor) -> torch.Tensor:
        if self._is_channels_last:
            # index_select copies whole rows only where they are contiguous.
            return self._rows.permute(0, 2, 3, 1).index_select(0, wanted).permute(0, 3, 1, 2)
        return self._rows.index_select(0, wanted)

    def _on_device(self, batch: Batch) -> Batch:
        rows, labels = batch
        return rows.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)


READ_AHEAD_CHUNKS = 1


def _shared_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """A tensor over an array's memory. Nothing here writes to it, so torch's warning on read-only arrays is moot."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
