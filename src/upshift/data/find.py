"""Finding a dataset by its name or path."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from upshift.data.config import DataConfig
from upshift.data.digits import digits_source
from upshift.data.folder import image_folder_source, is_image_folder
from upshift.data.hub import fetch_from_hub
from upshift.data.idx import idx_files, idx_source
from upshift.data.layout import refuse_layout
from upshift.data.npz import npz_source
from upshift.data.packing import OnProgress
from upshift.data.parquet import parquet_files, parquet_source
from upshift.data.source import Source
from upshift.errors import DataError, UnknownNameError

HUB_NAMES = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10", "sst2": "SetFit/sst2"}
"""Named datasets and their ids on the Hugging Face hub."""

HUB_PREFIX = "hub:"


def find_source(
    config: DataConfig, *, data_dir: Path | None, cache_dir: Path, on_progress: OnProgress | None
) -> Source:
    """Find what `config.source` names.

    In this order: "digits"; a folder or file of that name in `data_dir`, `UPSHIFT_DATA_DIR` or
    `<cache_dir>/datasets`; a path that exists; "hub:owner/name"; a known name on the hub.

    A path may begin with ~, which a shell leaves as it is after "data.source=".

    Raises:
        UnknownNameError: There is nothing of that name.
        DataError: It is there and cannot be read, or cannot be fetched, or `data_dir` is no folder.
    """
    name = config.source
    _require_folder(data_dir)
    if name == "digits":
        return digits_source()
    if (named := _named_place(name, data_dir, cache_dir)) is not None:
        return _local_source(named, config, name=name)
    if (path := _path_of(name)) is not None:
        return _local_source(path, config, name=path.resolve().name)
    if name.startswith(HUB_PREFIX):
        return _hub_source(name.removeprefix(HUB_PREFIX), config, cache_dir, on_progress)
    if name in HUB_NAMES:
        folder = fetch_from_hub(HUB_NAMES[name], cache_dir / "datasets" / name, on_progress=on_progress)
        return _local_source(folder, config, name=name)
    if not _is_bare(name) or Path(name).suffix:
        raise DataError("data.source must exist", received=name, hint="check the path")
    raise UnknownNameError("data.source", name, _known_names(data_dir, cache_dir))


def lasting_name(name: str, *, data_dir: Path | None, cache_dir: Path) -> str:
    """What a record says of a source, so that it is found from any folder: the whole path where it is a path."""
    if name == "digits" or _named_place(name, data_dir, cache_dir) is not None:
        return name
    path = _path_of(name)
    return name if path is None else str(path.resolve())


def _is_bare(name: str) -> bool:
    return len(Path(name).parts) == 1 and not name.startswith((".", "~")) and ":" not in name


def _named_place(name: str, data_dir: Path | None, cache_dir: Path) -> Path | None:
    """Where a named dataset lies; None if it is in none of the folders for these."""
    folders = _search_folders(data_dir, cache_dir) if _is_bare(name) else []
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def _path_of(name: str) -> Path | None:
    """The path that a source is; None if there is nothing."""
    # A folder that happens to be called as a known dataset is meant only if its path is written as one: ./mnist
    if _is_bare(name) and name in HUB_NAMES:
        return None
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~somebody who is not there
        return None
    return path if path.exists() else None


def _require_folder(data_dir: Path | None) -> None:
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(
            "the folder of named datasets must exist",
            received=f"--data-dir {data_dir}",
            hint="check the path; without it, UPSHIFT_DATA_DIR is looked into",
        )


def _search_folders(data_dir: Path | None, cache_dir: Path) -> list[Path]:
    named = os.environ.get("UPSHIFT_DATA_DIR")
    return [folder for folder in (data_dir, Path(named) if named else None, cache_dir / "datasets") if folder]


def _known_names(data_dir: Path | None, cache_dir: Path) -> set[str]:
    found = {
        entry.name
        for folder in _search_folders(data_dir, cache_dir)
        if folder.is_dir()
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and (entry.is_dir() or entry.suffix in (".npz", ".parquet"))
    }
    return {"digits", *HUB_NAMES, *found}


def _hub_source(name: str, config: DataConfig, cache_dir: Path, on_progress: OnProgress | None) -> Source:
    owner, _, rest = name.partition("/")
    repository, _, subset = rest.partition("/")
    if not owner or not repository or ".." in name:
        raise DataError(
            "a hub dataset must be named by its owner and its name",
            received=repr(HUB_PREFIX + name),
            hint="for example hub:ylecun/mnist",
        )
    folder = cache_dir / "datasets" / "--".join(filter(None, [owner, repository, subset.replace("/", "--")]))
    fetched = fetch_from_hub(f"{owner}/{repository}", folder, subset=subset or None, on_progress=on_progress)
    return _local_source(fetched, config, name=folder.name)


def _local_source(path: Path, config: DataConfig, *, name: str) -> Source:
    """What a path holds, told by its files; called as the user calls it."""
    return replace(_source_of_files(path, config, name=name), title=name)


def _source_of_files(path: Path, config: DataConfig, *, name: str) -> Source:
    description = name if str(path) == name else f"{name} ({path})"
    name = re.sub(r"[^\w.-]+", "_", name).strip(".") or "data"
    try:
        if path.is_file():
            if path.suffix == ".npz":
                return npz_source(path, name=name, description=description)
            if path.suffix == ".parquet":
                return parquet_source(path, config, name=name, description=description)
        elif parquet_files(path):
            return parquet_source(path, config, name=name, description=description)
        elif idx_files(path):
            return idx_source(path, name=name, description=description)
        elif is_image_folder(path):
            return image_folder_source(path, name=name, description=description)
        elif len(archives := sorted(path.glob("*.npz"))) == 1:
            return npz_source(archives[0], name=name, description=description)
    except PermissionError as error:
        raise DataError("a dataset must be readable", received=str(error), hint="check its permissions") from error
    raise refuse_layout(path)
