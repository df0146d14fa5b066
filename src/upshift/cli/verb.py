"""What every command does: work with nothing on stdout, and then print what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand

from upshift.cli import stdout
from upshift.errors import BadInputError, Interrupted

Show = Callable[[], None]
"""Prints what a command came to; called when all its work is done."""


class Verb(TyperCommand):
    """A command whose function works, with nothing on stdout, and returns how to print what it came to."""

    def invoke(self, ctx: Any) -> None:
        try:
            with stdout.kept_for_data():
                show: Show = super().invoke(ctx)
        except KeyboardInterrupt:  # typer would end without a word
            raise Interrupted("interrupted") from None
        show()


def answer(value: Any, as_json: bool, show: Show) -> Show:
    """What a command returns: how to print its JSON document, or its text for people."""
    return (lambda: stdout.print_json(value)) if as_json else show


def print_lines(lines: list[Any]) -> None:
    """Print lines of text or of rich text."""
    from rich.console import Console

    console = Console(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True)


def field_overrides(assignments: list[str] | None, targets: list[str] | None) -> list[str]:
    """The fields that --set and --target change, as `train` takes them."""
    for target in targets or []:
        if "=" not in target:
            example = f"--target {target if target.isidentifier() else 'accuracy'}=0.99"
            raise BadInputError("--target must read METRIC=GOAL", received=repr(target), hint=f"for example {example}")
    return [*(assignments or []), *(f"target.{target}" for target in targets or [])]
