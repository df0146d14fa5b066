"""The run folder: where each record of a run lies, and JSON lines that survive a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from upshift.core.files import finite, read_json, sha256_file, storage_errors
from upshift.errors import ArtifactError

RUNS = Path("runs")
"""Where runs go that no folder is named for."""
LATEST = "latest"
"""The link in it to the newest one."""
_TIME = "%Y%m%d-%H%M%S"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run (described in docs/run-folder.md)."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def tuning(self) -> Path:
        """What tuning has found so far, for a run that is resumed."""
        return self.path / "tuning.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def evaluation(self) -> Path:
        """The full evaluation on the test split: what `evaluate` returns, with sample mistakes."""
        return self.path / "evaluation.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def trials(self) -> Path:
        return self.path / "trials.jsonl"

    @property
    def algorithm(self) -> Path:
        """The batch size that was chosen, where `--allow algorithm` let upshift choose it."""
        return self.path / "algorithm.json"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def earlier(self) -> Path:
        """What a run had come to before it was gone on with."""
        return self.path / "earlier"

    def set_aside_results(self) -> None:
        """Move what a finished run came to into `earlier`: it is not that of the weights that are trained now.

        Raises:
            StorageError: The folder cannot be written.
        """
        # The result first: without it, the run is known to be unfinished.
        parts = (self.result, self.evaluation, self.model, self.artifact, self.report)
        with storage_errors(self.path, is_file=True):
            if self.result.exists() and self.earlier.exists():
                shutil.rmtree(self.earlier)
            for part in parts:
                if part.exists():
                    self.earlier.mkdir(exist_ok=True)
                    part.rename(self.earlier / part.name)

    def check_model(self) -> None:
        """Refuse weights other than those that the run's result is of; older results do not say which they are.

        Raises:
            ArtifactError: They are others.
        """
        if not self.result.is_file():
            return
        claimed = read_json(self.result, kind="a finished run's result").get("model_sha256")
        if claimed is not None and (not self.model.is_file() or sha256_file(self.model) != claimed):
            raise ArtifactError(
                "the weights of a run must be as they were written",
                received=f"{self.model}, which {'was altered' if self.model.is_file() else 'is missing'}",
                hint="train again, or go on with --resume, which writes them anew from the checkpoint",
            )

    def require(self, rule: str) -> None:
        """Refuse a path that is no run folder, and say what it is.

        Raises:
            ArtifactError: There is no `recipe.json`.
        """
        if self.recipe.is_file():
            return
        if not self.path.exists():
            what = "a link to a folder that is gone" if self.path.is_symlink() else "which does not exist"
        else:
            what = f"which has no {self.recipe.name}" if self.path.is_dir() else "which is a file"
        latest = RUNS / LATEST
        newest = f"{latest} is the newest run" if latest.exists() else "`upshift train digits` makes a run"
        raise ArtifactError(rule, received=f"{self.path}, {what}", hint=f"check the path; {newest}")

    def load_result(self) -> dict[str, Any]:
        """The run's `result.json`.

        Raises:
            ArtifactError: The folder holds no finished run.
        """
        self.require("a run must be a folder made by `upshift train` or `upshift run`")
        if not self.result.is_file():
            raise ArtifactError(
                "a run must be finished",
                received=f"{self.path}, which was interrupted",
                hint=f"go on with the command that began it, with --resume --out {self.path}",
            )
        return read_json(self.result, kind="a finished run's result")


def run_folder_name(recipe: str, began: datetime, number: int = 1) -> str:
    """The name of a run's folder in `RUNS`: digits-20260102-030405, and …~2 for a second one of that second."""
    return f"{recipe}-{began.strftime(_TIME)}" + (f"~{number}" if number > 1 else "")


def run_began(folder_name: str) -> datetime | None:
    """When the run in a folder of such a name began, in local time; None where the name does not tell."""
    named = re.search(r"-(\d{8}-\d{6})(?:~\d+)?$", folder_name)
    try:
        return datetime.strptime(named.group(1), _TIME) if named else None
    except ValueError:  # digits that are no time
        return None


class JsonlWriter:
    """Append JSON objects to a file, one a line, each flushed to the operating system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path, is_file=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def write(self, *records: dict[str, Any]) -> None:
        """Append records; a full disk raises `StorageError`."""
        lines = "".join(json.dumps(finite(record), allow_nan=False) + "\n" for record in records)
        with storage_errors(self.path, is_file=True):
            self._stream.write(lines)
            self._stream.flush()

    def close(self) -> None:
        """Flush to the disk and close."""
        with storage_errors(self.path, is_file=True):
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that a kill cut short is left out."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record
