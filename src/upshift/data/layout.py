"""What a path holds that is no dataset: the refusal says what was seen there, and what to make of it."""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice
from pathlib import Path

from upshift.data.images import SUFFIXES
from upshift.errors import DataError

RULE = (
    "a dataset must be an image folder train/<class>/*.png, parquet files, MNIST IDX files, or an .npz file with "
    "x_train and y_train"
)
TABLES = (".csv", ".tsv")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z")
PICKLES = (".pt", ".pth", ".pkl", ".pickle")
MAX_ENTRIES = 10_000
MAX_NAMED = 4


def refuse_layout(path: Path) -> DataError:
    """The error for a file or folder in none of the layouts."""
    return _of_folder(path) if path.is_dir() else _of_file(path)


def without_classes(folder: Path, images: list[Path], *, classes: Path) -> DataError:
    """The error for images that lie in no folder of a class.

    Args:
        folder: Where they lie.
        images: At least one.
        classes: Where the folders of the classes should be.
    """
    return DataError(
        "every image must lie in a folder that is named for its class",
        received=f"{folder} with {counted_images(images)} in it and no folder of a class",
        hint=f"move them to {classes}/<class>/, a folder for each class",
    )


def counted_images(images: list[Path]) -> str:
    """Images by their number and the first one's name."""
    return f"{len(images)} images ({images[0].name}, …)" if len(images) > 1 else f"1 image ({images[0].name})"


def _of_file(path: Path) -> DataError:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return DataError(RULE, received=f"{path}, a table of text", hint=_convert(path))
    if suffix in SUFFIXES:
        what, hint = "one image", "name the folder that has a folder of images for each class"
    elif "ubyte" in path.name:
        what, hint = "one IDX file", f"name its folder, {path.parent}"
    elif suffix in ARCHIVES:
        what, hint = "an archive", "unpack it, and name the folder"
    elif suffix in PICKLES:
        what = "a pickle, which upshift does not open"
        hint = "save arrays with numpy.savez(path, x_train=…, y_train=…), or hand a torch dataset over in Python"
    else:
        what = f"a file of type {suffix}" if suffix else "a file without a suffix"
        hint = "convert it to one of these; docs/data.md shows the layouts"
    return DataError(RULE, received=f"{path}, {what}", hint=hint)


def _convert(table: Path) -> str:
    """How a table becomes parquet with what upshift has installed."""
    parquet = table.with_suffix(".parquet").name
    options = ', parse_options=c.ParseOptions(delimiter="\\t")' if table.suffix.lower() == ".tsv" else ""
    return (
        "convert it, in its folder, with Python: import pyarrow.csv as c, pyarrow.parquet as p; "
        f'p.write_table(c.read_csv("{table.name}"{options}), "{parquet}"); then name {parquet}'
    )


def _of_folder(path: Path) -> DataError:
    shown = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files, folders = [entry for entry in shown if not entry.is_dir()], [entry for entry in shown if entry.is_dir()]
    if images := [file for file in files if file.suffix.lower() in SUFFIXES]:
        return without_classes(path, images, classes=path / "train")
    if not shown:
        return DataError(
            RULE, received=f"{path}, an empty folder", hint="check the path, or whether a download was finished"
        )
    if image := _image_below(path):
        return _nested(path, image)
    archives = [file for file in files if file.suffix == ".npz"]
    tables = [file for file in files if file.suffix.lower() in TABLES]
    if archives:
        hint = f"name one of the archives, as {archives[0]}"
    elif tables:
        hint = _convert(tables[0])
    elif not files and not any(any(folder.iterdir()) for folder in folders):
        return DataError(
            RULE,
            received=f"{path} with {_counted(files, folders)}, empty",
            hint="put the images of each class into its folder, or check whether a download was finished",
        )
    else:
        hint = "name another folder; docs/data.md shows the layouts"
    return DataError(RULE, received=f"{path} with {_counted(files, folders)}", hint=hint)


def _nested(path: Path, image: Path) -> DataError:
    """Images deeper down than train/<class>/."""
    of_classes = image.parent.parent
    named = of_classes.parent if of_classes.name == "train" else of_classes
    return DataError(
        "an image folder must have the folders of its classes, or train/ with them, directly in it",
        received=f"{path} with images deeper in it, as {image.relative_to(path)}",
        hint=f"name {named}, if {image.parent.name} is a class",
    )


def _image_below(path: Path) -> Path | None:
    """An image among the first entries below a folder."""
    entries = (Path(folder) / name for folder, _, names in os.walk(path) for name in sorted(names))
    return next((entry for entry in islice(entries, MAX_ENTRIES) if entry.suffix.lower() in SUFFIXES), None)


def _counted(files: list[Path], folders: list[Path]) -> str:
    """What is in a folder ("12 files .txt, 1 file .md, 2 folders (a, b)")."""
    kinds = Counter(file.suffix.lower() or "without a suffix" for file in files).most_common()
    parts = [f"{count} {'files' if count > 1 else 'file'} {kind}" for kind, count in kinds[:MAX_NAMED]]
    if len(kinds) > MAX_NAMED:
        parts.append(f"{sum(count for _, count in kinds[MAX_NAMED:])} other files")
    if folders:
        names = ", ".join(folder.name for folder in folders[:MAX_NAMED]) + (", …" if len(folders) > MAX_NAMED else "")
        parts.append(f"{len(folders)} {'folders' if len(folders) > 1 else 'folder'} ({names})")
    return ", ".join(parts)
