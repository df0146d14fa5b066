"""torch datasets in the place of packed ones: same batches whatever the number of workers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from upshift.data.config import AugmentConfig
from upshift.data.torch_datasets import dataset_from_torch
from upshift.data.worker_loader import WorkerLoader
from upshift.errors import ConfigError, DataError


class Images(Dataset):
    """uint8 images; with `noisy`, each item uses the random numbers of all three libraries."""

    def __init__(self, count: int = 20, noisy: bool = False) -> None:
        self.pixels = torch.randint(
            0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        self.noisy, self.asked = noisy, []

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        self.asked.append(row)
        pixels = self.pixels[row].clone()
        if self.noisy:
            pixels[0, 0, :3] = torch.tensor(
                [random.randrange(256), np.random.randint(256), int(torch.randint(256, (1,)))]
            )
        return pixels, row % 5


class Items(Dataset):
    def __init__(self, items: list[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> object:
        return self.items[row]


def loader(dataset: Dataset, **options: object) -> WorkerLoader:
    info = dataset_from_torch(Images(), Images()).info
    given = {"batch_size": 4, "device": "cpu", "seed": 1, "training": True, "num_workers": 0, **options}
    return WorkerLoader(dataset, info, **given)


def assert_same(first: object, second: object) -> None:
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for (inputs, labels), (other, other_labels) in zip(first, second, strict=True):
        assert torch.equal(inputs, other) and torch.equal(labels, other_labels)


@pytest.mark.slow
def test_random_items_are_the_same_for_any_number_of_workers_and_any_start() -> None:
    reference = loader(Images(noisy=True), num_workers=0)
    workers = loader(Images(noisy=True), num_workers=2)
    for epoch in (0, 1):
        whole = list(reference.epoch(epoch))
        assert_same(workers.epoch(epoch), whole)
        assert_same(workers.epoch(epoch, start_batch=3), whole[3:])
    assert workers.data_path == "worker"


@pytest.mark.slow
def test_an_epoch_that_is_left_early_does_not_disturb_the_next() -> None:
    workers = loader(Images(noisy=True), num_workers=1)
    whole = list(workers.epoch(0))
    next(iter(workers.epoch(1)))
    assert_same(workers.epoch(0), whole)


@pytest.mark.slow
def test_an_error_in_a_worker_is_said_in_words() -> None:
    items: list[object] = [(torch.zeros(3, 4, 4, dtype=torch.uint8), 0)] * 7 + [
        (torch.zeros(3, 5, 4, dtype=torch.uint8), 0)
    ]
    with pytest.raises(DataError, match="same shape and type; received row 7"):
        list(loader(Items(items), num_workers=1, batch_size=8, training=False).epoch(0))


def test_start_batch_reads_nothing_of_the_skipped_batches() -> None:
    dataset = Images()
    loaded = loader(dataset)
    whole = list(loaded.epoch(0))
    dataset.asked.clear()
    assert_same(loaded.epoch(0, start_batch=4), whole[4:])
    assert len(dataset.asked) == 4


def test_every_sample_comes_once_and_epochs_differ() -> None:
    dataset = Images()
    loaded = loader(dataset)
    orders = []
    for epoch in (0, 1):
        dataset.asked.clear()
        assert len(list(loaded.epoch(epoch))) == len(loaded) == 5
        orders.append(list(dataset.asked))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20)) and orders[0] != orders[1]


def test_the_random_numbers_of_the_training_process_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(loader(Images(noisy=True)).epoch(0))
    assert torch.equal(torch.rand(3), expected)


def test_uint8_images_are_normalised_as_those_of_a_store() -> None:
    dataset = dataset_from_torch(Images(), Images())
    pixels = Images().pixels.numpy() / 255
    assert dataset.info.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert dataset.info.std == pytest.approx(pixels.std(axis=(0, 2, 3)))
    loaded = WorkerLoader(Images(), dataset.info, batch_size=64, device="cpu", training=False, num_workers=0)
    assert loaded.data_path == "worker" and loaded.batch_size == 20
    inputs = torch.cat([batch for batch, _ in loaded.epoch(0)])
    assert inputs.mean().abs() < 1e-5 and inputs.dtype == torch.float32


def test_float_images_are_given_as_they_are() -> None:
    given = TensorDataset(torch.randn(8, 1, 4, 4), torch.arange(8) % 2)
    dataset = dataset_from_torch(given, given)
    loaded = WorkerLoader(given, dataset.info, batch_size=8, device="cpu", training=False, num_workers=0)
    assert torch.equal(next(iter(loaded.epoch(0)))[0], given.tensors[0])
    flips = AugmentConfig(horizontal_flip=True)
    training = WorkerLoader(
        given, dataset.info, batch_size=8, device="cpu", augment=flips, training=True, num_workers=0
    )
    with pytest.raises(ConfigError, match="augmentation needs uint8 images"):
        list(training.epoch(0))


def test_items_may_be_mappings_and_pillow_images_and_name_their_classes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    items = Items([{"image": Image.fromarray(image), "label": np.int64(i % 2)} for i, image in enumerate(pixels)])
    items.classes = ["cat", "dog"]
    dataset = dataset_from_torch(items, items, items)
    assert dataset.info.label_names == ("cat", "dog") and dataset.info.input_shape == (3, 5, 6)
    assert np.array_equal(dataset.splits["validation"].inputs[1:3], pixels[1:3].transpose(0, 3, 1, 2))
    assert np.array_equal(dataset.splits["test"].inputs[0], pixels[0].transpose(2, 0, 1))
    assert dataset.splits["test"].labels.tolist() == [0, 1, 0, 1]


def test_features_and_tokens_are_told_by_their_type() -> None:
    for tensor, kind in ((torch.randn(4, 3), "tabular"), (torch.randint(0, 256, (4, 3)), "text")):
        given = TensorDataset(tensor, torch.tensor([0, 1, 0, 1]))
        dataset = dataset_from_torch(given, given)
        assert dataset.info.kind == kind
        loaded = WorkerLoader(given, dataset.info, batch_size=4, device="cpu", training=False, num_workers=0)
        assert torch.equal(next(iter(loaded.epoch(0)))[0], tensor)


def fingerprint(pixels: torch.Tensor, labels: torch.Tensor | None = None, **options: object) -> str:
    given = TensorDataset(pixels, torch.arange(len(pixels)) % 2 if labels is None else labels)
    return dataset_from_torch(given, given, **options).info.fingerprint


def test_the_fingerprint_follows_what_is_always_the_same() -> None:
    pixels = Images().pixels
    changed = pixels.clone()
    changed[7, 2, 3, 3] ^= 1
    variants = [
        fingerprint(pixels),
        fingerprint(changed),
        fingerprint(pixels.float()),
        fingerprint(pixels, torch.arange(20) // 10),
        fingerprint(pixels, label_names=["cat", "dog"]),
    ]
    assert fingerprint(pixels.clone()) == variants[0] and len(set(variants)) == len(variants)


def test_the_fingerprint_of_a_dataset_that_augments_is_the_same_each_time() -> None:
    class SometimesFlipped(Images):
        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            pixels, label = super().__getitem__(row)
            return (pixels.flip(-1) if random.random() < 0.5 else pixels), label

    for count in (5, 20):
        found = {
            dataset_from_torch(SometimesFlipped(count), SometimesFlipped(count)).info.fingerprint for _ in range(5)
        }
        assert len(found) == 1


PIXEL = torch.zeros(1, 2, 2)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "must have rows"),
        ([PIXEL, PIXEL], "an item must be"),
        ([{"image": PIXEL, "name": "a"}], "Mapping|with image, name"),
        ([(PIXEL, "cat"), (PIXEL, "dog")], "label must be a whole number"),
        ([(PIXEL, 0), (PIXEL, -1), (PIXEL, 1)], "labels must be whole numbers from 0"),
        ([(PIXEL, 0), (PIXEL, 0)], "at least two classes"),
        ([(PIXEL, 0), (torch.zeros(1, 3, 2), 1)], "same shape"),
        ([("text", 0), ("text", 1)], "tensor, an array or a Pillow image"),
    ],
)
def test_datasets_of_another_form_are_refused(items, message) -> None:
    with pytest.raises(DataError, match=message):
        dataset_from_torch(Items(items), Items(items))


def test_iterable_datasets_and_too_large_batches_are_refused() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield PIXEL, 0

    with pytest.raises(DataError, match="map-style"):
        dataset_from_torch(Stream(), Stream())
    with pytest.raises(ConfigError, match="at most the 20 samples"):
        loader(Images(), batch_size=21)


def rows(labels: list[int]) -> TensorDataset:
    return TensorDataset(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), torch.tensor(labels))


THREE = [0, 1, 2, 0, 1, 2]


def test_too_few_label_names_are_the_fault_of_the_names() -> None:
    with pytest.raises(DataError) as refused:
        dataset_from_torch(rows(THREE), rows(THREE), label_names=["cat", "dog"])
    assert refused.value.rule.startswith("label_names must name every class")
    assert refused.value.received == "2 names (cat, dog); train: label 2 at row 2"
    assert refused.value.hint.startswith("name 3 classes in label_names")


def test_too_few_names_of_the_datasets_own_are_told_as_such() -> None:
    train = rows(THREE)
    train.classes = ["cat", "dog"]
    with pytest.raises(DataError, match="the dataset's `classes` must name every class"):
        dataset_from_torch(train, rows(THREE))
    assert dataset_from_torch(train, rows(THREE), label_names=["a", "b", "c"]).info.label_names == ("a", "b", "c")


def test_labels_that_count_from_one_are_recognised() -> None:
    with pytest.raises(DataError, match="seem to count from 1: subtract 1"):
        dataset_from_torch(rows([1, 2, 3]), rows([1, 2, 3]), label_names=["a", "b", "c"])


def test_a_test_label_beyond_the_training_labels_asks_for_names_or_rows() -> None:
    with pytest.raises(DataError, match=r"received test: label 3 at row 1; hint: .* all classes with label_names"):
        dataset_from_torch(rows(THREE), rows([0, 3]))
    named = dataset_from_torch(rows(THREE), rows([0, 3]), label_names=list("abcd"))
    assert named.info.num_classes == 4


def test_more_names_than_classes_are_noted() -> None:
    noted = dataset_from_torch(rows(THREE), rows(THREE), label_names=["cat", "dog", "bird", "fish"])
    assert noted.notes == ("class 'fish' has no rows in the training split: 4 are named, 3 occur",)
    noted = dataset_from_torch(rows(THREE), rows(THREE), label_names=list("abcde"))
    assert noted.notes[0].startswith("2 classes (d, e) have no rows")
    assert dataset_from_torch(rows(THREE), rows(THREE), label_names=list("abc")).notes == ()


@pytest.mark.parametrize(
    ("label_names", "message"),
    [
        ("abc", "label_names must be a list of class names; received 'abc'"),
        (3, "label_names must be a list of class names; received 3"),
        (["a", "b", "a"], "label_names must be different from each other; received a, b, a, with 'a' more than once"),
        ({"a": 0, "b": 1}, "label_names must be a list of class names"),
    ],
)
def test_label_names_that_are_no_list_of_names_are_refused(label_names: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset_from_torch(rows(THREE), rows(THREE), label_names=label_names)


def test_names_that_are_numbers_or_an_array_become_texts() -> None:
    assert dataset_from_torch(rows(THREE), rows(THREE), label_names=[7, 8, 9]).info.label_names == ("7", "8", "9")
    named = dataset_from_torch(rows(THREE), rows(THREE), label_names=np.array(["a", "b", "c"]))
    assert named.info.label_names == ("a", "b", "c")
