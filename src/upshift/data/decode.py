"""Files given for prediction to rows in the layout that a model was trained on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from upshift.data.convert import encode_texts
from upshift.data.images import SUFFIXES, BadImageError, color_conversion, convert_image, decode_and_tell
from upshift.data.npz import read_npz, stored_inputs
from upshift.errors import DataError

MAX_FEATURE = float(np.finfo(np.float32).max)


class InputLayout(Protocol):
    """What a model takes: a `DataInfo` and an artifact's preprocessing both tell it."""

    @property
    def kind(self) -> str: ...

    @property
    def input_shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class DecodedInputs:
    """Rows to predict.

    Attributes:
        inputs: As a `Split` has them: uint8 (N, C, H, W) or (N, L), or float32 (N, F).
        names: What each row is called: its file, or its number in the file.
        notes: What the user should know, as that images were resized or converted.
    """

    inputs: npt.NDArray[Any]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_inputs(path: Path, info: InputLayout) -> DecodedInputs:
    """Read one file or folder as whatever its suffix says: images, a table or lines of text, an archive.

    Raises:
        DataError: It is missing, of another kind than the model takes, or cannot be read.
    """
    if not path.exists():
        raise DataError("an input must exist", received=path, hint="check the path")
    if path.suffix == ".npz":
        return read_npz_inputs(path, info)
    is_image = path.is_dir() or path.suffix.lower() in SUFFIXES
    if is_image != (info.kind == "image"):
        raise DataError(
            f"the model takes {info.kind} inputs",
            received=path,
            hint="give image files" if info.kind == "image" else "give a .csv, .txt or .npz file",
        )
    if info.kind == "image":
        return read_images(find_images(path) if path.is_dir() else [path], info.input_shape)
    with open(path, encoding="utf-8", errors="replace", newline="") as stream:
        if info.kind == "text":
            return read_texts(stream, info.input_shape[0], name=str(path))
        return read_table(stream, info.input_shape[0], name=str(path))


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, in order of their names.

    Raises:
        DataError: There is none.
    """
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise DataError("a folder of inputs must hold images", received=folder, hint=f"known: {' '.join(SUFFIXES)}")
    return found


def read_images(paths: Sequence[Path], input_shape: tuple[int, ...]) -> DecodedInputs:
    """Decode images to a model's channels and size.

    Args:
        paths: Image files.
        input_shape: (C, H, W) of the model.

    Raises:
        DataError: A file is missing or no image; it is named.
    """
    channels, height, width = input_shape
    images = np.empty((len(paths), channels, height, width), dtype=np.uint8)
    changed = _Changes((height, width))
    for row, path in enumerate(paths):
        if not path.is_file():
            raise DataError("an input must exist", received=path, hint="check the path")
        try:
            image, conversions = decode_and_tell(path, channels=channels)
        except BadImageError as error:
            raise DataError(
                "an input must be an image that can be decoded",
                received=f"{path}: {error}",
                hint=error.hint or "leave it out, or save it again as PNG or JPEG",
            ) from error
        changed.add(path.name, image.shape[1:], conversions)
        images[row] = convert_image(image, size=(height, width))
    return DecodedInputs(images, tuple(map(str, paths)), changed.notes())


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

    def notes(self) -> tuple[str, ...]:
        """A line for each kind of change."""
        height, width = self._size
        notes = [f"converted {_these(names)} {how}" for how, names in self._converted.items()]
        if self._resized:
            notes.append(f"resized {_these(self._resized)} to the model's {height} × {width} (height × width)")
        return tuple(notes)


def _these(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} images, the first {names[0]},"


def read_table(source: Path | TextIO, num_features: int, *, name: str = "input") -> DecodedInputs:
    """Read comma-separated numbers, a row a sample; a first row of names is skipped.

    Raises:
        DataError: There is no row, or a row has another number of values, or one that is no finite number.
    """
    if isinstance(source, Path):
        with open(source, encoding="utf-8", errors="replace", newline="") as stream:
            return read_table(stream, num_features, name=str(source))
    rows: list[list[float]] = []
    try:
        for line, fields in enumerate(csv.reader(source), start=1):
            if not fields or (not rows and line == 1 and not any(_is_number(field) for field in fields)):
                continue
            rows.append(_numbers(fields, num_features, f"{name} line {line}"))
    except csv.Error as error:
        raise DataError(
            "a table must be comma-separated values", received=f"{name}: {error}", hint="save it as CSV"
        ) from error
    if not rows:
        raise DataError("a table must have rows", received=f"{name} without any", hint="give one row a sample")
    return DecodedInputs(np.array(rows, dtype=np.float32), tuple(f"{name}:{row}" for row in range(len(rows))))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _numbers(fields: list[str], num_features: int, where: str) -> list[float]:
    if len(fields) != num_features:
        raise DataError(
            f"a row must have the model's {num_features} features",
            received=f"{where} with {len(fields)} values",
            hint="leave out the label and other columns",
        )
    for column, field in enumerate(fields, start=1):
        if not _is_number(field) or not abs(float(field)) <= MAX_FEATURE:
            raise DataError(
                "a feature must be a finite number", received=f"{where} column {column}: {field!r}", hint="fill it in"
            )
    return [float(field) for field in fields]


def read_texts(source: Path | Iterable[str], max_bytes: int, *, name: str = "input") -> DecodedInputs:
    """Read texts, a line a sample, to uint8 (N, max_bytes); empty lines are skipped.

    Raises:
        DataError: There is no text.
    """
    if isinstance(source, Path):
        return read_texts(
            io.StringIO(source.read_text(encoding="utf-8", errors="replace")), max_bytes, name=str(source)
        )
    texts = [line.rstrip("\r\n") for line in source if line.strip()]
    if not texts:
        raise DataError("texts must be given, one a line", received=f"{name} without any", hint="check the file")
    return DecodedInputs(encode_texts(texts, max_bytes), tuple(f"{name}:{row}" for row in range(len(texts))))


def read_npz_inputs(path: Path, info: InputLayout) -> DecodedInputs:
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
    names = tuple(f"{path}:{row}" for row in range(len(rows)))
    if kind == "text":
        return DecodedInputs(encode_texts(rows.tolist(), info.input_shape[0]), names)
    if kind == "image":
        channels, height, width = info.input_shape
        changed = _Changes((height, width))
        changed.add(path.name, rows.shape[2:], [] if rows.shape[1] == channels else [color_conversion(channels)])
        images = [convert_image(image, channels=channels, size=(height, width)) for image in rows]
        return DecodedInputs(np.stack(images), names, changed.notes())
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
