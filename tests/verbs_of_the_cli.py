"""The verbs of the command line by their names, those of groups included: "train", "plan emit"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from upshift.cli import app


def _verbs(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _verbs(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


VERBS: dict[str, Any] = dict(_verbs(typer.main.get_group(app)))


def page_of(verb: str) -> str:
    """The name of a verb's page in docs/."""
    return verb.replace(" ", "-")
