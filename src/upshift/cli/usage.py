"""What a command line that cannot be parsed is answered: the rule, what was received, and what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What typer and click call them.
_NUMBERS = {"valid integer": "a whole number", "valid number": "a number", "valid float": "a number"}


def explanation(error: Exception, group: Any, words: Sequence[str]) -> str:
    """One line on a command line that click refuses.

    Args:
        error: click's `UsageError`.
        group: The command that has all the others.
        words: The command line, without the program's name.
    """
    text: str = error.format_message() if hasattr(error, "format_message") else str(error)
    names, verb = _verb_of(group, words)
    command = " ".join(["upshift", *names])
    option, parameter = getattr(error, "option_name", ""), getattr(error, "param", None)
    if text.startswith("No such option"):
        instead = _instead_of(option, words, verb) or f"{command} --help lists what there is"
        return f"an option must be one of {command}; received {option}; hint: {instead}"
    number = next((kind for name, kind in _NUMBERS.items() if name in text), None)
    if number is not None and parameter is not None:
        name, example = parameter.opts[0], 1 if parameter.default is None else parameter.default
        return f"{name} must be {number}; received {_value_of(name, words)!r}; hint: for example {name} {example}"
    return f"{text.rstrip('.;')}; hint: {command} --help lists what there is"


def _verb_of(group: Any, words: Sequence[str]) -> tuple[list[str], Any]:
    """The names of a command that begin a command line, as ["plan", "emit"], and the command."""
    names: list[str] = []
    verb = group
    for word in words:
        if word not in getattr(verb, "commands", {}):
            break
        names.append(word)
        verb = verb.commands[word]
    return names, verb


def _instead_of(option: str, words: Sequence[str], verb: Any) -> str | None:
    """How to set the field of the recipe that an unknown option names; None where it names none."""
    if not any("--set" in parameter.opts for parameter in verb.params):
        return None
    from upshift.workflows.recipes import field_called

    field = field_called(option.lstrip("-"))
    return f"{field} is a field of the recipe: --set {field}={_value_of(option, words)}" if field else None


def _value_of(option: str, words: Sequence[str]) -> str:
    """What the command line gives an option, as --epochs=3 or --epochs 3."""
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and not following.startswith("-"):
            return following
    return "VALUE"
