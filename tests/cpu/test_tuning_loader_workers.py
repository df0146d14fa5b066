"""A DataLoader with other numbers of workers gives the same batches in the same order."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from upshift.tuning.loader_workers import is_plain, takes_workers, with_workers
from upshift.tuning.plan import Plan

NUM_ITEMS = 23


class Numbers(Dataset[Any]):
    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, index / 2

    def __len__(self) -> int:
        return NUM_ITEMS


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(NUM_ITEMS)


def backwards(items: list[Any]) -> list[Any]:
    return items[::-1]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


LOADERS: dict[str, Any] = {
    "in order": lambda **s: DataLoader(Numbers(), batch_size=4, **s),
    "last batch dropped": lambda **s: DataLoader(Numbers(), batch_size=4, drop_last=True, **s),
    "shuffled": lambda **s: DataLoader(Numbers(), batch_size=4, shuffle=True, **s),
    "shuffled by a generator": lambda **s: DataLoader(
        Numbers(), batch_size=4, shuffle=True, generator=generator(), **s
    ),
    "a sampler": lambda **s: DataLoader(Numbers(), batch_size=4, sampler=SubsetRandomSampler(range(9)), **s),
    "weights": lambda **s: DataLoader(
        Numbers(), batch_size=4, sampler=WeightedRandomSampler([1.0] * NUM_ITEMS, 9, generator=generator()), **s
    ),
    "a batch sampler": lambda **s: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(Numbers(), generator=generator()), 5, False), **s
    ),
    "no batches": lambda **s: DataLoader(Numbers(), batch_size=None, **s),
    "a collate function": lambda **s: DataLoader(Numbers(), batch_size=4, shuffle=True, collate_fn=backwards, **s),
}


def epochs(loader: Any, count: int = 3) -> list[Any]:
    """What a loop sees that also draws numbers itself, as dropout does."""
    torch.manual_seed(7)
    seen: list[Any] = []
    for _ in range(count):
        seen += [[_value(batch), torch.rand(()).item()] for batch in loader]
    return seen


def _value(batch: Any) -> Any:
    return [part.tolist() if isinstance(part, torch.Tensor) else part for part in batch]


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, 1),
        ({}, 2),
        ({"num_workers": 2}, 1),
        ({"num_workers": 1}, 0),
        ({"num_workers": 1}, 1),
        ({"num_workers": 1, "persistent_workers": True}, 2),
        ({"num_workers": 1, "persistent_workers": True}, 0),
    ],
    ids=["0 to 1", "0 to 2", "2 to 1", "1 to 0", "1 to 1", "1 kept to 2", "1 kept to 0"],
)
def test_batches_and_their_order_stay_over_epochs(make: Any, given: dict[str, Any], wanted: int) -> None:
    made = with_workers(make(**given), wanted)
    assert made.num_workers == wanted
    assert epochs(made) == epochs(make(**given))


def test_a_loader_made_from_a_made_one_is_like_the_first() -> None:
    make = LOADERS["shuffled by a generator"]
    there = with_workers(make(), 2)
    assert epochs(with_workers(there, 0)) == epochs(make())
    assert epochs(with_workers(with_workers(make(), 1), 2)) == epochs(make())


def test_attributes_that_loops_read_stay() -> None:
    loader: DataLoader[Any] = DataLoader(Numbers(), batch_size=4, shuffle=True, drop_last=True)
    made = with_workers(loader, 1)
    assert (made.batch_size, made.drop_last, len(made)) == (4, True, 5)
    assert made.sampler is loader.sampler and made.dataset is loader.dataset
    batches: DataLoader[Any] = DataLoader(Numbers(), batch_sampler=BatchSampler(range(6), 2, False))
    assert with_workers(batches, 1).batch_sampler is batches.batch_sampler


def test_settings_of_workers_are_carried_over() -> None:
    loader: DataLoader[Any] = DataLoader(
        Numbers(), num_workers=1, prefetch_factor=5, timeout=9, in_order=False, multiprocessing_context="spawn"
    )
    made = with_workers(loader, 2)
    assert (made.prefetch_factor, made.timeout, made.in_order) == (5, 9, False)
    assert made.multiprocessing_context is loader.multiprocessing_context
    none = with_workers(loader, 0)
    assert (none.prefetch_factor, none.timeout, none.multiprocessing_context) == (None, 0, None)


class Own(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter(["own"])


def test_loaders_whose_batches_depend_on_their_workers_or_on_their_class_are_left_alone() -> None:
    plan = Plan(data_path="worker", num_workers=2)
    for loader in (DataLoader(Stream(), batch_size=4), Own(Numbers())):
        assert not takes_workers(loader)
        assert plan.apply(torch.nn.Linear(2, 2), None, loader)[2] is loader
    assert not is_plain(Own(Numbers())) and not is_plain([1, 2])
    shuffled: DataLoader[Any] = DataLoader(Numbers(), shuffle=True)
    assert plan.apply(torch.nn.Linear(2, 2), None, shuffled)[2].num_workers == 2


@pytest.mark.parametrize("persistent", [False, True])
def test_a_loader_with_as_many_workers_as_it_has_keeps_how_long_they_live(persistent: bool) -> None:
    given: DataLoader[Any] = DataLoader(Numbers(), num_workers=1, persistent_workers=persistent)
    assert with_workers(given, 1).persistent_workers == persistent


def trial(verdict: str, **changes: Any) -> dict[str, Any]:
    return {"name": "a candidate", "verdict": verdict, "changes": changes}


@pytest.mark.parametrize(
    ("trials", "applied"),
    [
        ([], 0),
        ([trial("adopted", memory_format="channels_last")], 2),
        ([trial("not tried", num_workers=1)], 2),
        ([trial("adopted", memory_format="channels_last"), trial("refused", num_workers=1)], 0),
    ],
    ids=["written by hand", "never tried", "not tried", "tried and refused"],
)
def test_a_number_of_workers_is_applied_where_it_was_found_or_written_and_else_left_alone(
    trials: list[dict[str, Any]], applied: int
) -> None:
    plan = Plan(data_path="worker", num_workers=0, trials=tuple(trials))
    loader: DataLoader[Any] = DataLoader(Numbers(), num_workers=2)
    assert plan.apply(torch.nn.Linear(2, 2), None, loader)[2].num_workers == applied


class Epochs(Dataset[Any]):
    """What it gives depends on the epoch that it was told."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> int:
        return self.epoch

    def __len__(self) -> int:
        return 2


def test_what_a_loop_tells_its_dataset_between_epochs_reaches_the_workers_of_a_plan() -> None:
    data: DataLoader[Any] = DataLoader(Epochs())
    _, _, loader = Plan(data_path="worker", num_workers=1).apply(torch.nn.Linear(2, 2), None, data)
    seen = []
    for epoch in range(3):
        loader.dataset.set_epoch(epoch)
        seen += [int(batch) for batch in loader]
    assert seen == [0, 0, 1, 1, 2, 2]


def test_an_iterable_dataset_can_be_made_again_with_the_workers_that_it_has() -> None:
    made = with_workers(DataLoader(Stream(), batch_size=4), 0)
    assert [batch.tolist() for batch in made] == [batch.tolist() for batch in DataLoader(Stream(), batch_size=4)]


def test_workers_live_from_epoch_to_epoch_and_end_when_told() -> None:
    made = with_workers(LOADERS["in order"](num_workers=2, persistent_workers=True), 1)
    pids = []
    for _ in range(2):
        list(made)
        pids.append([process.pid for process in multiprocessing.active_children()])
    assert pids[0] == pids[1] != []
    made.end_workers()
    gc.collect()
    deadline = time.monotonic() + 120
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert multiprocessing.active_children() == []
