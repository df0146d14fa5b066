"""Laws of the loaders: any batch can be found again, whatever the data path, the chunking or where one starts."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upshift.data import loaders
from upshift.data.config import AugmentConfig
from upshift.data.dataset import DataInfo, Split
from upshift.data.loaders import Loader, make_loader
from upshift.errors import ConfigError

EVERYTHING = AugmentConfig(
    crop_padding=2,
    horizontal_flip=True,
    cutout=3,
    rotation_degrees=20,
    translate=0.1,
    scale=0.2,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
)


def images(count: int, channels: int = 3, size: int = 8) -> tuple[Split, DataInfo]:
    rng = np.random.default_rng(count)
    rows = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    info = DataInfo(
        kind="image",
        input_shape=(channels, size, size),
        num_classes=10,
        label_names=tuple("0123456789"),
        mean=(0.5, 0.4, 0.3)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        num_bad_rows=0,
        source="made",
        fingerprint="0",
    )
    return Split(rows, np.arange(count, dtype=np.int64)), info


def loader(split: Split, info: DataInfo, **options: object) -> Loader:
    given_options = {"batch_size": 4, "device": "cpu", "seed": 3, "augment": EVERYTHING, "training": True, **options}
    return make_loader(split, info, **given_options)


def assert_same(first: object, second: object) -> None:
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for (inputs, labels), (other_inputs, other_labels) in zip(first, second, strict=True):
        assert torch.equal(labels, other_labels)
        assert torch.equal(inputs, other_inputs)


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(1, 70),
    batch_size=st.integers(1, 70),
    epoch=st.integers(0, 3),
    start=st.integers(0, 80),
    chunk_bytes=st.sampled_from([1, 8000, 4 * 2**20]),
    path=st.sampled_from(["resident", "mmap"]),
)
def test_any_batch_is_found_again(count, batch_size, epoch, start, chunk_bytes, path) -> None:
    split, info = images(count)
    batch_size = min(batch_size, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders, "CHUNK_BYTES", chunk_bytes)
        loaded = loader(split, info, batch_size=batch_size, data_path=path)
        whole = list(loaded.epoch(epoch))
        assert_same(loaded.epoch(epoch, start_batch=start), whole[start:])
    assert len(whole) == len(loaded) == -(-count // batch_size)
    assert sorted(torch.cat([labels for _, labels in whole]).tolist()) == list(range(count))
    assert all(len(labels) == batch_size for _, labels in whole[:-1])


@settings(deadline=None, max_examples=15)
@given(count=st.integers(1, 40), chunk_bytes=st.sampled_from([1, 5000, 20000]), channels=st.sampled_from([1, 3]))
def test_batches_do_not_depend_on_data_path_or_chunking(count, chunk_bytes, channels) -> None:
    split, info = images(count, channels)
    batch_size = min(4, count)
    reference = list(loader(split, info, batch_size=batch_size, data_path="resident").epoch(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders, "CHUNK_BYTES", chunk_bytes)
        for path in ("resident", "mmap"):
            loaded = loader(split, info, batch_size=batch_size, data_path=path)
            for (inputs, labels), (other, other_labels) in zip(loaded.epoch(1), reference, strict=True):
                assert torch.equal(labels, other_labels)
                torch.testing.assert_close(inputs, other, rtol=1e-5, atol=1e-5)


def test_resident_and_mapped_batches_are_bitwise_equal() -> None:
    split, info = images(50)
    assert_same(loader(split, info, data_path="resident").epoch(2), loader(split, info, data_path="mmap").epoch(2))


@pytest.mark.parametrize("path", ["resident", "mmap"])
@pytest.mark.parametrize("augment", [None, EVERYTHING, AugmentConfig(crop_padding=2, horizontal_flip=True)])
def test_channels_last_changes_the_layout_alone(path, augment) -> None:
    split, info = images(20)
    plain = list(loader(split, info, augment=augment, data_path=path).epoch(0))
    for (inputs, labels), (expected, expected_labels) in zip(
        loader(split, info, augment=augment, data_path=path, channels_last=True).epoch(0), plain, strict=True
    ):
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels, expected_labels)
        torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ["resident", "mmap"])
def test_rows_that_were_freed_take_no_memory_and_are_there_again_when_wanted(path) -> None:
    split, info = images(30)
    loaded = loader(split, info, data_path=path, channels_last=True)
    whole = list(loaded.epoch(1))
    held = weakref.ref(loaded._rows.untyped_storage())
    loaded.free()
    assert (held() is None) == (path == "resident")
    assert_same(loaded.epoch(1), whole)


def test_epochs_and_seeds_differ() -> None:
    split, info = images(40)
    orders = {
        (seed, epoch): tuple(torch.cat([labels for _, labels in loader(split, info, seed=seed).epoch(epoch)]).tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4


def test_batches_that_are_kept_are_not_written_over() -> None:
    split, info = images(40)
    loaded = loader(split, info)
    kept = list(loaded.epoch(0))
    copies = [(inputs.clone(), labels.clone()) for inputs, labels in kept]
    list(loaded.epoch(1))
    assert_same(kept, copies)


@pytest.mark.parametrize("path", ["resident", "mmap"])
@pytest.mark.parametrize("kind", ["image", "text", "tabular"])
def test_writing_into_a_batch_leaves_the_data_alone(path, kind) -> None:
    split, info = {"image": images, "text": texts, "tabular": table}[kind](12)
    before = np.array(split.inputs)
    loaded = loader(split, info, augment=None, training=False, data_path=path)
    first = [inputs.clone() for inputs, _ in loaded.epoch(0)]
    for inputs, _ in loaded.epoch(0):
        inputs.zero_()
    assert np.array_equal(split.inputs, before)
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, loaded.epoch(0), strict=True))


def texts(count: int) -> tuple[Split, DataInfo]:
    rows = np.random.default_rng(0).integers(0, 256, (count, 6), dtype=np.uint8)
    return Split(rows, np.arange(count) % 2), DataInfo("text", (6,), 2, ("a", "b"), (), (), 0, "made", "0")


def table(count: int) -> tuple[Split, DataInfo]:
    rows = np.random.default_rng(0).normal(3, 2, (count, 2)).astype(np.float32)
    return Split(rows, np.arange(count) % 2), DataInfo(
        "tabular", (2,), 2, ("a", "b"), (3.0, 1.0), (2.0, 4.0), 0, "m", "0"
    )


def test_evaluation_is_in_order_and_only_normalised() -> None:
    split, info = images(10)
    batches = list(loader(split, info, training=False).epoch(5))
    inputs, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert labels.tolist() == list(range(10))
    mean, std = (torch.tensor(part).reshape(1, 3, 1, 1) for part in (info.mean, info.std))
    torch.testing.assert_close(inputs, (torch.from_numpy(split.inputs) / 255 - mean) / std)


def test_normalisation_can_be_left_out() -> None:
    split, info = images(10)
    inputs = torch.cat(
        [batch for batch, _ in loader(split, info, training=False, augment=AugmentConfig(normalize=False)).epoch(0)]
    )
    torch.testing.assert_close(inputs, torch.from_numpy(split.inputs) / 255)


def test_text_comes_as_int64_and_tables_normalised() -> None:
    split, info = texts(5)
    inputs = torch.cat([batch for batch, _ in loader(split, info, training=False, augment=None).epoch(0)])
    assert inputs.dtype == torch.int64 and torch.equal(inputs, torch.from_numpy(split.inputs).long())
    split, info = table(5)
    inputs = torch.cat([batch for batch, _ in loader(split, info, training=False, augment=None).epoch(0)])
    np.testing.assert_allclose(inputs.numpy(), (split.inputs - [3, 1]) / [2, 4], rtol=1e-5, atol=1e-6)


def test_a_batch_larger_than_the_data_is_refused_in_training_and_cut_in_evaluation() -> None:
    split, info = images(10)
    with pytest.raises(ConfigError, match="at most the 10 samples"):
        loader(split, info, batch_size=11)
    with pytest.raises(ConfigError, match="at least 1"):
        loader(split, info, batch_size=0)
    evaluation = loader(split, info, batch_size=64, training=False)
    assert evaluation.batch_size == 10 and len(list(evaluation.epoch(0))) == 1


def test_auto_is_resident_within_half_of_the_free_memory_and_mapped_beyond(monkeypatch) -> None:
    split, info = images(10)
    for free, expected in ((2 * split.inputs.nbytes, "resident"), (2 * split.inputs.nbytes - 1, "mmap")):
        monkeypatch.setattr(loaders, "available_memory_bytes", lambda free=free: free)
        assert loader(split, info).data_path == expected


def test_augmentation_of_tables_and_too_much_padding_are_refused() -> None:
    with pytest.raises(ConfigError, match="augmentation needs images"):
        loader(*table(8), augment=AugmentConfig(horizontal_flip=True))
    with pytest.raises(ConfigError, match="below the images' 8 pixels"):
        loader(*images(8), augment=AugmentConfig(crop_padding=8))


@pytest.mark.parametrize("training", [True, False])
def test_progressive_resizing_gives_the_asked_size(training) -> None:
    split, info = images(10)
    loaded = loader(split, info, training=training, channels_last=True)
    for inputs, _ in loaded.epoch(0, image_size=(5, 6)):
        assert inputs.shape[2:] == (5, 6) and inputs.is_contiguous(memory_format=torch.channels_last)
    assert_same(loaded.epoch(0, image_size=(8, 8)), loaded.epoch(0))
