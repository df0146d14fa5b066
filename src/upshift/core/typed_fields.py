"""Dataclass fields from text, JSON and Python: converted by their type hints, checked, and refused by name.

Understands what the configs of this package are made of: str, int, float, bool, None unions, Literal,
tuples, mappings, nested dataclasses, and callables (which JSON cannot hold: they pass through).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from upshift.errors import ConfigError, UnknownNameError, shown

_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NONE = ("none", "null")
_DESCRIPTIONS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
_EXAMPLES = {int: "64", float: "0.01", bool: "true", str: "text"}


def check_fields(config: Any, prefix: str = "") -> None:
    """Check each field of a config by its type hint and put the converted value in its place.

    For the start of a dataclass's `__post_init__`: lists become tuples, NumPy's numbers Python's, and mappings of a
    nested config's fields that config, so that what follows compares values of the type that it expects.

    Args:
        config: An instance of a dataclass, which may be frozen.
        prefix: What goes before the names of its fields in errors, as "optimizer.".

    Raises:
        ConfigError: A field is of another type.
        UnknownNameError: A mapping in place of a nested config has a key that is no field of it.
    """
    cls: type = type(config)
    hints = _hints(cls)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        try:
            converted = from_json(value, hints[field.name], f"{prefix}{field.name}")
        except ConfigError as error:
            raise with_example(error, f"{prefix}{field.name}", field.default) from error
        object.__setattr__(config, field.name, converted)


def with_example(error: ConfigError, name: str, usual: Any) -> ConfigError:
    """The error with a value that the field usually has as its example, where that is a value to show."""
    values = usual if isinstance(usual, tuple) else (usual,)
    plain = values and all(isinstance(value, str | int | float) for value in values)
    if not plain or not error.rule.startswith(f"{name} must"):
        return error
    text = ",".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)
    return ConfigError(error.rule, received=error.received, hint=f"for example {name}={text}")


def from_text(text: str, hint: Any, name: str) -> Any:
    """The value of a field as a command line gives it.

    Args:
        text: "0.01", "true", "none", "32,32", or JSON for mappings and lists of objects.
        hint: The field's type hint.
        name: The field's dotted name, for errors.

    Raises:
        ConfigError: The text is no such value.
        UnknownNameError: A JSON object has a key that the nested dataclass has not.
    """
    inner = _without_none(hint)
    if inner is not hint and text.strip().lower() in _NONE:
        return None
    if inner is str:
        return text
    if inner is Any:
        return _literal(text)
    if inner is bool:
        return from_json(_FLAGS.get(text.strip().lower(), text), bool, name)
    if inner in (int, float):
        return _number(text, inner, hint, name)
    if typing.get_origin(inner) is typing.Literal:
        by_text = {str(choice): choice for choice in typing.get_args(inner)}
        return from_json(by_text.get(text.strip(), text), hint, name)
    if typing.get_origin(inner) is tuple and not text.lstrip().startswith("["):
        item_hint = typing.get_args(inner)[0]
        if not dataclasses.is_dataclass(item_hint) and typing.get_origin(item_hint) is not Mapping:
            items = [item.strip() for item in text.split(",")] if text.strip() else []
            return _tuple(text, items, hint, name, from_text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    return from_json(value, hint, name)


def from_json(value: Any, hint: Any, name: str) -> Any:
    """A JSON or Python value as its type hint wants it: lists become tuples, whole numbers floats, NumPy's Python's.

    Raises:
        ConfigError: The value is of another type.
        UnknownNameError: An object has a key that the nested dataclass has not.
    """
    inner = _without_none(hint)
    if inner is Any or (inner is not hint and value is None):
        return value
    origin = typing.get_origin(inner)
    if inner is float and isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_finite(value):
        return float(value)
    if inner is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if inner in (bool, str) and isinstance(value, inner):
        return value
    if origin is typing.Literal and any(type(value) is type(it) and value == it for it in typing.get_args(inner)):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return _tuple(value, value, hint, name, from_json)
    if origin is Mapping and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        item_hint = typing.get_args(inner)[1]
        return {key: from_json(item, item_hint, f"{name}.{key}") for key, item in value.items()}
    if origin is Callable and callable(value):
        return value
    if dataclasses.is_dataclass(inner):
        if isinstance(value, typing.cast(type, inner)):
            return value
        if isinstance(value, Mapping):
            return dataclass_from_json(value, typing.cast(type, inner), name)
    raise _refusal(value, hint, name)


def dataclass_from_json(value: Mapping[str, Any], cls: type, name: str = "") -> Any:
    """An instance of a dataclass from a mapping of field names to values, nested ones included."""
    hints = _hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    prefix = f"{name}." if name else ""
    arguments = {}
    for key, item in value.items():
        if key not in known:
            raise UnknownNameError(f"a field of {name or cls.__name__}", str(key), known)
        arguments[key] = from_json(item, hints[key], f"{prefix}{key}")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{name or cls.__name__} must have all its fields", received=str(error), hint=f"known: {', '.join(known)}"
        ) from error


def to_json(value: Any) -> Any:
    """A field's value in JSON's types; what JSON cannot hold raises `TypeError`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def leaf_hints(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names and type hints of a dataclass's fields, nested dataclasses taken apart."""
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from leaf_hints(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hint


def _is_finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number past the largest float
        return False


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if len(options) == 1 and len(typing.get_args(hint)) == 2:
            return options[0]
    return hint


def _literal(text: str) -> Any:
    """A value whose type nothing tells: none, true, false, a number, JSON, and else text."""
    word = text.strip().lower()
    if word in _NONE:
        return None
    if word in ("true", "false"):
        return word == "true"
    try:
        return json.loads(text, parse_constant=lambda constant: text)
    except (ValueError, RecursionError):
        pass
    try:
        number = float(text)  # "1." and ".5" are numbers here, though not in JSON
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _number(text: str, kind: type, hint: Any, name: str) -> Any:
    try:
        number = kind(text)
    except ValueError:
        raise _refusal(text, hint, name) from None
    return from_json(number, hint, name)


def _tuple(
    received: object, items: Any, hint: Any, name: str, convert: Callable[[Any, Any, str], Any]
) -> tuple[Any, ...]:
    hints = typing.get_args(_without_none(hint))
    if len(hints) == 2 and hints[1] is Ellipsis:
        return tuple(convert(item, hints[0], name) for item in items)
    if len(items) != len(hints):
        raise _refusal(received, hint, name)
    return tuple(convert(item, item_hint, name) for item, item_hint in zip(items, hints, strict=True))


def _refusal(value: Any, hint: Any, name: str) -> ConfigError:
    example = _example(hint)
    return ConfigError(
        f"{name} must be {_description(hint)}", received=shown(value), hint=f"for example {name}={example}"
    )


def _description(hint: Any) -> str:
    inner = _without_none(hint)
    if inner is not hint:
        return f"{_description(inner)}, or none"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple and Ellipsis not in arguments:
        return f"{len(arguments)} values, each {_description(arguments[0])}"
    if origin is tuple:
        return f"a list, each item {_description(arguments[0])}"
    if origin is Mapping:
        return f"a mapping of names to values, each {_description(arguments[1])}"
    if origin is Callable:
        return "a function or class"
    if dataclasses.is_dataclass(hint):
        return f"an object with the fields {', '.join(field.name for field in dataclasses.fields(hint))}"
    return _DESCRIPTIONS.get(hint, "a JSON value")


def _example(hint: Any) -> str:
    inner = _without_none(hint)
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if origin is typing.Literal:
        return str(arguments[0])
    if origin is tuple and (dataclasses.is_dataclass(arguments[0]) or typing.get_origin(arguments[0]) is Mapping):
        return f"[{_example(arguments[0])}]"
    if origin is tuple:
        return ",".join([_example(arguments[0])] * (2 if Ellipsis in arguments else len(arguments)))
    if origin is Mapping:
        return f'{{"name": {_example(arguments[1])}}}'
    if origin is Callable:
        return "package.module:name"
    if dataclasses.is_dataclass(inner):
        first = dataclasses.fields(inner)[0]
        return f'{{"{first.name}": {_example(typing.get_type_hints(inner)[first.name])}}}'
    return _EXAMPLES.get(inner, "1")
