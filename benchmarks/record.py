"""What a benchmark prints and keeps: a table, one JSON line, and a file named by claim, machine and versions."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upshift.core.environment import describe
from upshift.core.files import finite, write_json

VERSION = 1
RESULTS = Path(__file__).parent / "results"
VERDICTS = {True: "reached", False: "MISSED", None: "not measured"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a person reads: cells as text; the first column is aligned left, the others right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> list[str]:
        """The table for a terminal."""
        grid = [list(self.columns), *map(list, self.rows)]
        widths = [max(len(row[index]) for row in grid) for index in range(len(self.columns))]
        lines = []
        for row in grid:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            cells[0] = row[0].ljust(widths[0])
            lines.append("  ".join(cells).rstrip())
        return [self.title, *lines]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The outcome of a benchmark.

    Attributes:
        claim: The first part of the file's name, as "training-throughput".
        tables: For people.
        summary: The figures of the claim, for scripts.
        rounds: All raw measurements.
        aims: What was aimed at, and whether it was reached; None where it was not measured.
        notes: What a reader of the figures should know.
    """

    claim: str
    tables: Sequence[Table]
    summary: dict[str, Any]
    rounds: dict[str, Any]
    aims: dict[str, bool | None] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def publish(self, arguments: argparse.Namespace) -> None:
        """Write the file, and print the tables and the JSON line."""
        document = self.write(arguments)
        for table in self.tables:
            print("\n".join(table.lines()), end="\n\n")
        for note in self.notes:
            print(f"note: {note}")
        for aim, reached in self.aims.items():
            print(f"{VERDICTS[reached]}: {aim}")
        line = {key: document[key] for key in ("claim", "quick", "aims", "summary", "commit", "environment")}
        print(json.dumps(line, ensure_ascii=False, allow_nan=False))

    def write(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Write the file, unless it was a quick trial; returns its content."""
        environment = describe()
        content: dict[str, Any] = {
            "version": VERSION,
            "claim": self.claim,
            "quick": arguments.quick,
            "aims": self.aims,
            "summary": self.summary,
            "notes": list(self.notes),
            "arguments": {name: _json_value(value) for name, value in vars(arguments).items()},
            "commit": commit(),
            "environment": environment,
            "tables": [
                {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}
                for table in self.tables
            ],
            "rounds": self.rounds,
        }
        document: dict[str, Any] = finite(content)
        path = self.path(arguments, environment)
        if path is not None:
            write_json(path, document)
            say(f"written: {path}")
        return document

    def path(self, arguments: argparse.Namespace, environment: dict[str, Any]) -> Path | None:
        """Where the result lies; None if it is not to be written."""
        if arguments.results is None and arguments.quick:
            return None
        return (arguments.results or RESULTS) / result_name(self.claim, environment)


def result_name(claim: str, environment: dict[str, Any]) -> str:
    """`<claim>-<machine>-<versions>.json`, as training-throughput-amd-epyc-2cores-torch2.13.0.json."""
    accelerator = environment["accelerator"]
    machine = accelerator["name"] if accelerator else f"{environment['cpu']} {environment['num_cores']}cores"
    torch_version = environment["packages"]["torch"].split("+")[0]
    return f"{claim}-{_slug(machine)}-torch{torch_version}.json"


def _slug(text: str) -> str:
    plain = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*ghz", " ", text.lower())
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-")


def commit() -> str | None:
    """The commit that is measured, with "+changes" where benchmarks/ or src/ differ from it; None outside of git."""
    folder = Path(__file__).parents[1]
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--", "src", "benchmarks/*.py", "benchmarks/loops")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+changes" if changes else head


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def _json_value(value: Any) -> Any:
    """An argument as it is published: of a folder on this machine its name alone."""
    if isinstance(value, Path):
        return value.name if value.is_absolute() else str(value)
    return value


def say(text: str) -> None:
    """A line of progress, on the stderr that the process began with."""
    print(text, file=sys.__stderr__, flush=True)
