"""Names of run folders, what a path that is no run is told, and lines that survive a kill."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.core.records import JsonlWriter, RunFolder, read_jsonl, run_began, run_folder_name
from upshift.errors import ArtifactError


@given(
    st.from_regex(r"[\w][\w~-]{0,20}", fullmatch=True),
    st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2999, 1, 1)),
    st.integers(1, 1000),
)
def test_the_name_of_a_run_folder_tells_when_the_run_began(recipe: str, began: datetime, number: int) -> None:
    assert run_began(run_folder_name(recipe, began, number)) == began.replace(microsecond=0)


@pytest.mark.parametrize("name", ["mine", "mine-20260102", "mine-20261345-990000", "mine-20260102-030405-2", ""])
def test_a_name_that_tells_no_time_is_none(name: str) -> None:
    assert run_began(name) is None


def test_a_path_that_is_no_run_is_told_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder").mkdir()
    Path("dangling").symlink_to("gone")
    for name, what in (
        ("nowhere", "which does not exist"),
        ("file", "which is a file"),
        ("folder", "which has no recipe.json"),
        ("dangling", "a link to a folder that is gone"),
    ):
        with pytest.raises(ArtifactError, match=f"^a rule; received {name}, {what}; .*upshift train digits"):
            RunFolder(Path(name)).require("a rule")
    Path("runs/latest").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="runs/latest is the newest run"):
        RunFolder(Path("nowhere")).require("a rule")


def test_a_last_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "lines.jsonl")
    writer.write({"step": 1, "loss": float("nan")}, {"step": 2})
    writer.close()
    with open(writer.path, "ab") as stream:
        stream.write(b'{"step": 3, "lo')
    assert list(read_jsonl(writer.path)) == [{"step": 1, "loss": None}, {"step": 2}]
