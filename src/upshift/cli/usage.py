"""What a command line that cannot be parsed is answered: the rule, what was received, and what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from upshift.errors import BadInputError

# What typer and click call them.
_NUMBERS = {"valid integer": "a whole number", "valid number": "a number", "valid float": "a number"}
_EXAMPLES = {"RECIPE": "digits", "PATH": "runs/latest", "RUN": "runs/latest", "PLAN": "plan.json", "TARGET": "script"}
_OPTIONS = {
    "top_k": "--top",
    "num_steps": "--steps",
    "max_drop": "--max-drop",
    "budget_seconds": "--budget",
    "budget": "--budget",
    "batch_size": "--batch-size",
}
"""Options that Python has another name for."""


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
    option: str = getattr(error, "option_name", "")
    parameter: Any = getattr(error, "param", None)
    see_help = f"{command} --help lists what there is"
    if text.startswith("No such option"):
        if hasattr(verb, "commands"):
            example = " ".join([command, next(name for name in ("recipes", *verb.commands) if name in verb.commands)])
            rule = f"an option of a command must follow its name, and {command} itself has only --help"
            rule = rule if names else f"{rule} and --version"
            return f"{rule}; received {option}; hint: as in {example} {option}, or see {command} --help"
        instead = _instead_of(option, words, verb) or see_help
        return f"an option must be one of {command}; received {option}; hint: {instead}"
    if text.startswith("No such command"):
        named = words[len(names)]
        near = difflib.get_close_matches(named, verb.commands, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(verb.commands)}"
        return f"a command must be one of {command}; received {named!r}; hint: {hint}"
    if text.startswith("Missing"):
        missing = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name
        example = _EXAMPLES.get((parameter.metavar or "").removesuffix("..."), "picture.png")
        written = example if parameter.param_type_name != "option" else f"{missing} {example}"
        rule = f"{command} must be given {missing}"
        return f"{rule}; received none; hint: for example {command} {written}, or see {command} --help"
    if "requires an argument" in text:
        return f"{option} must be followed by its value; received none; hint: see {command} --help"
    if "unexpected extra argument" in text:
        extra = re.findall(r"\(([^()]*)\)", text)[-1]
        return f"{command} must be given nothing beyond its arguments; received {extra}; hint: {see_help}"
    number = next((kind for name, kind in _NUMBERS.items() if name in text), None)
    if number is not None and parameter is not None:
        name, usual = parameter.opts[0], 1 if parameter.default is None else parameter.default
        return f"{name} must be {number}; received {_value_of(name, words)!r}; hint: for example {name} {usual}"
    return f"a command line must be one that {command} takes; received {text.rstrip('.;')}; hint: {see_help}"


def in_options(error: BadInputError, group: Any, words: Sequence[str]) -> str:
    """The line of an error, with the command's options in place of the names that Python has for them.

    Args:
        error: What a workflow raised.
        group: The command that has all the others.
        words: The command line, without the program's name.
    """
    _, verb = _verb_of(group, words)
    there = {option for parameter in getattr(verb, "params", ()) for option in parameter.opts}
    for name, option in _OPTIONS.items():
        if option in there and error.rule.startswith(f"{name} must"):
            rule, hint = error.rule.replace(name, option, 1), error.hint.replace(f"{name}=", f"{option} ")
            return f"{rule}; received {error.received}; hint: {hint}"
    return str(error)


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
