"""The exceptions that upshift raises.

    UpshiftError                     anything upshift refuses or fails at     exit 1
    ├── BadInputError                the request cannot be served as given    exit 2
    │   ├── UnknownNameError         no such recipe, field, dataset, backend
    │   ├── ConfigError              a value of the wrong type or range
    │   ├── DataError                a dataset that is missing, empty or wrong
    │   ├── PlanError                a plan that is unreadable or for another device
    │   ├── ArtifactError            a run, checkpoint or artifact that is not whole
    │   ├── MissingExtraError        an optional package is not installed
    │   └── StorageError             a folder that cannot be written, a full disk
    ├── NonFiniteLossError           the loss stayed NaN or infinite
    ├── BackendError                 an inference backend could not build or run a model
    └── Interrupted                  Ctrl-C or SIGTERM, and how to go on      exit 130
        ├── TrainingInterrupted      training: what was saved is told
        └── OptimizeInterrupted      the search: the run is whole, as it was

Every `BadInputError` is made of the rule, the value received and the way out, and prints as one line.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

MAX_CHARACTERS = 400
"""Of the value received and of the hint, each: an error is one line that a person reads."""
MAX_NAMES = 30
"""That a hint lists of what is known."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 160


class UpshiftError(Exception):
    """Anything that upshift refuses or fails at."""

    exit_code = 1


def shown(value: object) -> str:
    """A value of a wrong type as an error shows it: a short form, and the type where that is not plain to see."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = _SHORT.repr(value)
    if value is None or isinstance(value, str | int | float | bool):
        return text
    length = f" of {len(value)}" if isinstance(value, list | tuple | dict | set) else ""
    return f"{text} ({type(value).__name__}{length})"


def _line(value: object) -> str:
    """One line of limited length; what is left out is its middle."""
    text = " ".join(str(value).split())
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[: MAX_CHARACTERS - 100]} … {text[-80:]}"


class BadInputError(UpshiftError):
    """The request cannot be served as given.

    Args:
        rule: What holds for every valid request ("batch_size must be at least 1").
        received: What was received instead; long ones are shortened.
        hint: What to do about it.
    """

    exit_code = 2

    def __init__(self, rule: str, *, received: object, hint: str) -> None:
        self.rule, self.received, self.hint = _line(rule), _line(received), _line(hint)
        super().__init__(f"{self.rule}; received {self.received}; hint: {self.hint}")


class UnknownNameError(BadInputError):
    """A name that is not among those known; the nearest one is offered."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        guess = f"did you mean {near[0]!r}? " if near else ""
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        super().__init__(
            f"{kind} must be one that upshift knows",
            received=repr(name),
            hint=f"{guess}{hint or 'known: ' + ', '.join(names[:MAX_NAMES]) + more}",
        )


class ConfigError(BadInputError):
    """A value of the wrong type or out of its range."""


class DataError(BadInputError):
    """A dataset that is missing, empty, corrupt or of the wrong shape."""


class PlanError(BadInputError):
    """A plan that cannot be read, or was made for another device."""


class ArtifactError(BadInputError):
    """A run, checkpoint or artifact that is incomplete or was altered."""


class MissingExtraError(BadInputError):
    """An optional package that the request needs is not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}",
            received="an environment without it",
            hint=f'pip install "upshift[{extra}]"',
        )


class StorageError(BadInputError):
    """A folder that cannot be written, or a disk that is full."""


class NonFiniteLossError(UpshiftError):
    """The loss stayed NaN or infinite for too many steps in a row."""


class BackendError(UpshiftError):
    """An inference backend could not build or run a model."""


class Interrupted(UpshiftError):
    """Work was stopped by Ctrl-C or SIGTERM; the text says what is kept and how to go on."""

    exit_code = 130


class TrainingInterrupted(Interrupted):
    """Training was stopped; the run folder is as `--resume` wants it."""


class OptimizeInterrupted(Interrupted):
    """The search for an inference artifact was stopped; the run is whole, as it was before the search."""
