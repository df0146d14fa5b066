"""Runs and artifacts evaluated again: on the same data, packed once, and on others, which are refused in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import upshift
from upshift.errors import ArtifactError, DataError, UnknownNameError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cached(cache, monkeypatch) -> None:
    monkeypatch.setenv("UPSHIFT_CACHE_DIR", str(cache))


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory) -> Path:
    """A finished run with an artifact."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSHIFT_CACHE_DIR", str(cache))
        upshift.train("digits", overrides=["epochs=2", "data.validation_fraction=0.1"], plan="baseline", out=path)
        upshift.optimize(path, candidates=["eager"])
    return path


def stores(cache: Path) -> set[str]:
    return {path.name for path in (cache / "packed").iterdir() if not path.name.startswith(".")}


def changed_manifest(run: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the run's artifact whose manifest was changed."""
    shutil.copytree(run / "artifact", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def table_of_images(path: Path, labels: np.ndarray) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    return str(path)


def test_an_artifact_is_evaluated_on_what_its_run_has_packed(run, cache) -> None:
    before, calls = stores(cache), []
    record = upshift.evaluate(run / "artifact", source="digits", on_data_progress=lambda *call: calls.append(call))
    assert calls == [] and stores(cache) == before
    of_run = upshift.evaluate(run)
    assert record["num_samples"] == 359
    assert record["metrics"]["accuracy"] == of_run["metrics"]["accuracy"]
    assert record["confusion_matrix"] == of_run["confusion_matrix"]


def test_an_artifact_knows_its_data_wherever_it_is_evaluated(run, cache, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = stores(cache)
    assert upshift.evaluate(run / "artifact") == upshift.evaluate(run)
    assert upshift.evaluate(run / "artifact", split="validation")["split"] == "validation"
    assert stores(cache) == before


def test_an_artifact_that_does_not_name_its_data_must_be_told(run, tmp_path) -> None:
    old = changed_manifest(run, tmp_path / "old", lambda manifest: manifest.pop("data"))
    with pytest.raises(ArtifactError, match="the data to evaluate on must be named; received an artifact"):
        upshift.evaluate(old)
    assert upshift.evaluate(old, source="digits")["num_samples"] == 359


def test_an_artifact_is_not_evaluated_on_data_that_have_changed(run, tmp_path) -> None:
    changed = changed_manifest(run, tmp_path / "other", lambda manifest: manifest["data"].update(fingerprint="0"))
    with pytest.raises(DataError, match="must be evaluated on the data that it was made with"):
        upshift.evaluate(changed)
    wrong = changed_manifest(run, tmp_path / "wrong", lambda manifest: manifest["data"].pop("seed"))
    with pytest.raises(ArtifactError, match="must name its data"):
        upshift.evaluate(wrong)


@pytest.mark.parametrize("what", ["artifact", "."])
def test_data_with_another_number_of_classes_are_refused_before_they_are_packed(run, cache, tmp_path, what) -> None:
    source = table_of_images(tmp_path / "three.npz", np.arange(30) % 3)
    before = stores(cache)
    with pytest.raises(DataError, match=r"the model's 10 classes.*received 3 instead of 10 classes: 0, 1, 2"):
        upshift.evaluate(run / what, source=source)
    assert stores(cache) == before


def test_data_with_other_class_names_are_refused(run, tmp_path) -> None:
    source = table_of_images(tmp_path / "letters.npz", np.array(list("abcdefghij") * 3))
    with pytest.raises(DataError, match="received other classes: a, b, c, d, e, f, g, h"):
        upshift.evaluate(run / "artifact", source=source)


def test_other_data_with_the_same_classes_are_evaluated(run, tmp_path) -> None:
    source = table_of_images(tmp_path / "ten.npz", np.arange(40) % 10)
    assert upshift.evaluate(run / "artifact", source=source)["num_samples"] == 40


def test_datasets_handed_over_with_other_classes_are_refused(run) -> None:
    pixels = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    few = TensorDataset(pixels, torch.arange(20) % 4)
    with pytest.raises(DataError, match="received 4 instead of 10 classes"):
        upshift.evaluate(run / "artifact", data={"train": few, "test": few})
    ten = TensorDataset(pixels, torch.arange(20) % 10)
    with pytest.raises(DataError, match="the same classes in another order"):
        upshift.evaluate(run / "artifact", data={"train": ten, "test": ten, "label_names": list("9876543210")})
    assert upshift.evaluate(run / "artifact", data={"train": ten, "test": ten})["num_samples"] == 20


def test_a_split_that_there_is_not_is_refused(run) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'test'"):
        upshift.evaluate(run / "artifact", source="digits", split="tset")
    with pytest.raises(UnknownNameError, match="split must be one that upshift knows"):
        upshift.evaluate(run / "artifact", source="digits", split="validation")
    assert upshift.evaluate(run, split="validation")["split"] == "validation"
