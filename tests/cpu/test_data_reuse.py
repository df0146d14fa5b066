"""A store is taken for another config only if it holds what that config would pack; what can be refused is, before."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from upshift.data.class_names import require_classes
from upshift.data.config import DataConfig
from upshift.data.find import find_source
from upshift.data.prepare import prepare
from upshift.data.reuse import Making, find_alike
from upshift.errors import DataError, UnknownNameError


def png(shape: tuple[int, ...], value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(folder: Path, shapes: list[tuple[int, ...]], *splits: str) -> Path:
    folder.mkdir()
    for split in splits:
        encoded = [png(shape, 10 * index % 251) for index, shape in enumerate(shapes)]
        labels = [index % 2 for index in range(len(shapes))]
        pq.write_table(pa.table({"image": encoded, "label": labels}), folder / f"{split}.parquet")
    return folder


def stores(cache: Path) -> set[str]:
    return {path.name for path in (cache / "packed").iterdir() if not path.name.startswith(".")}


ALIKE = [(4, 5, 3)] * 20
MIXED = [(4, 5, 3)] * 16 + [(8, 8, 3)] * 2 + [(4, 5)] * 2
DECODINGS = list(itertools.product([None, (4, 5)], [None, 1, 3]))


@pytest.mark.parametrize("shapes", [ALIKE, MIXED], ids=["alike", "mixed"])
@pytest.mark.parametrize("splits", [("train",), ("train", "validation", "test")], ids=["train", "all"])
def test_what_is_found_in_another_store_is_what_would_be_packed(tmp_path, shapes, splits) -> None:
    path = write(tmp_path / "d", shapes, *splits)
    configs = [
        DataConfig(source=str(path), image_size=size, channels=channels, skip_bad=True, validation_fraction=fraction)
        for (size, channels), fraction in itertools.product(DECODINGS, [0.0, 0.25])
    ]
    packed = {config: prepare(config, cache_dir=tmp_path / str(index)) for index, config in enumerate(configs)}
    found_for = {config: set() for config in configs}
    for (index, made), wanted in itertools.product(enumerate(configs), configs):
        source = find_source(wanted, data_dir=None, cache_dir=tmp_path, on_progress=None)
        for split, expected in packed[wanted].splits.items():
            found = find_alike(tmp_path / str(index) / "packed", source, wanted, Making.of(source, wanted), split)
            if found is not None:
                assert np.array_equal(found.splits[split].inputs, expected.inputs)
                assert np.array_equal(found.splits[split].labels, expected.labels)
                found_for[wanted].add((made.image_size, made.channels, made.validation_fraction, split))
    of_an_artifact = DataConfig(source=str(path), image_size=(4, 5), channels=3, skip_bad=True)
    of_a_run = (None, None, 0.25, "test")
    assert (of_a_run in found_for[of_an_artifact]) == (shapes is ALIKE)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write(tmp_path / "d", ALIKE, "train")


def of_an_artifact(path: Path) -> DataConfig:
    return DataConfig(source=str(path), image_size=(4, 5), channels=3)


def test_the_store_of_a_run_serves_its_artifact(tmp_path, dataset) -> None:
    of_run = prepare(DataConfig(source=str(dataset), validation_fraction=0.25), cache_dir=tmp_path / "c", seed=5)
    before, calls = stores(tmp_path / "c"), []
    found = prepare(
        of_an_artifact(dataset),
        cache_dir=tmp_path / "c",
        split="test",
        on_progress=lambda *call: calls.append(call),
    )
    assert stores(tmp_path / "c") == before and calls == []
    assert set(found.splits) == {"test"} and np.array_equal(found.splits["test"].inputs, of_run.splits["test"].inputs)


def change_the_file(source: Path, store: Path) -> None:
    table = pq.read_table(source / "train.parquet")
    pq.write_table(table.slice(0, 18), source / "train.parquet")


def damage_the_rows(source: Path, store: Path) -> None:
    with open(store / "test-inputs.npy", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")


def garble_the_index(source: Path, store: Path) -> None:
    (store / "index.json").write_text('["no index"]')


def forget_what_it_was_made_from(source: Path, store: Path) -> None:
    index = json.loads((store / "index.json").read_text())
    (store / "index.json").write_text(json.dumps({**index, "made_from": {"files": index["made_from"]["files"]}}))


@pytest.mark.parametrize(
    "change",
    [change_the_file, damage_the_rows, garble_the_index, forget_what_it_was_made_from],
    ids=lambda f: f.__name__,
)
def test_a_store_that_is_stale_or_damaged_is_not_taken(tmp_path, dataset, change) -> None:
    prepare(DataConfig(source=str(dataset)), cache_dir=tmp_path / "c")
    (name,) = stores(tmp_path / "c")
    change(dataset, tmp_path / "c" / "packed" / name)
    found = prepare(of_an_artifact(dataset), cache_dir=tmp_path / "c", split="test")
    fresh = prepare(of_an_artifact(dataset), cache_dir=tmp_path / "fresh")
    assert len(stores(tmp_path / "c")) == 2
    assert np.array_equal(found.splits["test"].inputs, fresh.splits["test"].inputs)


def test_other_classes_are_refused_before_anything_is_packed(tmp_path, dataset) -> None:
    calls = []
    with pytest.raises(DataError, match="the model's 3 classes, in their order: a, b, c; received 2 instead of 3"):
        prepare(
            of_an_artifact(dataset),
            cache_dir=tmp_path / "c",
            labels=("a", "b", "c"),
            on_progress=lambda *call: calls.append(call),
        )
    assert calls == [] and not (tmp_path / "c" / "packed").exists()
    prepare(of_an_artifact(dataset), cache_dir=tmp_path / "c", labels=("0", "1"))
    with pytest.raises(DataError, match="3 classes"):
        prepare(of_an_artifact(dataset), cache_dir=tmp_path / "c", labels=("a", "b", "c"))


def test_a_split_that_there_is_not_is_refused_before_anything_is_packed(tmp_path, dataset) -> None:
    for split in ("validation", "tset"):
        with pytest.raises(UnknownNameError, match="split must be one that upshift knows"):
            prepare(of_an_artifact(dataset), cache_dir=tmp_path / "c", split=split)
    assert not (tmp_path / "c" / "packed").exists()
    held_out = DataConfig(source=str(dataset), validation_fraction=0.25)
    assert len(prepare(held_out, cache_dir=tmp_path / "c", split="validation").splits["validation"]) == 4


@pytest.mark.parametrize(
    ("received", "expected", "message"),
    [
        (("a", "b"), ("a", "b", "c"), "received 2 instead of 3 classes: a, b"),
        (("b", "a"), ("a", "b"), "the same classes in another order: b, a; hint: give every class the number"),
        (("a", "c"), ("a", "b"), "received other classes: a, c; hint: name the data that the model is for"),
        (("0", "1"), ("a", "b"), "classes without names, 0 to 1; hint: name the classes, in the model's order"),
        (("0", "1"), (), "a model must have named classes"),
        (tuple("abcdefghij"), ("a", "b"), r"10 instead of 2 classes: a, b, c, d, e, f, g, h, … \(10\)"),
    ],
)
def test_how_the_classes_differ_from_the_models_is_said(received, expected, message) -> None:
    require_classes(expected, expected)
    with pytest.raises(DataError, match=message):
        require_classes(received, expected)
