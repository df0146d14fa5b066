"""Fetching the parquet files of a dataset from the Hugging Face hub, once."""

from __future__ import annotations

import inspect
import os
import time
from pathlib import Path
from typing import Any

from upshift.core.files import storage_errors
from upshift.data.packing import OnProgress
from upshift.data.parquet import split_of_name
from upshift.data.store import packing_lock
from upshift.errors import DataError

CONVERTED_REVISION = "refs/convert/parquet"
"""The branch on which the hub keeps a parquet copy of datasets in other formats."""

PROGRESS_SECONDS = 0.1
CONNECT_SECONDS = 20.0


def fetch_from_hub(
    repo_id: str, folder: Path, *, subset: str | None = None, on_progress: OnProgress | None = None
) -> Path:
    """Fetch the parquet files of a hub dataset into `folder`, unless it is there.

    An interrupted download goes on where it stopped; `folder` appears when all files are whole. Another
    process that wants the same waits, and then finds it there.

    Args:
        repo_id: "owner/name".
        folder: Where the files are put, as they lie on the hub.
        subset: Which folder of the repository, where it has several.
        on_progress: Called with a description, bytes done and bytes in all.

    Raises:
        DataError: The hub cannot be reached, or has no such dataset or no parquet files of it.
        StorageError: The folder cannot be written.
    """
    if folder.is_dir():
        return folder
    with packing_lock(folder):
        if not folder.is_dir():
            _fetch(repo_id, folder, subset, on_progress)
    return folder


def _fetch(repo_id: str, folder: Path, subset: str | None, on_progress: OnProgress | None) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    partial = folder.with_name(f".{folder.name}.partial")
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with storage_errors(folder):
            partial.mkdir(parents=True, exist_ok=True)
            revision, files = _parquet_files(huggingface_hub.HfApi(), repo_id, subset)
            report = _Report(f"downloading {repo_id}", sum(files.values()), on_progress)
            for name, size in files.items():
                _download(repo_id, name, revision, partial, report)
                report.finish_file(size)
            os.replace(partial, folder)
    except (HfHubHTTPError, HFValidationError, ConnectionError, TimeoutError, *_http_errors()) as error:
        raise _unreachable(repo_id, folder.name, error) from error
    except FileNotFoundError as error:
        # The hub's client reports "not cached and not reachable" as a missing file.
        raise _unreachable(repo_id, folder.name, error) from error
    finally:
        if had_bars:
            enable_progress_bars()


def _http_errors() -> tuple[type[Exception], ...]:
    """What the hub's HTTP client raises when it has no connection; which client that is depends on its version."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(
        base
        for base in HfHubHTTPError.__mro__
        if issubclass(base, Exception) and base not in (Exception, OSError, HfHubHTTPError)
    )


def _unreachable(repo_id: str, name: str, error: Exception) -> DataError:
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return DataError(
        "a dataset that is not on this machine must be fetched from the Hugging Face hub",
        received=f"{repo_id}: {reason}",
        hint=f"connect to the internet, or name a folder that holds {name}/*.parquet with --data-dir or "
        "UPSHIFT_DATA_DIR",
    )


def _parquet_files(api: Any, repo_id: str, subset: str | None) -> tuple[str | None, dict[str, int]]:
    """The revision that has parquet files, and their sizes in bytes."""
    from huggingface_hub.errors import RevisionNotFoundError

    for revision in (None, CONVERTED_REVISION):
        try:
            # One request, tried once: listing the tree tries again for 20 s before it says that there is no connection.
            found = api.dataset_info(repo_id, revision=revision, files_metadata=True, timeout=CONNECT_SECONDS)
            sizes = {file.rfilename: int(file.size or 0) for file in found.siblings or ()}
        except RevisionNotFoundError:
            continue
        files = {
            name: size for name, size in sorted(sizes.items()) if name.endswith(".parquet") and split_of_name(name)
        }
        if files:
            return revision, _of_subset(repo_id, files, subset)
    raise DataError(
        "a hub dataset must have parquet files of its splits",
        received=f"{repo_id} without any",
        hint="convert it with the package datasets, and name its folder",
    )


def _of_subset(repo_id: str, files: dict[str, int], subset: str | None) -> dict[str, int]:
    subsets = sorted({name.split("/")[0] if "/" in name else "" for name in files} - {"data"})
    if subset is None and len(subsets) > 1 and "" not in subsets:
        raise DataError(
            f"one subset of {repo_id} must be chosen",
            received=f"subsets {', '.join(subsets)}",
            hint=f"--set data.source=hub:{repo_id}/{subsets[0]}",
        )
    if subset is None:
        return files
    chosen = {name: size for name, size in files.items() if name.startswith(f"{subset}/")}
    if not chosen:
        raise DataError(
            f"a subset of {repo_id} must be one that it has",
            received=repr(subset),
            hint=f"its subsets: {', '.join(subsets) or 'none'}",
        )
    return chosen


class _Report:
    """Bytes done over all files, told at most ten times a second and after each file."""

    def __init__(self, description: str, total: int, on_progress: OnProgress | None) -> None:
        self._description, self._total, self._call = description, total, on_progress
        self._finished = self._of_file = 0
        self._last = 0.0

    def add(self, num_bytes: float) -> None:
        self._of_file += int(num_bytes)
        if time.monotonic() - self._last >= PROGRESS_SECONDS:
            self._tell()

    def finish_file(self, size: int) -> None:
        self._finished, self._of_file = self._finished + size, 0
        self._tell()

    def _tell(self) -> None:
        self._last = time.monotonic()
        if self._call is not None:
            self._call(self._description, min(self._finished + self._of_file, self._total), self._total)


def _download(repo_id: str, name: str, revision: str | None, folder: Path, report: _Report) -> None:
    from huggingface_hub import hf_hub_download

    options: dict[str, Any] = {}
    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:
        from huggingface_hub.utils import tqdm

        class Bar(tqdm):  # type: ignore[misc]
            """Draws nothing; passes the bytes on."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n: float | None = 1) -> None:
                report.add(n or 0)

        options["tqdm_class"] = Bar
    hf_hub_download(repo_id, name, repo_type="dataset", revision=revision, local_dir=folder, **options)
