"""Every source becomes the same kind of packed dataset; wrong ones are refused in words."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from upshift.data.config import DataConfig
from upshift.data.dataset import DataInfo, PackedDataset
from upshift.data.prepare import prepare
from upshift.errors import DataError, UnknownNameError

RNG = np.random.default_rng(0)


def png(array: np.ndarray, mode: str | None = None, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, format)
    return stream.getvalue()


def images(count: int, shape: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def write_parquet(path: Path, columns: dict[str, object], features: dict[str, object] | None = None) -> None:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def image_column(encoded: list[bytes | None]) -> pa.Array:
    rows = [None if content is None else {"bytes": content, "path": None} for content in encoded]
    return pa.array(rows, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog", "eel"]}}


@pytest.fixture
def load(tmp_path: Path):
    def call(source: object, **fields: object) -> PackedDataset:
        seed = fields.pop("seed", 0)
        data_dir = fields.pop("data_dir", None)
        config = DataConfig(source=str(source), **fields)
        return prepare(config, cache_dir=tmp_path / "cache", seed=seed, data_dir=data_dir)

    return call


def test_digits_are_split_in_the_same_way_every_time_and_keep_all_rows(load) -> None:
    dataset = load("digits")
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert (len(train), len(test)) == (1438, 359)
    assert train.inputs.dtype == np.uint8 and train.inputs.shape[1:] == (1, 8, 8)
    assert train.inputs.max() == 255 and train.inputs.min() == 0
    assert np.bincount(test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert dataset.info.num_classes == 10 and dataset.info.label_names[3] == "3"
    values = np.asarray(train.inputs) / 255
    assert dataset.info.mean == pytest.approx((values.mean(),)) and dataset.info.std == pytest.approx((values.std(),))


def test_info_survives_json(load) -> None:
    info = load("digits").info
    assert DataInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_sharded_parquet_with_metadata_keeps_rows_in_order_and_names_the_classes(tmp_path, load) -> None:
    pixels = images(7)
    encoded = [png(image) for image in pixels]
    folder = tmp_path / "pets" / "data"
    write_parquet(
        folder / "train-00000-of-00002.parquet", {"image": image_column(encoded[:3]), "label": [0, 1, 2]}, FEATURES
    )
    write_parquet(
        folder / "train-00001-of-00002.parquet", {"image": image_column(encoded[3:5]), "label": [0, 1]}, FEATURES
    )
    write_parquet(
        folder / "test-00000-of-00001.parquet", {"image": image_column(encoded[5:]), "label": [2, 0]}, FEATURES
    )
    dataset = load("pets", data_dir=tmp_path)
    assert np.array_equal(dataset.splits["train"].inputs, pixels[:5].transpose(0, 3, 1, 2))
    assert dataset.splits["train"].labels.tolist() == [0, 1, 2, 0, 1]
    assert dataset.splits["test"].labels.tolist() == [2, 0]
    assert dataset.info.label_names == ("cat", "dog", "eel")
    assert dataset.notes == ()


def test_parquet_without_metadata_is_told_by_its_types(tmp_path, load) -> None:
    pixels = images(6)
    for split in ("train", "validation", "test"):
        write_parquet(
            tmp_path / "d" / f"{split}.parquet", {"img": [png(image) for image in pixels], "label": ["b", "a"] * 3}
        )
    dataset = load(tmp_path / "d")
    assert set(dataset.splits) == {"train", "validation", "test"}
    assert dataset.info.kind == "image" and dataset.info.label_names == ("a", "b")
    assert dataset.splits["train"].labels.tolist() == [1, 0] * 3


def test_text_is_stored_as_utf8_bytes_cut_between_characters(tmp_path, load) -> None:
    write_parquet(tmp_path / "t" / "train.parquet", {"sentence": ["good", "äöü", "", "bad"], "label": [1, 0, 1, 0]})
    write_parquet(tmp_path / "t" / "test.parquet", {"sentence": ["x", "y"], "label": [1, 0]})
    dataset = load(tmp_path / "t", max_text_bytes=5)
    assert dataset.info.kind == "text" and dataset.info.mean == ()
    rows = [bytes(row).rstrip(b"\0").decode() for row in dataset.splits["train"].inputs]
    assert rows == ["good", "äö", "", "bad"]


def test_numeric_columns_become_a_table_with_statistics_for_each_feature(tmp_path, load) -> None:
    columns = {"a": [1.0, 2.0, 3.0, 4.0], "b": [7, 7, 7, 7], "name": ["p", "q", "r", "s"], "label": [0, 1, 0, 1]}
    write_parquet(tmp_path / "n" / "train.parquet", columns)
    write_parquet(tmp_path / "n" / "test.parquet", columns)
    dataset = load(tmp_path / "n", feature_columns=("a", "b"))
    assert dataset.splits["train"].inputs.dtype == np.float32
    assert dataset.info.mean == (2.5, 7.0)
    assert dataset.info.std == (pytest.approx(np.sqrt(1.25)), 1.0)


def test_classes_are_the_distinct_labels(tmp_path, load) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / "n" / f"{split}.parquet", {"a": [1.0, 2.0, 3.0], "label": [3, 7, 3]})
    dataset = load(tmp_path / "n")
    assert dataset.info.label_names == ("3", "7") and dataset.splits["train"].labels.tolist() == [0, 1, 0]


def test_the_fingerprint_follows_the_data_and_the_names_of_the_classes(tmp_path, load) -> None:
    fingerprints = []
    for folder, labels, first in (("a", ["cat", "dog"], 1.0), ("b", ["cat", "dog"], 1.0), ("c", ["cat", "eel"], 1.0),
                                  ("d", ["cat", "dog"], 2.0)):  # fmt: skip
        for split in ("train", "test"):
            write_parquet(tmp_path / folder / f"{split}.parquet", {"x": [first, 5.0], "label": labels})
        fingerprints.append(load(tmp_path / folder).info.fingerprint)
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 3


def test_no_test_split_is_held_out_and_said(tmp_path, load) -> None:
    write_parquet(tmp_path / "n" / "train.parquet", {"a": np.arange(50.0), "label": [0, 1] * 25})
    first, second = load(tmp_path / "n"), load(tmp_path / "n", seed=7)
    assert (len(first.splits["train"]), len(first.splits["test"])) == (40, 10)
    assert np.bincount(first.splits["test"].labels).tolist() == [5, 5]
    assert np.array_equal(first.splits["test"].inputs, second.splits["test"].inputs)
    together = np.concatenate([first.splits["train"].inputs, first.splits["test"].inputs]).ravel()
    assert sorted(together.tolist()) == list(range(50))
    assert "no test split" in first.notes[0]


def test_validation_is_held_out_by_the_seed(tmp_path, load) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / "n" / f"{split}.parquet", {"a": np.arange(40.0), "label": [0, 1] * 20})
    by_seed = [load(tmp_path / "n", validation_fraction=0.25, seed=seed).splits for seed in (0, 1, 0)]
    rows = [set(np.asarray(splits["validation"].inputs).ravel().tolist()) for splits in by_seed]
    assert len(rows[0]) == 10 and rows[0] == rows[2] != rows[1]
    assert rows[0].isdisjoint(np.asarray(by_seed[0]["train"].inputs).ravel().tolist())
    assert len(by_seed[0]["train"]) == 30 and len(by_seed[0]["test"]) == 40


def test_image_folder_takes_classes_from_its_folders(tmp_path, load) -> None:
    pixels = images(6)
    for i, image in enumerate(pixels):
        for split in ("train", "val", "test"):
            path = tmp_path / "pets" / split / ("dog" if i % 2 else "cat") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image))
    dataset = load(tmp_path / "pets")
    assert set(dataset.splits) == {"train", "validation", "test"}
    assert dataset.info.label_names == ("cat", "dog")
    assert np.array_equal(dataset.splits["train"].inputs, pixels[[0, 2, 4, 1, 3, 5]].transpose(0, 3, 1, 2))
    (tmp_path / "pets" / "test" / "emu").mkdir()
    (tmp_path / "pets" / "test" / "emu" / "9.png").write_bytes(png(pixels[0]))
    with pytest.raises(DataError, match=r"label that the training split lacks: test/emu/9.png \('emu'\)"):
        load(tmp_path / "pets")


def test_image_folder_without_splits_and_with_mixed_images_can_be_converted(tmp_path, load) -> None:
    for i in range(10):
        path = tmp_path / "f" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (8, 9, 3) if i else (20, 30)
        path.write_bytes(png(images(1, shape)[0], format="JPEG"))
    with pytest.raises(
        DataError, match=r"other than 8 × 9 \(height × width\): f/a/0.jpg \(20 × 30\).*data.image_size=8,9"
    ):
        load(tmp_path / "f")
    dataset = load(tmp_path / "f", image_size=(8, 8), channels=3)
    assert dataset.info.input_shape == (3, 8, 8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_plain_and_gzipped(tmp_path, load, suffix) -> None:
    pixels = images(6, (4, 3))
    write_idx(tmp_path / "m", "train", pixels, np.array([0, 1, 2, 0, 1, 2], np.uint8), suffix)
    write_idx(tmp_path / "m", "t10k", pixels[:3], np.array([2, 1, 0], np.uint8), suffix)
    dataset = load(tmp_path / "m")
    assert np.array_equal(dataset.splits["train"].inputs, pixels[:, None])
    assert dataset.splits["test"].labels.tolist() == [2, 1, 0]


def write_idx(folder: Path, split: str, pixels: np.ndarray, labels: np.ndarray, suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if suffix else open
    for name, array in ((f"{split}-images-idx3-ubyte", pixels), (f"{split}-labels-idx1-ubyte", labels)):
        with opener(folder / (name + suffix), "wb") as stream:
            stream.write(struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        b"\0\0\x0d\x03" + bytes(12),
        struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"x",
        struct.pack(">4B3I", 0, 0, 8, 3, 3, 2, 2) + bytes(11),
        struct.pack(">4B3I", 0, 0, 8, 3, 3, 2, 2) + bytes(13),
    ],
    ids=["empty", "cut header", "floats", "claims 2^96 bytes", "too short", "too long"],
)
def test_idx_with_a_lying_header_is_refused(tmp_path, load, content, suffix) -> None:
    write_idx(tmp_path / "m", "train", images(3, (2, 2)), np.array([0, 1, 0], np.uint8), suffix)
    file = tmp_path / "m" / f"train-images-idx3-ubyte{suffix}"
    file.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match="IDX file must be whole"):
        load(tmp_path / "m")


def test_idx_that_is_no_gzip_or_lacks_its_labels_is_refused(tmp_path, load) -> None:
    write_idx(tmp_path / "m", "train", images(3, (2, 2)), np.array([0, 1], np.uint8))
    with pytest.raises(DataError, match="as many labels as images"):
        load(tmp_path / "m")
    (tmp_path / "m" / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="without the train labels"):
        load(tmp_path / "m")
    (tmp_path / "m" / "train-labels-idx1-ubyte.gz").write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="IDX file must be whole"):
        load(tmp_path / "m")


@pytest.mark.parametrize("divide", [False, True])
def test_npz_as_keras_has_it(tmp_path, load, divide) -> None:
    pixels = images(8)
    stored = pixels.astype(np.float32) / 255 if divide else pixels
    labels = np.array([[0], [1]] * 4)
    np.savez(tmp_path / "c.npz", x_train=stored, y_train=labels, x_test=stored[:4], y_test=labels[:4])
    dataset = load(tmp_path / "c.npz")
    assert np.array_equal(dataset.splits["train"].inputs, pixels.transpose(0, 3, 1, 2))
    assert dataset.splits["test"].labels.tolist() == [0, 1, 0, 1]


def test_npz_tables_and_texts_and_other_names(tmp_path, load) -> None:
    table = RNG.normal(size=(10, 3))
    np.savez(tmp_path / "t.npz", train_inputs=table, train_labels=["no", "yes"] * 5)
    dataset = load(tmp_path / "t.npz")
    assert dataset.info.kind == "tabular" and dataset.info.label_names == ("no", "yes")
    assert len(dataset.splits["test"]) == 2
    np.savez(tmp_path / "s.npz", x_train=np.array(["ab", "c"] * 5), y_train=[0, 1] * 5)
    assert load(tmp_path / "s.npz", max_text_bytes=4).info.kind == "text"


class Exploit:
    def __reduce__(self) -> tuple[object, ...]:
        return open, ("pickle-was-run", "w")


def test_npz_with_pickled_objects_is_refused_and_runs_nothing(tmp_path, load, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Exploit(), Exploit()], dtype=object)
    np.savez(tmp_path / "p.npz", x_train=objects, y_train=[0, 1])
    with pytest.raises(DataError, match="pickled code"):
        load(tmp_path / "p.npz")
    (tmp_path / "q.npz").write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(DataError, match="must hold arrays"):
        load(tmp_path / "q.npz")
    assert not (tmp_path / "pickle-was-run").exists()


def test_npz_bombs_are_refused_before_they_are_unpacked(tmp_path, load) -> None:
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", bytes(100 * 2**20))
    with pytest.raises(DataError, match="that unpack to"):
        load(tmp_path / "b.npz")
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "l.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
    with pytest.raises(DataError, match="claims 8796093022208 bytes"):
        load(tmp_path / "l.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.zeros((3, 2))}, "as many labels as inputs"),
        ({"x_train": np.zeros((3, 2)), "y_train": np.zeros(2)}, "as many labels as inputs"),
        ({"x_train": np.zeros((3, 2)), "y_train": np.eye(3)}, "argmax"),
        ({"x_train": np.zeros((3, 2, 2, 7)), "y_train": np.arange(3)}, "channels"),
        ({"x_train": np.full((3, 2, 2), 0.3), "y_train": np.arange(3)}, "pixels must be"),
        ({"x_train": np.full((3, 2, 2), 300), "y_train": np.arange(3)}, "pixels must be"),
        ({"a": np.zeros(3)}, "must have x_train"),
        ({}, "must have x_train"),
    ],
)
def test_npz_of_another_form_is_refused(tmp_path, load, arrays, message) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "x.npz")


def test_unknown_names_get_a_guess_and_missing_paths_are_said(tmp_path, load) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        load("digts")
    with pytest.raises(DataError, match="must exist"):
        load(tmp_path / "nothing.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty, an empty folder"):
        load(tmp_path / "empty")


def test_columns_that_cannot_be_told_are_asked_for(tmp_path, load) -> None:
    write_parquet(tmp_path / "a" / "train.parquet", {"en": ["a", "b"], "de": ["c", "d"]})
    with pytest.raises(DataError, match="label_column=NAME"):
        load(tmp_path / "a")
    write_parquet(tmp_path / "b" / "train.parquet", {"en": ["a", "b"], "de": ["c", "d"], "label": [0, 1]})
    with pytest.raises(DataError, match=r"text columns en, de.*input_column=en"):
        load(tmp_path / "b")
    with pytest.raises(UnknownNameError, match="did you mean 'label'"):
        load(tmp_path / "b", label_column="lable")


def test_a_parquet_file_that_tells_no_split_beside_some_that_do_is_refused(tmp_path, load) -> None:
    for name, start in (("train", 0), ("test", 10), ("all", 0)):
        write_parquet(tmp_path / "d" / f"{name}.parquet", {"x": np.arange(start, start + 10.0), "label": [0, 1] * 5})
    with pytest.raises(DataError, match=r"all must; received all.parquet beside test, train"):
        load(tmp_path / "d")
    for name in ("train", "test"):
        (tmp_path / "d" / f"{name}.parquet").unlink()
    alone = load(tmp_path / "d").splits
    assert len(alone["train"]) + len(alone["test"]) == 10


def test_broken_parquet_and_splits_with_other_columns_are_refused(tmp_path, load) -> None:
    write_parquet(tmp_path / "a" / "train.parquet", {"x": [1.0, 2.0], "label": [0, 1]})
    write_parquet(tmp_path / "a" / "test.parquet", {"y": [1.0, 2.0], "label": [0, 1]})
    with pytest.raises(DataError, match=r"test.parquet without x"):
        load(tmp_path / "a")
    (tmp_path / "a" / "test.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(DataError, match="parquet file must be readable"):
        load(tmp_path / "a")


def test_empty_and_one_class_datasets_are_refused(tmp_path, load) -> None:
    empty = {"x": pa.array([], pa.float32()), "label": pa.array([], pa.int64())}
    write_parquet(tmp_path / "e" / "train.parquet", empty)
    with pytest.raises(DataError, match="must have rows"):
        load(tmp_path / "e")
    write_parquet(tmp_path / "o" / "train.parquet", {"x": [1.0, 2.0], "label": ["same", "same"]})
    with pytest.raises(DataError, match=r"at least two classes.*same"):
        load(tmp_path / "o")


def test_a_name_is_found_in_the_data_dir_before_the_working_folder(tmp_path, load, monkeypatch) -> None:
    write_parquet(tmp_path / "data" / "mnist" / "train.parquet", {"x": [1.0, 2.0] * 5, "label": [0, 1] * 5})
    (tmp_path / "work" / "mnist").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert load("mnist", data_dir=tmp_path / "data").info.kind == "tabular"
    monkeypatch.setenv("UPSHIFT_DATA_DIR", str(tmp_path / "data"))
    assert load("mnist").info.source.startswith("mnist")
