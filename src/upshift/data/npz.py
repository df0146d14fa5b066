"""NumPy `.npz` archives, read as data only: no pickled objects, no more memory than the file accounts for."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upshift.data.dataset import Kind
from upshift.data.source import RawInputs, Source, SourceSplit, array_split
from upshift.errors import DataError

MAX_EXPANSION = 100
FREE_EXPANSION_BYTES = 64 * 2**20
"""An archive may unpack to `MAX_EXPANSION` times its size, or to this if that is more."""

_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
_INPUT_NAMES = ("x", "inputs", "images", "features", "texts", "data")
_LABEL_NAMES = ("y", "labels", "label", "target", "targets")


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an archive.

    Raises:
        DataError: The file is no archive of arrays, holds Python objects (which are pickles), or
            claims to unpack to far more than its size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            _refuse_bomb(path, sum(member.file_size for member in members))
            return {member.filename[: -len(".npy")]: _read_member(path, archive, member) for member in members}
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise _unreadable(path, str(error)) from error


def _refuse_bomb(path: Path, unpacked: int) -> None:
    size = path.stat().st_size
    if unpacked > max(MAX_EXPANSION * size, FREE_EXPANSION_BYTES):
        raise _unreadable(path, f"{size} bytes that unpack to {unpacked}", hint="save it with numpy.savez, unpacked")


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    if dtype.hasobject:
        raise _unreadable(
            path, f"{member.filename} of Python objects, which are pickled code", hint="save numbers or texts"
        )
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if expected > member.file_size:
        raise _unreadable(path, f"{member.filename} that claims {expected} bytes of {member.file_size}")
    with archive.open(member) as stream:
        array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _unreadable(path: Path, received: str, *, hint: str = "make it with numpy.savez") -> DataError:
    return DataError("an .npz file must hold arrays of numbers or texts", received=f"{path}: {received}", hint=hint)


def npz_source(path: Path, *, name: str, description: str) -> Source:
    """An archive with x_train, y_train and so on as Keras has it, or train_inputs, train_labels …

    Raises:
        DataError: The archive cannot be read, or has no training split.
    """
    arrays = read_npz(path)
    splits: dict[str, SourceSplit] = {}
    kinds: set[Kind] = set()
    for split in _SPLIT_NAMES:
        inputs, labels = _named(arrays, split, _INPUT_NAMES), _named(arrays, split, _LABEL_NAMES)
        if inputs is None and labels is None:
            continue
        if inputs is None or labels is None or len(inputs) != len(labels):
            raise DataError(
                "every split of an .npz file must have as many labels as inputs",
                received=f"{split}: {_count(inputs)} inputs, {_count(labels)} labels",
                hint="name the arrays x_train, y_train, x_test and y_test",
            )
        kind, rows = stored_inputs(inputs, path)
        kinds.add(kind)
        splits[split] = _split(rows, _flat_labels(labels, path))
    if "train" not in splits or len(kinds) != 1:
        raise DataError(
            "an .npz file must have x_train and y_train, and every split the same kind of inputs",
            received=f"{path} with {', '.join(f'{key} {array.shape}' for key, array in arrays.items()) or 'no array'}",
            hint="name the arrays x_train, y_train, x_test and y_test",
        )
    return Source(name=name, description=description, kind=kinds.pop(), splits=splits, label_names=None, files=(path,))


def _named(arrays: dict[str, npt.NDArray[Any]], split: str, names: tuple[str, ...]) -> npt.NDArray[Any] | None:
    for prefix in _SPLIT_NAMES[split]:
        for name in names:
            for key in (f"{name}_{prefix}", f"{prefix}_{name}"):
                if key in arrays and arrays[key].ndim > 0:
                    return arrays[key]
    return None


def _count(array: npt.NDArray[Any] | None) -> str:
    return "no" if array is None else str(len(array))


def _flat_labels(labels: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            "labels must be one number or text a row",
            received=f"{path}: labels of shape {labels.shape}",
            hint="from one-hot rows, save labels.argmax(axis=1)",
        )
    return labels


def _split(rows: npt.NDArray[Any], labels: npt.NDArray[Any]) -> SourceSplit:
    if rows.dtype.kind == "U":

        def texts() -> Iterator[RawInputs]:
            yield rows.tolist()

        return SourceSplit(num_rows=len(rows), labels=lambda: labels, inputs=texts)
    return array_split(rows, labels)


def stored_inputs(inputs: npt.NDArray[Any], path: Path) -> tuple[Kind, npt.NDArray[Any]]:
    """The kind of an array of inputs, and the array as rows of that kind.

    Raises:
        DataError: The array is of no kind that upshift knows.
    """
    if inputs.ndim == 1 and inputs.dtype.kind in "US":
        return "text", inputs.astype(np.str_) if inputs.dtype.kind == "U" else np.char.decode(
            inputs, "utf-8", "replace"
        )
    if inputs.ndim == 2 and inputs.dtype.kind in "iufb":
        return "tabular", inputs
    if inputs.ndim in (3, 4) and inputs.dtype.kind in "iufb":
        return "image", _planes(_as_uint8(inputs, path), path)
    raise DataError(
        "inputs must be images (N, H, W), (N, H, W, C) or (N, C, H, W), features (N, F) or texts (N,)",
        received=f"{path}: {inputs.dtype} of shape {inputs.shape}",
        hint="reshape the array before saving it",
    )


def _planes(images: npt.NDArray[np.uint8], path: Path) -> npt.NDArray[np.uint8]:
    """Any layout to (N, C, H, W). Where both ends could be channels, the first is taken."""
    if images.ndim == 3:
        return images[:, None]
    if images.shape[1] in (1, 3):
        return images
    if images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    raise DataError(
        "images must have 1 (grey) or 3 (colour) channels",
        received=f"{path}: shape {images.shape}",
        hint="save them as (N, H, W), (N, H, W, 3) or (N, 3, H, W)",
    )


def _as_uint8(images: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    """Pixels of other types that are bytes all the same: whole numbers to 255, or bytes divided by 255."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind == "f":
        scaled = images * 255 if images.size and np.nanmax(images) <= 1 else images
        rounded = np.rint(scaled)
        is_exact = bool(np.all(np.abs(scaled - rounded) < 1e-2))
    else:
        rounded, is_exact = images, True
    if not is_exact or (images.size and (rounded.min() < 0 or rounded.max() > 255)):
        raise DataError(
            "pixels must be whole numbers from 0 to 255, or those divided by 255",
            received=f"{path}: {images.dtype} from {np.min(images)} to {np.max(images)}",
            hint="save the images as uint8",
        )
    pixels: npt.NDArray[np.uint8] = rounded.astype(np.uint8)
    return pixels
