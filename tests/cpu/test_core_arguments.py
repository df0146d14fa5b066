"""Arguments of a wrong type are refused by name, with an example of a right one, before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from torch import nn

import upshift
from upshift.core.arguments import checked_arguments
from upshift.errors import BadInputError, ConfigError

VERBS = [name for name in upshift.__all__ if inspect.isfunction(getattr(upshift, name))]
ANY_ITERABLE = {("tune", "data")}


class Watcher(Protocol):
    def on_end(self) -> None: ...


class Watches:
    def on_end(self) -> None:
        pass


@checked_arguments({"names": 'names=["a"]'})
def work(
    path: str | Path,
    names: Sequence[str] = (),
    share: float = 0.5,
    count: int | None = None,
    table: Mapping[str, Any] | None = None,
    watchers: Sequence[Watcher] = (),
    call: Callable[[str], None] | None = None,
    flag: bool = False,
) -> str:
    """Works."""
    return f"{path}{count}"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"names": ("a", "b"), "share": 1, "count": None},
        {"share": np.float32(0.5), "count": np.int64(3), "flag": True},
        {"table": {"a": object()}, "watchers": [Watches()], "call": print},
    ],
)
def test_arguments_of_the_annotated_types_arrive_unchanged(arguments: dict[str, Any]) -> None:
    assert work(Path("a"), **arguments) == f"a{arguments.get('count')}"
    assert work.__doc__ == "Works." and list(inspect.signature(work).parameters)[:2] == ["path", "names"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": 5}, "path must be text or a path; received 5;"),
        ({"path": b"x"}, r"path must be text or a path; received b'x' \(bytes\);"),
        ({"path": "a\0b"}, "path must be without null characters"),
        ({"names": "epochs=1"}, r"received 'epochs=1'; hint: put it in a list: names=\['epochs=1'\]"),
        ({"names": ["a", 3]}, r"names must be a list \(each item text\).*hint: for example names=\[\"a\"\]"),
        ({"share": "x"}, "share must be a number; received 'x'"),
        ({"share": True}, "share must be a number; received True"),
        ({"count": 1.5}, "count must be a whole number or None; received 1.5"),
        ({"table": [1] * 100_000}, r"table must be a mapping or None; received \[1, 1, .*\(list of 100000\)"),
        ({"watchers": [3]}, "watchers must be a list .each item a Watcher."),
        ({"call": "print"}, "call must be a function or None"),
        ({"flag": 1}, "flag must be True or False; received 1"),
        ({"path": nn.Linear}, "received the class Linear"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        work(**({"path": "a"} | arguments))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_misspelt_argument_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nmaes'"):
        work("a", nmaes=[])  # type: ignore[call-arg]


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("value", [object(), b"bytes", 3j, {1, 2}, [object()]], ids=lambda value: type(value).__name__)
def test_no_verb_takes_an_argument_of_just_any_type(
    name: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verb = getattr(upshift, name)
    required = [
        parameter.name
        for parameter in inspect.signature(verb).parameters.values()
        if parameter.default is inspect.Parameter.empty
    ]
    for argument in inspect.signature(verb).parameters:
        if (name, argument) in ANY_ITERABLE:
            continue
        with pytest.raises(BadInputError, match=f"^{argument} must be"):
            verb(**(dict.fromkeys(required, "nowhere") | {argument: value}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [upshift.report, upshift.evaluate, upshift.optimize, upshift.train, upshift.load])
def test_an_empty_text_is_refused_and_is_not_the_current_folder(verb: Callable[[str], object]) -> None:
    with pytest.raises(ConfigError, match=r"must not be empty; received ''; hint: for example \w+="):
        verb("")
