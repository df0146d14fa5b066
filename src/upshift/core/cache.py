"""What earlier runs found out on this machine: the plans that won, what their trials cost, what the machine can do.

    <cache folder>/tuning-v1/<environment>/plans/<subject>.json      the latest plan of a job
                                          /limits/<device>.json      see `core.limits`
                                          /trials/<number>-<random>.json   one file a run

A cache may be lost at any time and must never stop a run: whatever cannot be read counts as absent, whatever
cannot be written is left out, and `TuningCache.notes` says so. There is no lock, so that none can be left
behind or hang on a network disk: a file is written under another name and renamed, and each writer of trials
has a file of its own. Trials are ordered by number; clocks decide only which old files are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import time
import uuid
from pathlib import Path
from typing import Any

from upshift.core.files import cache_folder, finite, write_bytes
from upshift.errors import StorageError

FORMAT_VERSION = 1
"""Part of the folder's name, so that versions of upshift that share a cache leave each other's files alone."""

MAX_DOCUMENT_BYTES = 2**20
MAX_TRIALS = 200
MAX_TRIAL_FILES = 64
MAX_CACHE_BYTES = 64 * 2**20
MAX_CACHE_FILES = 2000

_ABANDONED_AFTER_SECONDS = 3600.0
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TRIALS_NAME = re.compile(r"([0-9]{9})-[0-9a-f]{8}\.json")
_LAST_NUMBER = 10**9 - 1


class TuningCache:
    """The tuner's memory.

    No method raises because of the state of the disk: see `notes`.

    Args:
        root: The cache folder; else `core.files.cache_folder()`. Nothing is created before something is saved.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._notes: list[str] = []
        self._folder: Path | None = None
        try:
            self._folder = (cache_folder() if root is None else root) / f"tuning-v{FORMAT_VERSION}"
        except RuntimeError as error:  # no home folder
            self._note(f"there is no folder to keep tuning results in: {error}")

    @property
    def notes(self) -> list[str]:
        """What went wrong so far, in words for a report; each once."""
        return list(self._notes)

    def load_plan(self, environment: str, subject: str) -> dict[str, Any] | None:
        """The document that was last saved for a job on this machine; None if there is none that can be used."""
        return self.load("plans", environment, subject)

    def save_plan(self, environment: str, subject: str, document: dict[str, Any]) -> None:
        """Keep a job's plan, in place of the one before."""
        self.save("plans", environment, subject, document)

    def load(self, kind: str, environment: str, subject: str) -> dict[str, Any] | None:
        """The document of a kind that was last saved for a subject on a machine; None if none can be used."""
        path = self._path(kind, environment, f"{_file_name(subject)}.json")
        content = self._read(path, kind, environment, subject) if path else None
        if path and content is not None and not isinstance(content, dict):
            self._damaged(path, "its content is no JSON object")
            return None
        return content

    def save(self, kind: str, environment: str, subject: str, document: dict[str, Any]) -> None:
        """Keep a document, in place of the one before.

        Args:
            kind: Names a folder: "plans" or "limits".
            environment: `environment.fingerprint` of the machine.
            subject: What the document is about.
            document: JSON values; numbers that are not finite become null.
        """
        path = self._path(kind, environment, f"{_file_name(subject)}.json")
        if path:
            self._write(path, kind, environment, subject, document)

    def trials(self, environment: str) -> list[dict[str, Any]]:
        """The last `MAX_TRIALS` trials on this machine, newest last."""
        newest_first: list[dict[str, Any]] = []
        for _, path in reversed(self._trial_files(environment)[-MAX_TRIAL_FILES:]):
            content = self._read(path, "trials", environment, "")
            if isinstance(content, list) and all(isinstance(record, dict) for record in content):
                newest_first.extend(reversed(content))
            elif content is not None:
                self._damaged(path, "its content is no list of trials")
            if len(newest_first) >= MAX_TRIALS:
                break
        return newest_first[:MAX_TRIALS][::-1]

    def add_trials(
        self, environment: str, records: list[dict[str, Any]], *, replaced: Path | None = None
    ) -> Path | None:
        """Add to the history of trials; two processes that add at the same time both keep theirs.

        Args:
            environment: `environment.fingerprint` of the machine.
            records: The trials.
            replaced: The file that an earlier call returned, whose trials these take the place of: a run that tells of
                its trials one after another has one file, however many they are.

        Returns:
            Their file; None where nothing is kept.
        """
        files = self._trial_files(environment)
        number = min(files[-1][0] + 1, _LAST_NUMBER) if files else 0
        path = replaced or self._path("trials", environment, f"{number:09d}-{uuid.uuid4().hex[:8]}.json")
        if path and records:
            if not self._write(path, "trials", environment, "", records[-MAX_TRIALS:]):
                return replaced
            others = [old for _, old in files if old != path]
            for old in others[: -(MAX_TRIAL_FILES - 1)]:
                with contextlib.suppress(OSError):
                    old.unlink()
        return path if records else replaced

    def _path(self, kind: str, environment: str, name: str) -> Path | None:
        return self._folder and self._folder / _file_name(environment) / kind / name

    def _trial_files(self, environment: str) -> list[tuple[int, Path]]:
        """(number, path), oldest first."""
        folder = self._path("trials", environment, "")
        files = []
        # A folder that is not there is an empty history; one that cannot be read is told of when it is written to.
        with contextlib.suppress(OSError):
            for name in os.listdir(folder) if folder else ():
                if match := _TRIALS_NAME.fullmatch(name):
                    files.append((int(match[1]), Path(folder or "", name)))
        return sorted(files)

    def _read(self, path: Path, kind: str, environment: str, subject: str) -> Any:
        """The content of a file; None, with a note unless it is merely absent, if it is not as it was written."""
        try:
            envelope = json.loads(_read_regular(path), parse_constant=_refuse_constant)
            content = envelope.get("content") if isinstance(envelope, dict) else None
            if envelope != _envelope(kind, environment, subject, content):
                raise ValueError("it was altered, or is of another machine or job")
            return content
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(f"the tuning cache cannot be read: {error}")
        except (ValueError, RecursionError) as error:
            self._damaged(path, str(error))
        return None

    def _write(self, path: Path, kind: str, environment: str, subject: str, content: Any) -> bool:
        """Write a file; False, with a note, if it is not kept."""
        content = json.loads(json.dumps(finite(content)))  # as it will be read, so that its digest is the same
        data = json.dumps(_envelope(kind, environment, subject, content), indent=1).encode()
        if len(data) > MAX_DOCUMENT_BYTES:
            self._note(f"not kept in the tuning cache: {len(data)} bytes, at most {MAX_DOCUMENT_BYTES} are")
            return False
        try:
            write_bytes(path, data, survives_power_cuts=False)  # what is left of it then is known by its digest
        except (StorageError, OSError) as error:
            reason = error.received if isinstance(error, StorageError) else error
            self._note(f"the tuning cache {self._folder} could not be written ({reason}): the next run starts anew")
            return False
        self._prune(keep=path)
        return True

    def _damaged(self, path: Path, reason: str) -> None:
        self._note(f"{path} in the tuning cache is not used, as it is damaged: {reason}")
        with contextlib.suppress(OSError):
            path.unlink()

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def _prune(self, *, keep: Path) -> None:
        """Remove what killed writers left behind, and the files written longest ago beyond the cache's bounds."""
        files = []
        for path in (Path(folder, name) for folder, _, names in os.walk(self._folder or "") for name in names):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if path.name.endswith(".tmp"):
                    if time.time() - status.st_mtime > _ABANDONED_AFTER_SECONDS:
                        path.unlink()
                elif path != keep:
                    files.append((status.st_mtime, status.st_size, path))
        num_bytes = sum(size for _, size, _ in files)
        num_files = len(files)
        for _, size, path in sorted(files):
            if num_bytes <= MAX_CACHE_BYTES and num_files < MAX_CACHE_FILES:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                num_bytes -= size
                num_files -= 1


def _file_name(key: str) -> str:
    """A key as a name that is safe in a path; the file itself says the key."""
    return key if _PLAIN_NAME.fullmatch(key) else hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _envelope(kind: str, environment: str, subject: str, content: Any) -> dict[str, Any]:
    """What a file holds. The digest is against accidents; who can write to the cache can also forge it."""
    envelope = {
        "version": FORMAT_VERSION,
        "kind": kind,
        "environment": environment,
        "subject": subject,
        "content": content,
    }
    return {**envelope, "sha256": hashlib.sha256(json.dumps(envelope, sort_keys=True).encode()).hexdigest()}


def _read_regular(path: Path) -> str:
    """The text of a regular file of bounded size; a pipe or a device in its place neither blocks nor floods."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_DOCUMENT_BYTES:
            raise ValueError(f"no regular file of at most {MAX_DOCUMENT_BYTES} bytes")
        return stream.read(MAX_DOCUMENT_BYTES).decode()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
