"""Arguments of a public function, refused by name where they are of another type than its annotations say."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from upshift.errors import ConfigError, shown

P = ParamSpec("P")
R = TypeVar("R")

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False", Path: "a path"}


def checked_arguments(
    examples: Mapping[str, str], may_be_empty: Container[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function runs only if each argument is of the type that its annotation says.

    Args:
        examples: What to write for an argument, by its name; for the hint of the error.
        may_be_empty: Arguments of which an empty text means something.

    Returns:
        The decorator. What it makes raises `ConfigError` for an argument of another type, and for an empty text (as
        a path it would be the current folder) or one with a null character.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            hints = typing.get_type_hints(function)
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                if value != "" or name not in may_be_empty:
                    _check(name, value, hints[name], examples.get(name, ""))
            return function(*args, **kwargs)

        return checked

    return decorate


def _check(name: str, value: Any, hint: Any, example: str) -> None:
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{name} must be without null characters", received=repr(value), hint="remove them")
    if isinstance(value, str) and not value:
        instead = f"for example {example}" if example else "leave it out"
        raise ConfigError(f"{name} must not be empty", received="''", hint=instead)
    if _fits(value, hint):
        return
    if isinstance(value, str) and any(typing.get_origin(option) is Sequence for option in _options(hint)):
        example = f"put it in a list: {name}=[{shown(value)}]"
    elif example:
        example = f"for example {example}"
    raise ConfigError(
        f"{name} must be {_described(hint)}", received=shown(value), hint=example or "see the function's help()"
    )


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of any other hint, itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    options = _options(hint)
    if len(options) > 1:
        return any(_fits(value, option) for option in options)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, os.PathLike)
    if origin is Sequence:
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str | bytes)
            and all(_fits(item, arguments[0]) for item in value)
        )
    if origin is not None:
        return isinstance(value, origin)
    if getattr(hint, "_is_protocol", False):
        return all(hasattr(value, member) for member in vars(hint) if not member.startswith("_"))
    return hint is Any or isinstance(value, hint)


def _described(hint: Any) -> str:
    options = _options(hint)
    if len(options) > 1:
        *others, last = [_described(option) for option in options]
        return f"{', '.join(others)} or {last}"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if origin is Sequence:
        return f"a list (each item {_described(arguments[0])})"
    if origin is Mapping:
        return "a mapping"
    if origin is Callable:
        return "a function"
    if hint in _WORDS:
        return _WORDS[hint]
    article = "an" if hint.__name__[0] in "AEIOU" else "a"
    return f"{article} {hint.__name__}"
