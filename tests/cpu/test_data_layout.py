"""A path that holds no dataset is refused with what was seen there and what to make of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from upshift.data.config import DataConfig
from upshift.data.dataset import PackedDataset
from upshift.data.prepare import prepare
from upshift.errors import DataError


def load(path: Path) -> PackedDataset:
    return prepare(DataConfig(source=str(path)), cache_dir=path.parent / "cache")


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("files", "seen", "hint"),
    [
        (
            ["a.png", "b.JPG"],
            r"{} with 2 images \(a.png, …\) in it and no folder of a class",
            "move them to {}/train/<class>/",
        ),
        (["train/a.png"], r"{}/train with 1 image \(a.png\) in it", "move them to {}/train/<class>/"),
        (["train/a.png", "test/b.png"], r"{}/t\w+ with 1 image \(.\.png\) in it", "<class>/"),
        (
            ["train/cat/a.png", "train/b.png"],
            r"{}/train with 1 image \(b.png\) beside the folders",
            "{}/train/<class>/",
        ),
        (
            ["x/y/train/cat/a.png"],
            r"{} with images deeper in it, as x/y/train/cat/a.png",
            "name {}/x/y, if cat is a class",
        ),
        ([".hidden"], "{}, an empty folder", "check the path"),
        (["cat/", "dog/"], r"{} with 2 folders \(cat, dog\), empty", "put the images of each class"),
        (["a.csv", "b.md"], r"{} with 1 file .csv, 1 file .md", r'read_csv\("a.csv"\), "a.parquet"'),
        (["a.txt", "b.txt", "c/d.txt"], r"{} with 2 files .txt, 1 folder \(c\)", "docs/data.md"),
        (["a.npz", "b.npz"], r"{} with 2 files .npz", "name one of the archives, as {}/a.npz"),
    ],
)
def test_a_folder_in_no_layout_is_told_what_was_seen_and_what_to_do(tmp_path, files, seen, hint) -> None:
    folder = tmp_path / "f"
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif path.suffix.lower() in (".png", ".jpg"):
            save_image(path)
        else:
            path.write_bytes(b"x")
    with pytest.raises(DataError) as refused:
        load(folder)
    assert re.search(seen.format(re.escape(str(folder))), refused.value.received), refused.value
    assert re.search(hint.format(re.escape(str(folder))), refused.value.hint), refused.value


@pytest.mark.parametrize(
    ("name", "seen", "hint"),
    [
        ("table.csv", "a table of text", 'p.write_table(c.read_csv("table.csv"), "table.parquet")'),
        ("table.TSV", "a table of text", 'delimiter="\\t"'),
        ("a.png", "one image", "a folder of images for each class"),
        ("train-images-idx3-ubyte.gz", "one IDX file", "name its folder"),
        ("data.tar.gz", "an archive", "unpack it"),
        ("data.pt", "a pickle, which upshift does not open", "numpy.savez"),
        ("data.xyz", "a file of type .xyz", "docs/data.md"),
        ("data", "a file without a suffix", "docs/data.md"),
    ],
)
def test_a_file_in_no_layout_is_told_what_it_is_and_what_to_do(tmp_path, name, seen, hint) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError) as refused:
        load(tmp_path / name)
    assert refused.value.rule.startswith("a dataset must be an image folder train/<class>/*.png")
    assert refused.value.received == f"{tmp_path / name}, {seen}"
    assert hint in refused.value.hint


@pytest.mark.parametrize("name", ["table.csv", "table.tsv"])
def test_the_conversion_that_a_hint_gives_makes_a_dataset(tmp_path, name, monkeypatch) -> None:
    rows = ["width,height,label", *(f"{i},{i * 2},{'ab'[i % 2]}" for i in range(20))]
    (tmp_path / name).write_text("\n".join(rows).replace(",", "," if name.endswith("csv") else "\t"))
    with pytest.raises(DataError) as refused:
        load(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(refused.value.hint.split("with Python: ")[1].split("; then")[0])
    dataset = load(tmp_path / "table.parquet")
    assert dataset.info.kind == "tabular" and dataset.info.label_names == ("a", "b")


def test_test_images_without_classes_are_left_out_with_a_note(tmp_path) -> None:
    for i in range(10):
        path = tmp_path / "f" / "train" / "ab"[i % 2] / f"{i}.png"
        save_image(path)
    save_image(tmp_path / "f" / "test" / "1.png")
    dataset = load(tmp_path / "f")
    assert dataset.notes[0] == "test/ with 1 image (1.png) is not used, as it has no folder of a class"
    assert len(dataset.splits["test"]) == 2


def test_classes_may_be_called_as_splits_are(tmp_path) -> None:
    for i in range(10):
        path = tmp_path / "f" / ("train", "bus")[i % 2] / f"{i}.png"
        save_image(path)
    assert load(tmp_path / "f").info.label_names == ("bus", "train")
