"""Parquet datasets in the layout of the Hugging Face hub, with or without its metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upshift.data.config import DataConfig
from upshift.data.schema import Columns, find_columns
from upshift.data.source import RawInputs, RawLabel, Source, SourceSplit
from upshift.errors import DataError

BATCH_ROWS = 1024
_SPLIT_OF_NAME = (
    ("validation", re.compile(r"(^|[-_./])(validation|valid|val|dev)($|[-_./0-9])")),
    ("train", re.compile(r"(^|[-_./])(train|training)($|[-_./0-9])")),
    ("test", re.compile(r"(^|[-_./])(test|testing|eval)($|[-_./0-9])")),
)


def split_of_name(name: str) -> str | None:
    """The split that a file or folder name tells, as "train" of "data/train-00000-of-00002.parquet"."""
    return next((split for split, pattern in _SPLIT_OF_NAME if pattern.search(name.lower())), None)


def parquet_files(path: Path) -> dict[str, list[Path]]:
    """The parquet files of a folder by split: in it, in its `data/`, or in a folder for each split.

    A single file, or files of which none tells a split by its name, are the training split.

    Raises:
        DataError: Some files tell their split and others do not: these could hold rows of any.
    """
    if path.is_file():
        return {"train": [path]}
    splits: dict[str | None, list[Path]] = {}
    for file in sorted(file for pattern in ("*.parquet", "*/*.parquet") for file in path.glob(pattern)):
        splits.setdefault(split_of_name(str(file.relative_to(path))), []).append(file)
    unnamed = splits.pop(None, [])
    named = {split: files for split, files in splits.items() if split is not None}
    if unnamed and named:
        others = f" and {len(unnamed) - 1} more" if len(unnamed) > 1 else ""
        raise DataError(
            "where some parquet files tell their split by name, all must",
            received=f"{unnamed[0].relative_to(path)}{others} beside {', '.join(sorted(named))}",
            hint="name it train*, validation* or test*, or move it elsewhere",
        )
    return {"train": unnamed} if unnamed else named


def parquet_source(path: Path, config: DataConfig, *, name: str, description: str) -> Source:
    """A folder of parquet files, or one file.

    Raises:
        DataError: A file cannot be read, splits have other columns, or the columns cannot be told.
        UnknownNameError: A configured column is not there.
    """
    files = parquet_files(path)
    if "train" not in files:
        raise DataError(
            f"{description} must have a training split",
            received=", ".join(f"{split}*.parquet" for split in files) or "no parquet file",
            hint="name its files train*.parquet",
        )
    schema = _open(files["train"][0]).schema_arrow
    columns = find_columns(schema, config, description)
    for file in (file for of_split in files.values() for file in of_split):
        present = _open(file).schema_arrow.names
        missing = [column for column in (*columns.inputs, columns.label) if column not in present]
        if missing:
            raise DataError(
                "all parquet files of a dataset must have the same columns",
                received=f"{file} without {', '.join(missing)}",
                hint="move files of another dataset elsewhere",
            )
    return Source(
        name=name,
        description=description,
        kind=columns.kind,
        splits={split: _split(of_split, columns) for split, of_split in files.items()},
        label_names=columns.label_names,
        files=tuple(file for of_split in files.values() for file in of_split),
        feature_names=columns.inputs if columns.kind == "tabular" else (),
    )


def _open(file: Path) -> Any:
    import pyarrow as arrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (arrow.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        "a parquet file must be readable", received=f"{file}: {error}", hint="fetch the file again, or make it again"
    )


def _batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Any]:
    import pyarrow as arrow

    for file in files:
        try:
            with _open(file) as opened:
                yield from opened.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))
        except (arrow.ArrowException, OSError) as error:
            raise _unreadable(file, error) from error


def _split(files: Sequence[Path], columns: Columns) -> SourceSplit:
    def labels() -> Sequence[RawLabel]:
        return [label for batch in _batches(files, [columns.label]) for label in batch.column(0).to_pylist()]

    def inputs() -> Iterator[RawInputs]:
        for batch in _batches(files, columns.inputs):
            yield _inputs_of(batch, columns)

    return SourceSplit(num_rows=sum(_open(file).metadata.num_rows for file in files), labels=labels, inputs=inputs)


def _inputs_of(batch: Any, columns: Columns) -> RawInputs:
    import pyarrow as arrow

    if columns.kind == "tabular":
        features = [batch.column(name).cast(arrow.float64(), safe=False) for name in columns.inputs]
        return np.stack([feature.to_numpy(zero_copy_only=False) for feature in features], axis=1)
    column = batch.column(columns.inputs[0])
    if columns.kind == "image" and arrow.types.is_struct(column.type):
        # A null struct keeps whatever bytes lie beneath it: flatten() applies the null.
        column = column.flatten()[column.type.get_field_index("bytes")]
    values: list[Any] = column.to_pylist()
    return values
