"""Image folders: `train/<class>/*.jpg`, with or without `test/` and `validation/`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from upshift.data.images import SUFFIXES
from upshift.data.layout import counted_images, without_classes
from upshift.data.parquet import split_of_name
from upshift.data.source import RawInputs, Source, SourceSplit
from upshift.errors import DataError

STRETCH_ROWS = 1024
SPLIT_WORDS = frozenset(("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"))


def is_image_folder(path: Path) -> bool:
    """Whether a folder has classes of images below it, or below a folder for each split."""
    return any(_classes(folder) for folder in _split_folders(path).values())


def image_folder_source(path: Path, *, name: str, description: str) -> Source:
    """A folder with a folder for each split, or only with one for each class, which is then all for training.

    Raises:
        DataError: There is no training split, or a split has images outside of its classes.
    """
    folders = _split_folders(path)
    _refuse_splits_without_classes(path, folders)
    if "train" not in folders:
        raise DataError(
            f"{description} must have a folder train/<class>/",
            received=", ".join(sorted(folder.name for folder in folders.values())),
            hint="name the folder of the training images train",
        )
    splits, files = {}, []
    for split, folder in folders.items():
        images = [file for of_class in _classes(folder) for file in _images(of_class)]
        _refuse_loose_images(folder)
        files += images
        splits[split] = _split(images, folder)
    return Source(
        name=name,
        description=description,
        kind="image",
        splits=splits,
        label_names=None,
        files=tuple(files),
        notes=_unused_notes(path, folders),
    )


def _refuse_splits_without_classes(path: Path, folders: dict[str, Path]) -> None:
    """Refuse train/ and test/ full of images: they are no two classes."""
    if folders != {"train": path}:
        return
    classes = _classes(path)
    if any(folder.name.lower() in ("train", "training") for folder in classes) and all(
        folder.name.lower() in SPLIT_WORDS for folder in classes
    ):
        raise without_classes(classes[0], _images(classes[0]), classes=classes[0])


def _unused_notes(path: Path, folders: dict[str, Path]) -> tuple[str, ...]:
    """Notes on folders named as a split whose images lie in no class, as the test images of a competition."""
    if folders == {"train": path}:
        return ()
    named = [folder for folder in _subfolders(path) if folder.name.lower() in SPLIT_WORDS and not _classes(folder)]
    return tuple(
        f"{folder.name}/ with {counted_images(images)} is not used, as it has no folder of a class"
        for folder in named
        if (images := _images(folder))
    )


def _split_folders(path: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _subfolders(path):
        split = split_of_name(folder.name)
        # Folders of classes may be called "test": only one that has classes below it is a split.
        if split is not None and _classes(folder):
            found.setdefault(split, folder)
    return found or {"train": path}


def _subfolders(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _classes(folder: Path) -> list[Path]:
    return [of_class for of_class in _subfolders(folder) if _has_images(of_class)]


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _images(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if _is_image(entry.name))


def _refuse_loose_images(folder: Path) -> None:
    loose = _images(folder)
    if loose:
        raise DataError(
            "every image must lie in a folder that is named for its class",
            received=f"{folder} with {counted_images(loose)} beside the folders of its classes",
            hint=f"move them to {folder}/<class>/",
        )


def _split(images: list[Path], folder: Path) -> SourceSplit:
    def inputs() -> Iterator[RawInputs]:
        for start in range(0, len(images), STRETCH_ROWS):
            yield images[start : start + STRETCH_ROWS]

    return SourceSplit(
        num_rows=len(images),
        labels=lambda: [image.parent.name for image in images],
        inputs=inputs,
        row_name=lambda row: str(images[row].relative_to(folder.parent)),
    )
