"""Where a run's records go: a new folder, a named one, or one to go on with."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from upshift.core.files import refuse_unwritable, storage_errors
from upshift.core.records import LATEST, RUNS, RunFolder, run_folder_name
from upshift.errors import BadInputError, StorageError, TrainingInterrupted

LOCK = ".lock"


def refuse_folder(out: Path | None, *, resume: bool = False, can_resume: bool = True) -> None:
    """Refuse a folder at once that would be refused after work was done.

    Args:
        out: The folder; a new one in `runs` when None.
        resume: What lies in it is gone on with.
        can_resume: What is written to it could be resumed.

    Raises:
        BadInputError: It holds something else, its name is no text, or there is nothing to resume.
        StorageError: It, or `runs`, cannot be written.
    """
    if resume and (out is None or not RunFolder(out).recipe.is_file()):
        raise BadInputError(
            "--resume needs the folder of a run that was begun",
            received="no --out" if out is None else out,
            hint="name it with --out, as it was when the run began",
        )
    _require_text((out or RUNS).resolve())
    if out is not None and not resume:
        _require_empty(out, can_resume=can_resume)
    refuse_unwritable((out or RUNS) / LOCK, named=out or RUNS)


@contextlib.contextmanager
def open_run_folder(name: str, out: Path | None, *, resume: bool) -> Iterator[RunFolder]:
    """The folder of a run, made if needed and held for this process alone.

    A run that ends before its training has begun leaves nothing behind. One that ends later, by a full disk or a
    second Ctrl-C, can be resumed, and its error says so.

    Args:
        name: The recipe's name, for `runs/<name>-<time>`.
        out: The folder to use instead; new or empty unless `resume`.
        resume: Go on with what lies in `out`.

    Raises:
        BadInputError: `out` holds something else, another process writes to it, or there is nothing to resume.
        StorageError: The folder cannot be written.
        TrainingInterrupted: By a Ctrl-C that did not wait for a checkpoint.
    """
    refuse_folder(out, resume=resume)
    is_new = out is None or not out.exists()
    path = _new_folder(name) if out is None else out
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        with hold_run_folder(RunFolder(path.resolve())) as folder:
            if not resume:
                _require_empty(path)
            with _nothing_or_resumable(folder, resume=resume):
                yield folder
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                path.rmdir()  # only if nothing is left in it
        raise


@contextlib.contextmanager
def _nothing_or_resumable(folder: RunFolder, *, resume: bool) -> Iterator[None]:
    """On an error, empty a folder in which training has not begun; of one in which it has, say how to go on."""
    try:
        yield
    except BaseException as error:
        go_on = f"--resume --out {folder.path}"
        if not resume and not folder.metrics.exists():
            for path in folder.path.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif isinstance(error, StorageError):
            hint = f"free some space, and go on with {go_on}"
            raise StorageError(error.rule, received=error.received, hint=hint) from error
        elif isinstance(error, KeyboardInterrupt):
            raise TrainingInterrupted(
                f"interrupted; what was saved lies in {folder.path}: go on with {go_on}"
            ) from None
        raise


@contextlib.contextmanager
def hold_run_folder(folder: RunFolder) -> Iterator[RunFolder]:
    """Hold a run folder for this process, and remove what a killed process left half-written in it.

    Raises:
        BadInputError: Another process writes to it.
        StorageError: The folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        with storage_errors(folder.path):
            lock = held.enter_context(open(folder.path / LOCK, "w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInputError(
                "a run folder has one writer at a time",
                received=f"{folder.path}, which another process writes to",
                hint="wait for it to end, or name another --out",
            ) from error
        with storage_errors(folder.path):
            for parent in (folder.path, folder.checkpoints):
                for leftover in parent.glob(".*.tmp"):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                for replaced in parent.glob(".*.old"):
                    _restore_or_remove(replaced)
        yield folder


def _restore_or_remove(replaced: Path) -> None:
    """A folder that was being replaced when the process was killed: it is back if its successor never came."""
    successor = replaced.with_name(replaced.name.removeprefix(".").rsplit(".", 2)[0])
    if successor.exists():
        shutil.rmtree(replaced)
    else:
        replaced.rename(successor)


def _require_text(path: Path) -> None:
    """Refuse a path whose bytes are no text: records and other libraries' files hold paths as text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise BadInputError(
            "the path of a run folder must be text in UTF-8",
            received=os.fsencode(path),
            hint="name another folder with --out",
        ) from None


def _require_empty(out: Path, *, can_resume: bool = True) -> None:
    with storage_errors(out):
        if out.exists() and not out.is_dir():
            raise BadInputError(
                "--out must be a new or empty folder", received=f"{out}, which is a file", hint="name a folder"
            )
        if out.exists() and any(path.name != LOCK for path in out.iterdir()):
            raise BadInputError(
                "--out must be a new or empty folder",
                received=out,
                hint="name another one" + (", or go on with this run with --resume" if can_resume else ""),
            )


def link_latest(run: RunFolder) -> None:
    """Let `runs/latest` point to a run that lies in `runs/`."""
    if run.path.parent != RUNS.resolve():
        return
    temporary = RUNS / f".{LATEST}.{uuid.uuid4().hex[:8]}"
    with storage_errors(RUNS):
        os.symlink(run.path.name, temporary)
        os.replace(temporary, RUNS / LATEST)


def _new_folder(name: str) -> Path:
    with storage_errors(RUNS):
        RUNS.mkdir(exist_ok=True)
    began = datetime.now()
    for number in itertools.count(1):
        path = RUNS / run_folder_name(name, began, number)
        with storage_errors(path), contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("there is always another number")
