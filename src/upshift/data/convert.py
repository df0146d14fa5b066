"""Rows as a source hands them over to rows as the store keeps them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from upshift.data.bad_rows import BadRows
from upshift.data.config import DataConfig
from upshift.data.images import BadImageError, Image, convert_image, decode_stream
from upshift.data.source import RawInputs, Source, SourceSplit
from upshift.errors import DataError

Converted: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[Any]]
"""Numbers of good rows (n,) and their stored inputs (n, ...)."""

NUM_PROBED_IMAGES = 64


def stored_shape(source: Source, config: DataConfig) -> tuple[tuple[int, ...], npt.DTypeLike]:
    """Shape and type of one stored input: what most of the first training rows are.

    Raises:
        DataError: None of the first images can be decoded.
    """
    if source.kind == "text":
        return (config.max_text_bytes,), np.uint8
    train = source.splits["train"]
    if source.kind == "tabular":
        return np.asarray(next(iter(train.inputs()))).shape[1:], np.float32
    probed = list(islice((image for images in _decoded(train, config) for image in images), NUM_PROBED_IMAGES))
    shapes = Counter(image.shape for image in probed if not isinstance(image, BadImageError))
    if not shapes:
        errors = [image for image in probed if isinstance(image, BadImageError)]
        raise DataError(
            f"{source.description} must hold images that can be decoded",
            received=f"{errors[0]} (and so on for the first {len(errors)})",
            hint="check the files and data.input_column",
        )
    return shapes.most_common(1)[0][0], np.uint8


def convert_split(
    source: Source, split: SourceSplit, config: DataConfig, shape: tuple[int, ...], bad: BadRows
) -> Iterator[Converted]:
    """Convert a split in order, noting rows that cannot be used.

    Yields:
        The good rows of each stretch; rows noted as bad before are left out too.
    """
    if source.kind == "image":
        return _convert_images(split, config, shape, bad)
    if source.kind == "text":
        return _convert_texts(split, shape[0], bad)
    return _convert_tables(split, shape[0], bad)


def _decoded(split: SourceSplit, config: DataConfig) -> Iterator[list[Image | BadImageError]]:
    stretches = split.inputs()
    first = next(stretches, None)
    if first is None:
        return
    if isinstance(first, np.ndarray):
        for stretch in _chained(first, stretches):
            yield [convert_image(image, channels=config.channels, size=config.image_size) for image in stretch]
    else:
        encoded = cast("Iterator[Sequence[bytes | Path | None]]", _chained(first, stretches))
        yield from decode_stream(encoded, channels=config.channels, size=config.image_size)


def _chained(first: RawInputs, rest: Iterator[RawInputs]) -> Iterator[Any]:
    yield first
    yield from rest


def _convert_images(
    split: SourceSplit, config: DataConfig, shape: tuple[int, ...], bad: BadRows
) -> Iterator[Converted]:
    row = 0
    for images in _decoded(split, config):
        rows, good = [], []
        for image in images:
            if isinstance(image, BadImageError):
                bad.add(row, image.kind, detail=image.detail, hint=image.hint)
            elif image.shape != shape:
                _note_wrong_shape(row, image.shape, shape, bad)
            elif row not in bad:
                rows.append(row)
                good.append(image)
            row += 1
        if good:
            yield np.array(rows), np.stack(good)


def _note_wrong_shape(row: int, received: tuple[int, ...], shape: tuple[int, ...], bad: BadRows) -> None:
    channels, height, width = shape
    if received[1:] != (height, width):
        bad.add(
            row,
            f"size other than {height} × {width} (height × width)",
            detail=f"{received[1]} × {received[2]}",
            hint=f"--set data.image_size={height},{width} resizes all images",
        )
    else:
        bad.add(
            row,
            f"{'colour' if channels == 1 else 'grey'} image among {'grey' if channels == 1 else 'colour'} ones",
            hint=f"--set data.channels={channels} converts all images",
        )


def _convert_texts(split: SourceSplit, max_bytes: int, bad: BadRows) -> Iterator[Converted]:
    row = 0
    for stretch in split.inputs():
        rows, texts = [], []
        for text in cast("Sequence[str | None]", stretch):
            if text is None:
                bad.add(row, "missing text")
            elif row not in bad:
                rows.append(row)
                texts.append(text)
            row += 1
        if rows:
            yield np.array(rows), encode_texts(texts, max_bytes)


def encode_texts(texts: Sequence[str], max_bytes: int) -> npt.NDArray[np.uint8]:
    """Texts as UTF-8 bytes, cut at `max_bytes` between characters, padded with 0.

    Returns:
        uint8 (N, max_bytes).
    """
    result = np.zeros((len(texts), max_bytes), dtype=np.uint8)
    for i, text in enumerate(texts):
        encoded = text.encode("utf-8", errors="replace")
        if len(encoded) > max_bytes:
            encoded = encoded[:max_bytes].decode("utf-8", errors="ignore").encode("utf-8")
        result[i, : len(encoded)] = np.frombuffer(encoded, dtype=np.uint8)
    return result


def _convert_tables(split: SourceSplit, num_features: int, bad: BadRows) -> Iterator[Converted]:
    start = 0
    for stretch in split.inputs():
        table = np.asarray(stretch)
        if table.shape[1:] != (num_features,):
            raise DataError(
                "every split must have the same features",
                received=f"{table.shape[1:]} beside ({num_features},)",
                hint="check data.feature_columns",
            )
        with np.errstate(over="ignore"):
            features = table.astype(np.float32)
        finite = np.isfinite(features)
        for i in np.flatnonzero(~finite.all(axis=1)).tolist():
            bad.add(start + i, "NaN or infinite feature", detail=f"feature {int(np.flatnonzero(~finite[i])[0])}")
        good = np.array([i for i in range(len(features)) if start + i not in bad], dtype=np.int64)
        if len(good):
            yield good + start, features[good]
        start += len(features)
