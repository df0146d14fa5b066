"""Decoding a source once into the arrays of a packed store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upshift.core.files import sha256_file
from upshift.data.bad_rows import BadRows, refuse
from upshift.data.config import DataConfig
from upshift.data.convert import convert_split, stored_shape
from upshift.data.dataset import DataInfo, Labels
from upshift.data.labels import find_classes, to_classes
from upshift.data.npy import NpyWriter
from upshift.data.source import SPLIT_NAMES, Source
from upshift.data.splitting import held_out_rows
from upshift.data.statistics import mean_and_std
from upshift.errors import DataError

OnProgress = Callable[[str, int, int], None]

TEST_FRACTION = 0.2
TEST_SEED = 0
"""A test split that upshift holds out is the same for every seed, so that runs can be compared."""

COPY_BYTES = 16 * 2**20
PROGRESS_SECONDS = 0.1


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote into its folder: `<split>-inputs.npy` and `<split>-labels.npy` for each split."""

    info: DataInfo
    split_names: tuple[str, ...]
    sha256: Mapping[str, str]
    notes: tuple[str, ...]


def inputs_file(split: str) -> str:
    """Name of the file with the inputs of a split."""
    return f"{split}-inputs.npy"


def labels_file(split: str) -> str:
    """Name of the file with the labels of a split."""
    return f"{split}-labels.npy"


def needs_seed(source: Source, config: DataConfig) -> bool:
    """Whether the store depends on the seed: it draws the rows of a held-out validation split."""
    return config.validation_fraction > 0 and "validation" not in source.splits


def pack(
    source: Source,
    config: DataConfig,
    folder: Path,
    *,
    seed: int,
    on_progress: OnProgress | None,
) -> Packed:
    """Decode all splits of a source into `folder`.

    Raises:
        DataError: A split is empty, there are fewer than two classes, or a row cannot be used and
            `config.skip_bad` is off.
        OSError: The folder cannot be written.
    """
    for name, split in source.splits.items():
        _require_rows(split.num_rows, name, source)
    raw_labels = {name: split.labels() for name, split in source.splits.items()}
    classes = find_classes(raw_labels["train"], given_names=source.label_names)
    shape, dtype = stored_shape(source, config)
    progress = _Progress(source, on_progress)
    all_bad = []
    for name, split in source.splits.items():
        bad = BadRows(name, split.row_name)
        all_bad.append(bad)
        labels = to_classes(raw_labels[name], classes, bad)
        kept = []
        with NpyWriter(folder / inputs_file(name), shape, dtype) as writer:
            for rows, inputs in convert_split(source, split, config, shape, bad):
                writer.append(inputs)
                kept.append(labels[rows])
                progress.advance_to(name, int(rows[-1]) + 1)
        if not config.skip_bad and len(bad):
            continue
        _require_rows(writer.num_rows, name, source)
        np.save(folder / labels_file(name), np.concatenate(kept), allow_pickle=False)
    if not config.skip_bad:
        refuse(all_bad, source.description)
    notes = list(source.notes)
    notes += [f"left out {len(bad)} bad {'row' if len(bad) == 1 else 'rows'} of {bad}" for bad in all_bad if len(bad)]
    notes += _hold_out(source, config, folder, seed)
    return _described(source, folder, classes.names, sum(map(len, all_bad)), tuple(notes))


def _require_rows(count: int, split: str, source: Source) -> None:
    if count == 0:
        raise DataError(
            f"the {split} split of {source.description} must have rows",
            received="none",
            hint="check the path and the file",
        )


class _Progress:
    """Calls back with the rows done over all splits, at most ten times a second, and at the end."""

    def __init__(self, source: Source, on_progress: OnProgress | None) -> None:
        self._call = on_progress
        self._description = f"packing {source.title or source.name}"
        self._total = sum(split.num_rows for split in source.splits.values())
        self._before = dict(
            zip(source.splits, np.cumsum([0, *(s.num_rows for s in source.splits.values())]), strict=False)
        )
        self._last = 0.0

    def advance_to(self, split: str, row: int) -> None:
        done = int(self._before[split]) + row
        now = time.monotonic()
        if self._call is not None and (done == self._total or now - self._last >= PROGRESS_SECONDS):
            self._last = now
            self._call(self._description, done, self._total)


def _hold_out(source: Source, config: DataConfig, folder: Path, seed: int) -> list[str]:
    notes = []
    if "test" not in source.splits:
        count = _move_rows(folder, "test", TEST_FRACTION, TEST_SEED)
        notes.append(
            f"{source.description} has no test split: {count} rows ({TEST_FRACTION * 100:.0f} % of each class, the "
            "same for every seed) are held out of the training split"
        )
    if needs_seed(source, config):
        count = _move_rows(folder, "validation", config.validation_fraction, seed)
        notes.append(
            f"validation: {count} rows ({config.validation_fraction * 100:.0f} % of each class, drawn by seed {seed}) "
            "are held out of the training split"
        )
    return notes


def _move_rows(folder: Path, name: str, fraction: float, seed: int) -> int:
    """Move a share of the training rows to a new split; returns how many."""
    inputs = np.load(folder / inputs_file("train"), mmap_mode="r")
    labels = np.load(folder / labels_file("train"))
    held_out = held_out_rows(labels, fraction, seed=seed)
    if not held_out.any():
        raise DataError(
            f"a {name} split of {fraction * 100:.0f} % needs at least one row to hold out",
            received=f"{len(labels)} training rows",
            hint="add rows, or files of that split",
        )
    _copy_rows(inputs, labels, np.flatnonzero(held_out), folder, name)
    _copy_rows(inputs, labels, np.flatnonzero(~held_out), folder, "rest")
    del inputs
    (folder / inputs_file("rest")).replace(folder / inputs_file("train"))
    (folder / labels_file("rest")).replace(folder / labels_file("train"))
    return int(held_out.sum())


def _copy_rows(inputs: npt.NDArray[Any], labels: Labels, rows: npt.NDArray[np.int64], folder: Path, name: str) -> None:
    stretch = max(1, COPY_BYTES // max(1, inputs[:1].nbytes))
    with NpyWriter(folder / inputs_file(name), inputs.shape[1:], inputs.dtype) as writer:
        for start in range(0, len(rows), stretch):
            writer.append(inputs[rows[start : start + stretch]])
    np.save(folder / labels_file(name), labels[rows], allow_pickle=False)


def _described(
    source: Source, folder: Path, label_names: tuple[str, ...], num_bad_rows: int, notes: tuple[str, ...]
) -> Packed:
    split_names = tuple(name for name in SPLIT_NAMES if (folder / inputs_file(name)).exists())
    train = np.load(folder / inputs_file("train"), mmap_mode="r")
    train_labels = np.load(folder / labels_file("train"))
    if len(np.unique(train_labels)) < 2:
        raise DataError(
            "the training split must have rows of at least two classes",
            received=f"only {label_names[int(train_labels[0])]!r}",
            hint="check the label column, or add rows of another class",
        )
    mean, std = mean_and_std(train, source.kind)
    sha256 = {file.name: sha256_file(file) for file in sorted(folder.glob("*.npy"))}
    content = json.dumps({"kind": source.kind, "label_names": label_names, "files": sha256})
    info = DataInfo(
        kind=source.kind,
        input_shape=tuple(train.shape[1:]),
        num_classes=len(label_names),
        label_names=label_names,
        mean=mean,
        std=std,
        num_bad_rows=num_bad_rows,
        source=source.description,
        fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
        feature_names=source.feature_names,
    )
    return Packed(info=info, split_names=split_names, sha256=sha256, notes=notes)
