"""A torch DataLoader with another number of worker processes, and the same batches in the same order."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch.utils.data import DataLoader, IterableDataset


def is_plain(loader: Any) -> TypeGuard[DataLoader[Any]]:
    """Whether a loader can be made again: not one of a subclass, which may do anything with its batches."""
    return type(loader) in (DataLoader, SameBatches)


def takes_workers(loader: Any) -> TypeGuard[DataLoader[Any]]:
    """Whether a loader gives the same batches whatever its workers.

    An iterable dataset shares its samples out among the workers itself, or repeats them for each.
    """
    return is_plain(loader) and not isinstance(loader.dataset, IterableDataset)


def with_workers(loader: DataLoader[Any], num_workers: int) -> SameBatches:
    """The same loader with another number of worker processes.

    They live on from epoch to epoch only where the loader's own did: they would not see what the loop changes in the
    dataset between two epochs.

    Batches are the same and in the same order as far as the dataset and the sampler say what they are; a sampler and a
    transform that draw from the process's generators while the epoch runs get other draws in other processes.

    Args:
        loader: One that `takes_workers`, or one that keeps the number that it has.
        num_workers: 0 loads in this process.
    """
    settings: dict[str, Any] = {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0 and loader.persistent_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "worker_init_fn": loader.worker_init_fn,
        "generator": loader.generator,
        "in_order": loader.in_order,
    }
    if num_workers > 0:
        settings["timeout"] = loader.timeout
        settings["multiprocessing_context"] = loader.multiprocessing_context
        settings["prefetch_factor"] = loader.prefetch_factor
    if isinstance(loader.dataset, IterableDataset):
        settings |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    elif loader.batch_size is None and loader.batch_sampler is not None:
        settings["batch_sampler"] = loader.batch_sampler
    else:
        settings |= {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    made = SameBatches(loader.dataset, **settings)
    made._draws_each_epoch = getattr(loader, "_draws_each_epoch", not _keeps_workers(loader))
    return made


class SameBatches(DataLoader[Any]):
    """Takes from the generator of the order what the loader takes that it stands for.

    A torch DataLoader draws a seed for its workers when they start. Where they live on from epoch to epoch it draws one
    in the first epoch alone, so that from the second on the samples would be shuffled otherwise.
    """

    _draws_each_epoch = True
    _has_begun = False

    def __iter__(self) -> Any:
        is_later, self._has_begun = self._has_begun, True
        draws = not (is_later and _keeps_workers(self))
        wanted = not is_later or self._draws_each_epoch
        if draws == wanted:
            return super().__iter__()
        if wanted:
            torch.empty((), dtype=torch.int64).random_(generator=self.generator)
            return super().__iter__()
        # Loading in this process draws the seed now and the order later: the seed alone is taken back.
        before = self._generator_state()
        iterator = super().__iter__()
        self._set_generator_state(before)
        return iterator

    def end_workers(self) -> None:
        """Let those end that live on from epoch to epoch."""
        self._iterator = None

    def _generator_state(self) -> torch.Tensor:
        return torch.get_rng_state() if self.generator is None else self.generator.get_state()

    def _set_generator_state(self, state: torch.Tensor) -> None:
        if self.generator is None:
            torch.set_rng_state(state)
        else:
            self.generator.set_state(state)


def _keeps_workers(loader: DataLoader[Any]) -> bool:
    return bool(loader.persistent_workers) and loader.num_workers > 0
