"""Where a source is looked for, and what a record says of it: a path is found again from any folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import upshift
from upshift.core.files import read_json
from upshift.data.config import DataConfig
from upshift.data.find import lasting_name
from upshift.data.labels import find_classes
from upshift.data.prepare import prepare
from upshift.errors import ConfigError, DataError


def table(path: Path, labels: list[int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)


def test_a_run_on_a_relative_path_is_evaluated_from_another_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    table(Path("pics.npz"), [0, 1] * 20)
    run = upshift.train(
        "digits", overrides=["data.source=pics.npz", "epochs=1", "batch_size=8"], plan="baseline", out="my run"
    ).path
    assert read_json(run / "recipe.json", kind="recipe")["recipe"]["data"]["source"] == str(tmp_path / "work/pics.npz")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert upshift.evaluate(run)["num_samples"] == 40


def test_named_datasets_keep_their_names_and_paths_are_written_in_full(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    table(tmp_path / "data" / "mine.npz", [0, 1])
    for name in ("mnist", "other"):
        (tmp_path / name).mkdir()
    places = {"data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache"}
    for name in ("digits", "mnist", "mine.npz", "hub:owner/name"):
        assert lasting_name(name, **places) == name
    assert lasting_name("other", **places) == str(tmp_path / "other")
    assert lasting_name("./mnist", **places) == str(tmp_path / "mnist")


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    table(tmp_path / "mine.npz", [0, 1] * 5)
    dataset = prepare(DataConfig(source="~/mine.npz"), cache_dir=tmp_path / "cache")
    assert len(dataset.splits["train"]) == 10
    assert lasting_name("~/mine.npz", data_dir=None, cache_dir=tmp_path) == str(tmp_path / "mine.npz")
    with pytest.raises(DataError, match="must exist; received ~nobody-of-this-name/x"):
        prepare(DataConfig(source="~nobody-of-this-name/x"), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("source", ["digits", "mine"])
def test_a_data_folder_that_is_not_there_is_refused(tmp_path, monkeypatch, source) -> None:
    (tmp_path / "right" / "mine").mkdir(parents=True)
    monkeypatch.setenv("UPSHIFT_DATA_DIR", str(tmp_path / "right"))
    with pytest.raises(DataError, match=r"folder of named datasets must exist; received --data-dir .*typo"):
        prepare(DataConfig(source=source), data_dir=tmp_path / "typo", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_source_is_refused(source) -> None:
    with pytest.raises(ConfigError, match=r"data\.source must not be empty"):
        DataConfig(source=source)


def test_signs_are_two_classes_and_other_negative_numbers_are_no_label(tmp_path) -> None:
    table(tmp_path / "signs.npz", [-1, 1, 1, -1])
    dataset = prepare(DataConfig(source=str(tmp_path / "signs.npz")), cache_dir=tmp_path / "cache")
    assert dataset.info.label_names == ("-1", "1")
    assert dataset.splits["test"].labels.tolist() == [0, 1, 1, 0]
    table(tmp_path / "missing.npz", [-1, 0, 1, 0])
    with pytest.raises(DataError, match=r"missing label: row 0.*if -1 is a class, number the classes from 0"):
        prepare(DataConfig(source=str(tmp_path / "missing.npz")), cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=r"received only '1'; hint: .*a negative number is no label"):
        find_classes([-2, 1, 1], given_names=None)
