"""An error is one line of limited length that says the rule, what was received, and the way out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from upshift.errors import BadInputError, UnknownNameError, shown


@given(st.text(), st.one_of(st.text(), st.lists(st.integers(), max_size=500), st.binary()), st.text())
def test_an_error_is_one_short_line_whatever_is_received(rule: str, received: object, hint: str) -> None:
    error = BadInputError(rule, received=received, hint=hint)
    assert len(str(error).splitlines()) <= 1 and len(str(error)) < 1300
    again = BadInputError(error.rule, received=error.received, hint=error.hint)
    assert str(again) == str(error), "an error that is raised again in another's words stays the same"


def test_the_middle_of_a_long_value_is_left_out() -> None:
    error = BadInputError("a rule", received="/start/" + "x" * 5000 + "/end.png", hint="a way out")
    assert "/start/" in error.received and error.received.endswith("/end.png") and " … " in error.received
    assert len(error.received) <= 400


def test_a_long_list_of_names_is_cut_with_its_number() -> None:
    error = UnknownNameError("a column", "z", [f"column_{number:04}" for number in range(1000)])
    assert "column_0000, column_0001" in str(error) and "and 970 more" in str(error)


def test_a_value_is_shown_in_short_with_its_type() -> None:
    assert shown("x") == "'x'" and shown(3) == "3" and shown(None) == "None"
    assert shown(list(range(100_000))) == "[0, 1, 2, 3, 4, 5, ...] (list of 100000)"
    assert shown(nn.Linear) == "the class Linear"
    assert len(shown(nn.Sequential(*[nn.Linear(2, 2)] * 100))) < 200
    assert len(shown("y" * 10_000)) < 200


def test_a_value_that_cannot_be_shown_is_shown_by_its_type() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert "Shy" in shown(Shy())
