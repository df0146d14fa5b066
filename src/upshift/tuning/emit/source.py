"""Python as text: lines, values, calls, and prose."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from upshift.errors import ConfigError

LINE_LENGTH = 120


def lines(*parts: str | Sequence[str]) -> str:
    """Lines of code; a part is a line, or several, or none."""
    return "\n".join(line for part in parts for line in ([part] if isinstance(part, str) else part))


def when(condition: object, *parts: str) -> Sequence[str]:
    """The lines if the condition holds, else none."""
    return parts if condition else ()


def indented(levels: int, code: Sequence[str]) -> Sequence[str]:
    """Lines moved to the right; a part of several lines is moved as a whole."""
    return [" " * (4 * levels) + row if row else row for part in code for row in part.split("\n")]


def literal(value: Any, *, indent: int = 0, used: int = 0) -> str:
    """A JSON value or tuple as Python, one item a line where it is too long for one line.

    Args:
        value: None, bool, int, float, str, or a list, tuple or mapping of such.
        indent: Columns that the statement is indented by.
        used: Columns of its first line that are taken, by the indent and a name.
    """
    flat = _flat(value)
    if used + len(flat) <= LINE_LENGTH or not isinstance(value, list | tuple | Mapping) or not value:
        return flat
    inner = " " * (indent + 4)
    if isinstance(value, Mapping):
        rows = [
            f"{inner}{_flat(key)}: {literal(item, indent=indent + 4, used=indent + 7 + len(_flat(key)))},"
            for key, item in value.items()
        ]
        return lines("{", rows, " " * indent + "}")
    rows = [f"{inner}{literal(item, indent=indent + 4, used=indent + 5)}," for item in value]
    opening, closing = "[]" if isinstance(value, list) else "()"
    return lines(opening, rows, " " * indent + closing)


def call(function: str, arguments: Iterable[str], *, indent: int = 0, used: int = 0) -> str:
    """A call, one argument a line where it is too long for one line.

    Args:
        function: What is called.
        arguments: As they are written, such as "lr=0.1".
        indent: Columns that the statement is indented by.
        used: Columns of the first line that are taken before the function.
    """
    arguments = list(arguments)
    flat = f"{function}({', '.join(arguments)})"
    if not arguments or (used + len(flat) <= LINE_LENGTH and "\n" not in flat):
        return flat
    return lines(f"{function}(", [" " * (indent + 4) + f"{argument}," for argument in arguments], " " * indent + ")")


def keywords(values: Mapping[str, Any], *, indent: int = 0) -> list[str]:
    """Keyword arguments of a call whose statement is indented by so many columns.

    Raises:
        ConfigError: A key is no name.
    """
    for name in values:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ConfigError("keyword arguments must have names", received=repr(name), hint="rename the key")
    return [
        f"{name}={literal(value, indent=indent + 4, used=indent + 6 + len(name))}" for name, value in values.items()
    ]


def _flat(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) != float("inf") else f'float("{value}")'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flat(key)}: {_flat(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flat, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_flat, value)) + ("," if len(value) == 1 else "") + ")"
    raise TypeError(f"{type(value).__name__} has no literal")


def _quoted(text: str) -> str:
    """A string in double quotes, as formatters want it, unless it has some itself."""
    single = repr(text)
    if single.startswith("'") and '"' not in single and "'" not in text:
        return f'"{single[1:-1]}"'
    return single


def prose(text: str) -> str:
    """Other people's text for a docstring or comment: one line, nothing in it can end it or hide what follows."""
    return repr(text)[1:-1].replace('"', '\\"')
