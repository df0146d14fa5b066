"""From a data config to a packed dataset: find the source, open its store or make it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from upshift.core.files import cache_folder
from upshift.data.class_names import require_classes
from upshift.data.config import DataConfig
from upshift.data.dataset import PackedDataset
from upshift.data.find import find_source
from upshift.data.labels import find_classes
from upshift.data.packing import OnProgress, needs_seed, pack
from upshift.data.reuse import Making, find_alike
from upshift.data.source import Source
from upshift.data.store import (
    FORMAT_VERSION,
    INDEX,
    DamagedStoreError,
    new_store,
    open_store,
    packing_lock,
    write_store,
)
from upshift.errors import UnknownNameError


def prepare(
    config: DataConfig,
    *,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    seed: int = 0,
    split: str | None = None,
    labels: tuple[str, ...] | None = None,
    on_progress: OnProgress | None = None,
) -> PackedDataset:
    """Find a dataset, pack it or open its store, and return it memory-mapped.

    What can be refused without packing is refused before.

    Args:
        config: Which dataset, and how it is read.
        data_dir: Where named datasets lie as `<data_dir>/<name>/*.parquet`; else `UPSHIFT_DATA_DIR`.
        cache_dir: Where stores and downloads are kept; else `core.files.cache_folder()`.
        seed: Draws the rows of a held-out validation split.
        split: The only split that is wanted: any store will do that holds its rows as `config` would pack them.
        labels: The class names that the dataset must have; None takes any.
        on_progress: Called with a description, what is done and the total (rows, or bytes of a
            download), at most ten times a second.

    Raises:
        UnknownNameError: No dataset or split of that name.
        DataError: The dataset is missing, empty or wrong, or has other classes than `labels`.
        StorageError: The cache cannot be written.
    """
    cache = cache_dir if cache_dir is not None else cache_folder()
    source = find_source(config, data_dir=data_dir, cache_dir=cache, on_progress=on_progress)
    if split is not None:
        _require_split(split, source, config)
    making = Making.of(source, config)
    stores = cache / "packed"
    folder = stores / f"{source.name}-{_store_key(source, config, making, seed)}"
    dataset, _ = _try_open(folder, config)
    if dataset is None and split is not None:
        dataset = find_alike(stores, source, config, making, split)
    if dataset is not None:
        if labels is not None:
            require_classes(dataset.info.label_names, labels)
        return dataset
    if labels is not None:
        require_classes(find_classes(source.splits["train"].labels(), given_names=source.label_names).names, labels)
    with packing_lock(folder):
        dataset, damage = _try_open(folder, config)
        if dataset is not None:
            return dataset
        with new_store(folder) as temporary:
            packed = pack(source, config, temporary, seed=seed, on_progress=on_progress)
            write_store(temporary, packed, making.to_json())
        dataset = open_store(folder)
    if damage:
        note = f"the packed store of {source.name} was damaged ({damage}) and has been made anew"
        dataset = replace(dataset, notes=(note, *dataset.notes))
    return dataset


def _try_open(folder: Path, config: DataConfig) -> tuple[PackedDataset | None, str]:
    """The store if it is there, whole and allowed; else why it is damaged, "" if it is not."""
    if not (folder / INDEX).exists():
        return None, "its index is missing" if folder.exists() else ""
    try:
        dataset = open_store(folder)
    except DamagedStoreError as error:
        return None, str(error)
    # Packing again refuses the bad rows that an earlier run allowed, and names them.
    return (dataset, "") if config.skip_bad or not dataset.info.num_bad_rows else (None, "")


def _store_key(source: Source, config: DataConfig, making: Making, seed: int) -> str:
    """What the store's content follows from."""
    parts = {
        "version": FORMAT_VERSION,
        "source": source.name,
        "made_from": making.to_json(),
        "seed": seed if needs_seed(source, config) else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _require_split(split: str, source: Source, config: DataConfig) -> None:
    held_out = ["test", *(["validation"] if config.validation_fraction else [])]
    known = {*source.splits, *held_out}
    if split not in known:
        raise UnknownNameError("split", split, known)
