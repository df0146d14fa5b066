"""Files given for prediction to rows in the layout that a model was trained on, a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from upshift.core.environment import num_usable_cores
from upshift.data.convert import encode_texts
from upshift.data.images import SUFFIXES, BadImageError, Image, color_conversion, convert_image, decode_and_tell
from upshift.data.npz import read_npz, stored_inputs
from upshift.data.table import Table
from upshift.errors import DataError

IMAGES_PER_PART = 256
TEXTS_PER_PART = 4096

OnNote = Callable[[str], None]
"""Told what the user should know, as that images were resized or converted."""


class InputLayout(Protocol):
    """What a model takes: a `DataInfo` and an artifact's preprocessing both tell it."""

    @property
    def kind(self) -> str: ...

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    @property
    def feature_names(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class DecodedInputs:
    """Rows to predict.

    Attributes:
        inputs: As a `Split` has them: uint8 (N, C, H, W) or (N, L), or float32 (N, F).
        names: What each row is called: its file, or its number in the file.
    """

    inputs: npt.NDArray[Any]
    names: tuple[str, ...]


def read_inputs(path: Path, info: InputLayout, on_note: OnNote) -> Iterator[DecodedInputs]:
    """Read one file or folder as whatever its suffix says: images, a table or lines of text, an archive.

    Yields:
        Parts of what it holds, so that a large folder or file is never in memory at once; an archive as a whole.

    Raises:
        DataError: It is missing, of another kind than the model takes, or cannot be read.
    """
    if not path.exists():
        raise DataError("an input must exist", received=path, hint="check the path")
    if path.suffix == ".npz":
        yield read_npz_inputs(path, info, on_note)
        return
    is_image = path.is_dir() or path.suffix.lower() in SUFFIXES
    if is_image != (info.kind == "image"):
        raise DataError(
            f"the model takes {info.kind} inputs",
            received=path,
            hint="give image files" if info.kind == "image" else "give a .csv, .txt or .npz file",
        )
    if info.kind == "image":
        yield from read_images(find_images(path) if path.is_dir() else [path], info.input_shape, on_note)
        return
    with open(path, encoding="utf-8", errors="replace", newline="") as stream:
        yield from read_lines(stream, info, on_note, name=str(path))


def read_lines(source: TextIO, info: InputLayout, on_note: OnNote, *, name: str) -> Iterator[DecodedInputs]:
    """Read comma-separated numbers or texts, a row or line a sample, by what the model takes.

    Raises:
        DataError: It takes images, or the rows do not fit it.
    """
    if info.kind == "image":
        raise DataError(
            f"{name} must be a table or lines of text", received="a model of images", hint="name the image files"
        )
    if info.kind == "text":
        return read_texts(source, info.input_shape[0], name=name)
    return read_table(source, info, on_note, name=name)


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, in order of their names.

    Raises:
        DataError: There is none.
    """
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise DataError("a folder of inputs must hold images", received=folder, hint=f"known: {' '.join(SUFFIXES)}")
    return found


def read_images(paths: Sequence[Path], input_shape: tuple[int, ...], on_note: OnNote) -> Iterator[DecodedInputs]:
    """Decode images to a model's channels and size, on all usable cores.

    Args:
        paths: Image files.
        input_shape: (C, H, W) of the model.
        on_note: Told at the end what was done to how many images.

    Raises:
        DataError: A file is missing or no image; it is named.
    """
    channels, height, width = input_shape
    changed = _Changes((height, width))

    def decoded(path: Path) -> tuple[Image, tuple[int, ...], tuple[str, ...]]:
        image, conversions = _decode_input(path, channels)
        return convert_image(image, size=(height, width)), image.shape[1:], conversions

    with ThreadPoolExecutor(num_usable_cores(), thread_name_prefix="decode") as pool:
        for start in range(0, len(paths), IMAGES_PER_PART):
            part = paths[start : start + IMAGES_PER_PART]
            images = np.empty((len(part), channels, height, width), dtype=np.uint8)
            for row, (image, size, conversions) in enumerate(pool.map(decoded, part)):
                images[row] = image
                changed.add(part[row].name, size, conversions)
            yield DecodedInputs(images, tuple(map(str, part)))
    changed.tell(on_note)


def _decode_input(path: Path, channels: int) -> tuple[Image, tuple[str, ...]]:
    if not path.is_file():
        raise DataError("an input must exist", received=path, hint="check the path")
    try:
        return decode_and_tell(path, channels=channels)
    except BadImageError as error:
        raise DataError(
            "an input must be an image that can be decoded",
            received=f"{path}: {error}",
            hint=error.hint or "leave it out, or save it again as PNG or JPEG",
        ) from error


class _Changes:
    """What had to be changed in images to fit a model of images of some (height, width)."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._resized: list[str] = []
        self._converted: dict[str, list[str]] = {}

    def add(self, name: str, size: tuple[int, ...], conversions: Sequence[str]) -> None:
        """Note an image, its size before and what was done to its colours."""
        if size != self._size:
            self._resized.append(f"{name} of {size[0]} × {size[1]}")
        for conversion in conversions:
            self._converted.setdefault(conversion, []).append(name)

    def tell(self, on_note: OnNote) -> None:
        """A line for each kind of change."""
        height, width = self._size
        for how, names in self._converted.items():
            on_note(f"converted {_these(names)} {how}")
        if self._resized:
            on_note(f"resized {_these(self._resized)} to the model's {height} × {width} (height × width)")


def _these(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} images, the first {names[0]},"


def read_table(source: TextIO, info: InputLayout, on_note: OnNote, *, name: str) -> Iterator[DecodedInputs]:
    """Read comma-separated numbers, a row a sample; a header tells which column is which feature.

    Raises:
        DataError: There is no row; the header lacks a feature or names another; or a row has another number of
            values, or one that is no finite number.
    """
    table = Table(source, info.input_shape[0], feature_names=info.feature_names, name=name)
    num_rows = 0
    for part in table.parts():
        yield DecodedInputs(part, _row_names(name, num_rows, len(part)))
        num_rows += len(part)
    for note in table.notes:
        on_note(note)


def _row_names(name: str, first: int, count: int) -> tuple[str, ...]:
    return tuple(f"{name}:{row}" for row in range(first, first + count))


def read_texts(source: Iterable[str], max_bytes: int, *, name: str) -> Iterator[DecodedInputs]:
    """Read texts, a line a sample, to uint8 (N, max_bytes); empty lines are skipped.

    Raises:
        DataError: There is no text.
    """
    texts = (line.rstrip("\r\n") for line in source if line.strip())
    num_rows = 0
    while part := list(islice(texts, TEXTS_PER_PART)):
        yield DecodedInputs(encode_texts(part, max_bytes), _row_names(name, num_rows, len(part)))
        num_rows += len(part)
    if not num_rows:
        raise DataError("texts must be given, one a line", received=f"{name} without any", hint="check the file")


def read_npz_inputs(path: Path, info: InputLayout, on_note: OnNote) -> DecodedInputs:
    """Read the inputs of an archive: its only array, or the one called inputs, x, x_test, images or the like.

    Raises:
        DataError: The archive cannot be read, or its inputs do not fit the model.
    """
    arrays = read_npz(path)
    wanted = [key for key in ("inputs", "x", "x_test", "images", "features", "texts", "arr_0") if key in arrays]
    key = wanted[0] if wanted else next(iter(arrays), None)
    if key is None or (not wanted and len(arrays) > 1):
        raise DataError(
            "an .npz file of inputs must have an array called inputs",
            received=f"{path} with {', '.join(arrays) or 'none'}",
            hint="numpy.savez(path, inputs=array)",
        )
    kind, rows = stored_inputs(arrays[key], path)
    if kind != info.kind or len(rows) == 0:
        raise DataError(
            f"the model takes {info.kind} inputs",
            received=f"{path}: {key} of shape {arrays[key].shape}",
            hint=f"one sample has shape {info.input_shape}",
        )
    names = _row_names(str(path), 0, len(rows))
    if kind == "text":
        return DecodedInputs(encode_texts(rows.tolist(), info.input_shape[0]), names)
    if kind == "image":
        channels, height, width = info.input_shape
        changed = _Changes((height, width))
        changed.add(path.name, rows.shape[2:], [] if rows.shape[1] == channels else [color_conversion(channels)])
        images = [convert_image(image, channels=channels, size=(height, width)) for image in rows]
        changed.tell(on_note)
        return DecodedInputs(np.stack(images), names)
    features = _finite_features(rows, path, info.input_shape[0])
    return DecodedInputs(features, names)


def _finite_features(rows: npt.NDArray[Any], path: Path, num_features: int) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        features = rows.astype(np.float32)
    if features.shape[1] != num_features:
        raise DataError(
            f"a row must have the model's {num_features} features",
            received=f"{path}: {features.shape[1]}",
            hint="leave out the label and other columns",
        )
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise DataError("a feature must be a finite number", received=f"{path} row {bad[0]}", hint="fill it in")
    return features
