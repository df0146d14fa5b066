"""Batches of the user's own data, again and again, for steps that nothing but the plan is wanted of."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from upshift.errors import ConfigError, DataError
from upshift.training.batches import Tree, map_tensors
from upshift.tuning.live import first_line
from upshift.tuning.loader_workers import SameBatches, is_plain, takes_workers, with_workers

Batch = tuple[Tree, Tree]
"""What the model is called with, and what the loss gets beside its outputs."""


class OwnBatches:
    """Batches of a loader, from its beginning again whenever it has come to its end.

    A DataLoader is made anew, so that workers which live from epoch to epoch are not those of the user's own.

    Args:
        data: A DataLoader, or another iterable of batches.
        device: Where their tensors go.

    Raises:
        ConfigError: It is a dataset, or a mapping, and no loader.
    """

    def __init__(self, data: Iterable[Any], device: torch.device) -> None:
        _refuse_what_is_no_loader(data)
        self._device = device
        self._looked_at: deque[Batch] = deque()
        self.num_workers = data.num_workers if is_plain(data) else 0
        self.takes_workers = takes_workers(data)
        self._loaders: dict[int, SameBatches] = {}
        if is_plain(data):
            self._loaders[data.num_workers] = with_workers(data, data.num_workers)
        self._loader: Any = self._loaders.get(self.num_workers, data)
        self._first = self._loader
        self._source = self._endless(self._loader)

    def look(self, num_batches: int) -> list[Batch]:
        """The next batches, which `next` gives all the same.

        Raises:
            DataError: There is none, or it cannot be read.
        """
        while len(self._looked_at) < num_batches:
            self._looked_at.append(next(self._source))
        return list(self._looked_at)

    def next(self) -> Batch:
        """The next batch.

        Raises:
            DataError: There is none, or it cannot be read.
        """
        return self._looked_at.popleft() if self._looked_at else next(self._source)

    def loader(self, num_workers: int) -> Any:
        """The loader with another number of workers."""
        if num_workers not in self._loaders and self.takes_workers:
            self._loaders[num_workers] = with_workers(self._loader, num_workers)
        return self._loaders.get(num_workers, self._loader)

    @property
    def in_use(self) -> Any:
        """The loader that the following batches come from."""
        return self._loader

    def use(self, loader: Any) -> None:
        """Take the following batches from another loader."""
        if loader is not self._loader:
            self._looked_at.clear()
            self._source.close()
            self._loader = loader
            self._source = self._endless(loader)

    @property
    def are_as_given(self) -> bool:
        """Whether they come from the loader that was given, with as many workers as it has."""
        return self._loader is self._first

    def go_back(self) -> None:
        """Take the following batches as they came at first."""
        self.use(self._first)

    def close(self) -> None:
        """Let the loaders' workers end."""
        self._source.close()
        for loader in self._loaders.values():
            loader.end_workers()

    def _endless(self, loader: Any) -> Generator[Batch, None, None]:
        num_batches = 0
        while True:
            before = num_batches
            for batch in _reading(loader):
                num_batches += 1
                yield self._read(batch)
            if num_batches == before:
                raise DataError(
                    "data must give batches as often as they are asked for",
                    received="no batch" if before == 0 else f"no more after {before}",
                    hint="give a DataLoader or a list of batches: a generator is used up after one pass",
                )

    def _read(self, batch: Any) -> Batch:
        batch = map_tensors(lambda tensor: tensor.to(self._device, non_blocking=True), batch)
        if isinstance(batch, tuple | list):
            if len(batch) == 2:
                return batch[0], batch[1]
            if len(batch) > 2:
                return tuple(batch[:-1]), batch[-1]
            if not batch:
                raise DataError("a batch must hold tensors", received="an empty one", hint="give (inputs, targets)")
            batch = batch[0]
        return batch, batch


def _refuse_what_is_no_loader(data: Any) -> None:
    is_dataset = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    if is_dataset or isinstance(data, Mapping | torch.Tensor | str):
        raise ConfigError(
            "with a model, data must be an iterable of batches",
            received=f"{'a dataset, ' if is_dataset else ''}an object of type {type(data).__name__}",
            hint="data=DataLoader(dataset, batch_size=64), or a list of batches",
        )


def _reading(loader: Any) -> Iterator[Any]:
    """A pass over a loader; whatever the user's dataset raises is told as an error of the data."""
    try:
        yield from loader
    except Exception as error:
        raise DataError(
            "data must give their batches without an error", received=first_line(error), hint="see the error above"
        ) from error
