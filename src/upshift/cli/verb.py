"""What every command does: work with nothing on stdout, and then print what came of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand

from upshift.cli import stdout
from upshift.errors import BadInputError, Interrupted

Show = Callable[[], None]
"""Prints what a command came to; called when all its work is done."""


class Verb(TyperCommand):
    """A command whose function works, with nothing on stdout, and returns how to print what it came to."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self._refuse_empty(ctx, list(args))
        return super().parse_args(ctx, args)

    def _refuse_empty(self, ctx: Any, args: list[str]) -> None:
        """An empty path would be the current folder, which nobody means by a variable that is not set."""
        given, _, _ = self.make_parser(ctx).parse_args(args=args)
        for parameter in self.params:
            values = given.get(parameter.name)
            if "" in (values if isinstance(values, list | tuple) else [values]):
                name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
                raise BadInputError(f"{name} must not be empty", received="''", hint="name it, or leave it out")

    def invoke(self, ctx: Any) -> None:
        try:
            with stdout.kept_for_data():
                show: Show = super().invoke(ctx)
        except KeyboardInterrupt:  # typer would end without a word
            raise Interrupted("interrupted") from None
        show()


def after(shared: Callable[..., Any]) -> Callable[[Callable[..., Show]], Callable[..., Show]]:
    """A decorator: the command takes the options of `shared` too, and what it returns as its first argument."""

    def decorate(command: Callable[..., Show]) -> Callable[..., Show]:
        first = list(inspect.signature(shared, eval_str=True).parameters.values())
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        def combined(**given: Any) -> Show:
            arguments = shared(**{parameter.name: given.pop(parameter.name) for parameter in first})
            return command(arguments, **given)

        combined.__name__, combined.__doc__ = command.__name__, command.__doc__
        combined.__annotations__ = {parameter.name: parameter.annotation for parameter in (*first, *own)}
        combined.__signature__ = inspect.Signature([*first, *own])  # type: ignore[attr-defined]
        return combined

    return decorate


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
