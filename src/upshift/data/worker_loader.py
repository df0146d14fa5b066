"""Batches of a torch dataset whose items need Python work, made by worker processes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from upshift.core.environment import num_usable_cores
from upshift.data.augment import BatchTransform
from upshift.data.config import AugmentConfig
from upshift.data.dataset import DataInfo
from upshift.data.order import Batch, checked_batch_size, epoch_order
from upshift.data.torch_datasets import input_and_label, num_items
from upshift.errors import BadInputError, DataError

WORKER_STREAM = 2


@dataclass(frozen=True)
class _Failure:
    """An error in a worker. As an exception it would come back as a RuntimeError with a traceback for a message."""

    rule: str
    received: str
    hint: str


class _SeededBatches(Dataset[Any]):
    """Makes whole batches, with the random numbers of Python, NumPy and torch seeded from what the batch is."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    def __getitems__(self, key: Sequence[int]) -> Batch | _Failure:
        epoch, batch, *rows = key
        # In the main process the items' random numbers must not disturb those of the training, as of dropout.
        states = _random_states() if get_worker_info() is None else None
        try:
            _seed_all(np.random.SeedSequence([self._seed, epoch, WORKER_STREAM, batch]))
            items = [input_and_label(self._dataset, row) for row in rows]
            inputs = [value for value, _ in items]
            for row, value in zip(rows, inputs, strict=True):
                if value.shape != inputs[0].shape or value.dtype != inputs[0].dtype:
                    return _Failure(
                        "all inputs of a dataset must have the same shape and type",
                        f"row {row}: {value.dtype} {tuple(value.shape)} beside {inputs[0].dtype} "
                        f"{tuple(inputs[0].shape)}",
                        "resize in the dataset's transform",
                    )
            return torch.stack(inputs), torch.tensor([label for _, label in items])
        except BadInputError as error:
            return _Failure(error.rule, str(error.received), error.hint)
        finally:
            if states is not None:
                _set_random_states(states)


def _seed_all(sequence: np.random.SeedSequence) -> None:
    of_python, of_numpy, of_torch = (int(word) for word in sequence.generate_state(3))
    random.seed(of_python)
    np.random.seed(of_numpy)
    torch.default_generator.manual_seed(of_torch)


def _random_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_random_states(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


class _EpochBatches(Sampler[list[int]]):
    """For each batch of an epoch: the epoch, the batch's number, and its rows."""

    def __init__(self, num_samples: int, batch_size: int, seed: int, shuffle: bool) -> None:
        self._num_samples, self._batch_size, self._seed, self._shuffle = num_samples, batch_size, seed, shuffle
        self.epoch = self.start_batch = 0

    def __len__(self) -> int:
        return math.ceil(self._num_samples / self._batch_size) - self.start_batch

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch
        order = epoch_order(self._seed, epoch, self._num_samples) if self._shuffle else torch.arange(self._num_samples)
        for batch in range(self.start_batch, math.ceil(self._num_samples / self._batch_size)):
            rows = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            yield [epoch, batch, *rows.tolist()]


class WorkerLoader:
    """Loads a torch dataset with worker processes that stay for the whole run.

    Every batch is seeded from (seed, epoch, its number), so it is the same whatever the number of
    workers, and `start_batch` reads nothing of the batches before it. uint8 images are augmented and
    normalised on the device; other inputs are given as the dataset makes them.

    Args:
        dataset: Map-style; items as `dataset_from_torch` describes them.
        info: Facts about it.
        batch_size: Samples in a batch; for evaluation at most the dataset is taken.
        device: Where batches are wanted.
        seed: Draws order, augmentation and the dataset's own random numbers.
        augment: Augmentation and normalisation; None only normalises.
        training: Shuffled and augmented.
        num_workers: Processes; all usable cores but one when None, 0 works in this process.
        prefetch_factor: Batches that each worker makes ahead.
        channels_last: Give images in torch.channels_last memory format.

    Raises:
        ConfigError: The batch is larger than the training dataset, or augmentation does not fit.
        DataError: From `epoch`: an item is of another form than the first.
    """

    data_path = "worker"

    def __init__(
        self,
        dataset: Dataset[Any],
        info: DataInfo,
        *,
        batch_size: int,
        device: torch.device | str,
        seed: int = 0,
        augment: AugmentConfig | None = None,
        training: bool,
        num_workers: int | None = None,
        prefetch_factor: int = 2,
        channels_last: bool = False,
    ) -> None:
        self.num_samples = num_items(dataset)
        self.batch_size = checked_batch_size(batch_size, self.num_samples, training=training)
        self._device = torch.device(device)
        self._transform = BatchTransform(
            info,
            augment if augment is not None else AugmentConfig(),
            device=self._device,
            seed=seed,
            training=training,
            channels_last=channels_last and info.kind == "image",
        )
        workers = max(0, num_usable_cores() - 1) if num_workers is None else num_workers
        self._batches = _EpochBatches(self.num_samples, self.batch_size, seed, training)
        self._loader: DataLoader[Any] = DataLoader(
            _SeededBatches(dataset, seed),
            batch_sampler=self._batches,
            num_workers=workers,
            prefetch_factor=prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self._device.type == "cuda",
            collate_fn=_as_it_is,
            # Its own, or each epoch would draw a number from the training's.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self.batch_size)

    def epoch(self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None) -> Iterator[Batch]:
        """The batches of an epoch; see `Loader.epoch`. One epoch at a time."""
        draw = self._transform.draw(epoch, self.num_samples)
        self._batches.epoch, self._batches.start_batch = epoch, start_batch
        position = start_batch * self.batch_size
        for batch in self._loader:
            if isinstance(batch, _Failure):
                raise DataError(batch.rule, received=batch.received, hint=batch.hint)
            rows, labels = (tensor.to(self._device, non_blocking=True) for tensor in batch)
            yield self._transform(rows, draw, position, image_size=image_size), labels
            position += len(labels)


def _as_it_is(batch: Any) -> Any:
    return batch
