"""A packed store that was made under other settings and holds the very rows that are wanted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from upshift.core.files import read_json
from upshift.data.config import DataConfig
from upshift.data.dataset import PackedDataset
from upshift.data.source import Source
from upshift.data.store import INDEX, DamagedStoreError, open_store
from upshift.errors import ArtifactError

_DECODING = ("input_column", "label_column", "feature_columns", "max_text_bytes")


@dataclass(frozen=True)
class Making:
    """What a store was made from.

    Attributes:
        files: A digest of the source's files: their paths, sizes and times of change.
        config: The fields of the data config, without the source's name and without `skip_bad`.
    """

    files: str
    config: dict[str, Any]

    @staticmethod
    def of(source: Source, config: DataConfig) -> Making:
        """What a store of a source is made from.

        Files count by path, size and time of change: hashing a large dataset at each start would cost more than
        training on it.
        """
        fields = asdict(config)
        del fields["source"], fields["skip_bad"]
        digest = hashlib.sha256()
        for file in source.files:
            status = file.stat()
            digest.update(json.dumps([str(file.resolve()), status.st_size, status.st_mtime_ns]).encode())
        return Making(digest.hexdigest(), json.loads(json.dumps(fields)))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find_alike(stores: Path, source: Source, config: DataConfig, making: Making, split: str) -> PackedDataset | None:
    """A whole store with the rows of one split as `config` would pack them; None if there is none.

    Args:
        stores: The folder of all stores.
        source: What is wanted of.
        config: How it is wanted.
        making: What a new store would be made from.
        split: The only split of the result.
    """
    for folder in sorted(stores.glob(f"{source.name}-*")):
        try:
            made = read_json(folder / INDEX, kind="a packed dataset's index").get("made_from")
            if not isinstance(made, dict) or not _may_be_alike(Making(**made), making):
                continue
            dataset = open_store(folder)
        except (DamagedStoreError, ArtifactError, OSError, TypeError, KeyError, AttributeError):
            continue
        same_rows = split in dataset.splits and _has_the_same_rows(source, made["config"], config, split)
        if same_rows and _is_decoded_alike(dataset, made["config"], config):
            return replace(dataset, splits={split: dataset.splits[split]})
    return None


def _may_be_alike(made: Making, wanted: Making) -> bool:
    return made.files == wanted.files and all(made.config.get(name) == wanted.config[name] for name in _DECODING)


def _has_the_same_rows(source: Source, made: dict[str, Any], config: DataConfig, split: str) -> bool:
    """Whether a split is the same whatever is held out for validation.

    A test split that is held out is drawn before, and by a seed of its own.
    """
    nothing_held_out = made["validation_fraction"] == config.validation_fraction == 0.0
    return split == "test" or "validation" in source.splits or (split == "train" and nothing_held_out)


def _is_decoded_alike(dataset: PackedDataset, made: dict[str, Any], config: DataConfig) -> bool:
    """Whether each stored row is what `config` would make of it."""
    info = dataset.info
    if info.num_bad_rows and not config.skip_bad:
        return False
    if info.kind != "image":
        return True
    channels, *size = info.input_shape
    wanted_size = list(config.image_size) if config.image_size else None
    wanted = {"image_size": wanted_size, "channels": config.channels}
    kept = {"image_size": size, "channels": channels}
    # Images that were kept as they are need no conversion to what they are, unless others were left out for it.
    return all(
        made[name] == wanted[name] or (made[name] is None and kept[name] == wanted[name] and not info.num_bad_rows)
        for name in wanted
    )
