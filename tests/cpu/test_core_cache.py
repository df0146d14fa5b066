"""What the tuner remembers between runs, on disks that are shared, full, read-only or damaged."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upshift.core import cache as cache_module
from upshift.core.cache import MAX_DOCUMENT_BYTES, TuningCache

HERE, JOB = "0123456789ab", "fedcba9876543210"
PLAN: dict[str, Any] = {"plan": {"version": 1, "compile": "whole"}, "step_seconds": 0.0125}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)

WRITER = """
import sys
from pathlib import Path
from upshift.core.cache import TuningCache
cache = TuningCache(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for index in range(int(sys.argv[3])):
    cache.add_trials("machine", [{"writer": sys.argv[2], "index": index}])
    cache.save_plan("machine", "job", {"writer": sys.argv[2], "index": index, "filling": "x" * 20000})
    assert cache.load_plan("machine", "job") is not None
print(cache.notes)
"""


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if not path.is_dir())


def saved(root: Path) -> Path:
    """A cache that holds one plan; the plan's file."""
    TuningCache(root).save_plan(HERE, JOB, PLAN)
    (path,) = files(root)
    return path


def test_nothing_is_made_before_something_is_saved(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path / "cache")
    assert cache.load_plan(HERE, JOB) is None and cache.trials(HERE) == []
    cache.add_trials(HERE, [])
    assert cache.notes == [] and list(tmp_path.iterdir()) == []


def test_a_plan_is_found_by_another_process_and_only_for_its_machine_and_job(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path)
    cache.save_plan(HERE, JOB, {"step_seconds": 1.0})
    cache.save_plan(HERE, JOB, PLAN)
    code = "import sys, json; from pathlib import Path; from upshift.core.cache import TuningCache\n"
    code += "print(json.dumps(TuningCache(Path(sys.argv[1])).load_plan(sys.argv[2], sys.argv[3])))"
    found = [
        json.loads(subprocess.run([sys.executable, "-c", code, str(tmp_path), *key], capture_output=True).stdout)
        for key in ((HERE, JOB), (HERE, "other"), ("other", JOB))
    ]
    assert found == [PLAN, None, None] and cache.notes == []


def test_the_usual_cache_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path / "named"))
    TuningCache().save_plan(HERE, JOB, PLAN)
    assert TuningCache(tmp_path / "named").load_plan(HERE, JOB) == PLAN


@settings(max_examples=40, deadline=None)
@given(key=st.text(), document=st.dictionaries(st.text(), JSON, max_size=3))
def test_any_key_and_document_come_back_and_stay_in_the_folder(
    tmp_path_factory: pytest.TempPathFactory, key: str, document: dict[str, Any]
) -> None:
    root = tmp_path_factory.mktemp("any")
    cache = TuningCache(root / "cache")
    cache.save_plan(key, key, document)
    cache.add_trials(key, [document])
    assert cache.load_plan(key, key) == document and cache.trials(key) == [document]
    assert cache.notes == [] and [path.name for path in root.iterdir()] == ["cache"]


@pytest.mark.parametrize("key", ["../../up", "/etc/x", "..", "", "a/b", "x" * 5000, "a\0b", "\ud800", "CON", ".hidden"])
def test_keys_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    cache = TuningCache(tmp_path / "cache")
    cache.save_plan(key, key, PLAN)
    assert cache.load_plan(key, key) == PLAN and cache.notes == []
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_numbers_that_are_not_finite_are_kept_as_null(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path)
    cache.save_plan(HERE, JOB, {"gain": float("nan"), "costs": (float("inf"), 1.0), 3: "number"})
    assert cache.load_plan(HERE, JOB) == {"gain": None, "costs": [None, 1.0], "3": "number"}


# --- trials ------------------------------------------------------------------------------------------


def test_trials_come_back_in_the_order_they_were_added_whatever_the_clock_says(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path)
    for index in range(6):
        cache.add_trials(HERE, [{"index": 2 * index}, {"index": 2 * index + 1}])
        (newest,) = [path for path in files(tmp_path) if path.name.startswith(f"{index:09d}")]
        os.utime(newest, (4e9 - 1e8 * index,) * 2)  # a clock that runs backwards, from far in the future
    assert [trial["index"] for trial in cache.trials(HERE)] == list(range(12))


def test_only_the_newest_trials_are_kept(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path)
    for index in range(cache_module.MAX_TRIAL_FILES + 5):
        cache.add_trials(HERE, [{"index": index}])
    assert [trial["index"] for trial in cache.trials(HERE)] == list(range(5, cache_module.MAX_TRIAL_FILES + 5))
    assert len(files(tmp_path)) == cache_module.MAX_TRIAL_FILES
    for start in (1000, 2000):
        cache.add_trials(HERE, [{"index": index} for index in range(start, start + 150)])
    kept = [trial["index"] for trial in cache.trials(HERE)]
    assert len(kept) == cache_module.MAX_TRIALS and kept[-150:] == list(range(2000, 2150)) and kept[0] == 1100


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    each = 12
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, str(n), str(each)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.communicate()[0] for writer in writers] == ["[]\n"] * 3
    cache = TuningCache(tmp_path)
    trials = cache.trials("machine")
    for n in range(3):
        assert [trial["index"] for trial in trials if trial["writer"] == str(n)] == list(range(each))
    plan = cache.load_plan("machine", "job")
    assert plan is not None and plan["index"] == each - 1
    assert cache.notes == [] and all(path.suffix == ".json" for path in files(tmp_path))


@pytest.mark.parametrize("num_files", [1, 4, 9])
def test_a_writer_killed_at_any_time_leaves_whole_files_only(tmp_path: Path, num_files: int) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), "0", "100000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdin and writer.stdout
    writer.stdin.write(b"go\n")
    writer.stdin.flush()
    while len(list(tmp_path.rglob("*.json"))) < num_files:
        assert writer.poll() is None
    writer.kill()
    writer.communicate()
    cache = TuningCache(tmp_path)
    trials = [trial["index"] for trial in cache.trials("machine")]
    assert trials == list(range(trials[0], trials[-1] + 1)) and len(trials) >= num_files - 1
    plan = cache.load_plan("machine", "job")
    assert plan["index"] in (trials[-1] - 1, trials[-1]) if plan else len(trials) == 1
    assert cache.notes == []


def test_a_file_numbered_last_of_all_does_not_end_the_history(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path)
    cache.add_trials(HERE, [{"index": 0}])
    (path,) = files(tmp_path)
    path.rename(path.with_name("999999999-00000000.json"))
    cache.add_trials(HERE, [{"index": 1}])
    assert sorted(trial["index"] for trial in cache.trials(HERE)) == [0, 1] and cache.notes == []


def test_trials_that_could_not_be_written_have_no_file(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path)
    first = cache.add_trials(HERE, [{"index": 0}])
    too_large = [{"filling": "x" * (MAX_DOCUMENT_BYTES + 1)}]
    assert first is not None and first.is_file()
    assert cache.add_trials(HERE, too_large) is None
    assert cache.add_trials(HERE, too_large, replaced=first) == first
    assert len(files(tmp_path)) == 1


# --- damage ------------------------------------------------------------------------------------------


def forge(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "a changed digit": lambda path: path.write_text(path.read_text().replace("0.0125", "0.0025")),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00" * 50),
    "not an object": lambda path: path.write_text("[1, 2]"),
    "no content": lambda path: path.write_text('{"version": 1}'),
    "content of another type": lambda path: forge(path, content=[1]),
    "another machine's": lambda path: forge(path, environment="other"),
    "a newer version": lambda path: forge(path, version=2),
    "nested too deep": lambda path: path.write_text("[" * 200_000),
    "a number that is none": lambda path: path.write_text(path.read_text().replace("0.0125", "NaN")),
    "endless digits": lambda path: path.write_text(path.read_text().replace("0.0125", "1" * 9000)),
    "too large": lambda path: path.write_bytes(b" " * (cache_module.MAX_DOCUMENT_BYTES + 1)),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "an endless device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_plan_is_absent_told_of_and_replaced(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = saved(tmp_path)
    damage(path)
    cache = TuningCache(tmp_path)
    assert cache.load_plan(HERE, JOB) is None
    (note,) = cache.notes
    assert path.name in note and "damaged" in note
    cache.save_plan(HERE, JOB, PLAN)
    again = TuningCache(tmp_path)
    assert again.load_plan(HERE, JOB) == PLAN and again.notes == []


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_of_trials_costs_only_its_own_and_is_told_of_once(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    cache = TuningCache(tmp_path)
    for index in range(3):
        cache.add_trials(HERE, [{"index": index, "gain": 0.0125}])
    damage(files(tmp_path)[1])
    assert [trial["index"] for trial in cache.trials(HERE)] == [0, 2]
    assert len(cache.notes) == 1
    again = TuningCache(tmp_path)
    assert [trial["index"] for trial in again.trials(HERE)] == [0, 2] and again.notes == []


def test_a_well_made_file_with_content_of_the_wrong_shape_is_damaged_too(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path)
    cache.add_trials(HERE, [{"index": 0}])
    (trials,) = files(tmp_path)
    trials.write_text(json.dumps(cache_module._envelope("trials", HERE, "", [1, 2])))
    assert cache.trials(HERE) == [] and len(cache.notes) == 1
    cache.save_plan(HERE, JOB, PLAN)
    (plan,) = files(tmp_path)
    plan.write_text(json.dumps(cache_module._envelope("plans", HERE, JOB, [])))
    assert cache.load_plan(HERE, JOB) is None and len(cache.notes) == 2


def test_a_folder_in_the_place_of_a_file_is_told_of(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.unlink()
    path.mkdir()
    cache = TuningCache(tmp_path)
    assert cache.load_plan(HERE, JOB) is None
    cache.save_plan(HERE, JOB, PLAN)
    assert len(cache.notes) == 2 and path.is_dir()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# --- disks that cannot be written ----------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "below", "tuning-v1"])
def test_a_file_in_the_place_of_the_cache_folder_stops_nothing(tmp_path: Path, place: str) -> None:
    root = tmp_path / "cache"
    blocked = root / place if place == "tuning-v1" else root
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("a file")
    cache = TuningCache(root / place if place == "below" else root)
    assert cache.load_plan(HERE, JOB) is None and cache.trials(HERE) == []
    cache.save_plan(HERE, JOB, PLAN)
    cache.add_trials(HERE, [{"index": 0}])
    assert any("could not be written" in note for note in cache.notes)
    assert len(cache.notes) == len(set(cache.notes)) and blocked.read_text() == "a file"


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="no folder here in which not even root can write")
def test_a_read_only_folder_stops_nothing() -> None:
    cache = TuningCache(Path("/proc/sys"))
    cache.save_plan(HERE, JOB, PLAN)
    cache.add_trials(HERE, [{"index": 0}])
    assert cache.load_plan(HERE, JOB) is None and cache.trials(HERE) == []
    assert len(cache.notes) == 1 and "could not be written" in cache.notes[0]


def test_a_full_disk_keeps_what_was_there_and_leaves_no_half_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = TuningCache(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        cache.save_plan(HERE, JOB, {"filling": "x" * 5000})
        cache.add_trials(HERE, [{"filling": "x" * 5000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(cache.notes) == 1 and "could not be written" in cache.notes[0]
    assert cache.load_plan(HERE, JOB) == PLAN and files(tmp_path) == [path]


def test_a_document_too_large_to_be_read_again_is_not_written(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path)
    cache.save_plan(HERE, JOB, {"filling": "x" * cache_module.MAX_DOCUMENT_BYTES})
    assert files(tmp_path) == [] and len(cache.notes) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user whom the system does not know")
def test_a_user_without_a_home_folder_goes_on() -> None:
    code = "import os; from upshift.core.cache import TuningCache; os.setuid(54321); cache = TuningCache()\n"
    code += "cache.save_plan('a', 'b', {}); cache.add_trials('a', [{}])\n"
    code += "print(cache.load_plan('a', 'b'), cache.trials('a'), len(cache.notes))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UPSHIFT", "XDG", "HOME"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "None [] 1\n", done.stderr


# --- bounds ------------------------------------------------------------------------------------------


def test_old_files_are_removed_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MAX_CACHE_FILES", 5)
    cache = TuningCache(tmp_path)
    for index in range(9):
        cache.save_plan(f"machine{index % 2}", f"job{index}", PLAN)
        for path in files(tmp_path):
            os.utime(path, (os.stat(path).st_mtime - 10,) * 2)
    assert {path.stem for path in files(tmp_path)} == {f"job{index}" for index in range(4, 9)}


def test_old_files_are_removed_when_they_are_too_large_and_the_newest_stays_whatever_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MAX_CACHE_BYTES", 3000)
    cache = TuningCache(tmp_path)
    for index in range(6):
        cache.save_plan(HERE, f"job{index}", {"filling": "x" * 1000})
        for path in files(tmp_path):
            os.utime(path, (4e9 + index,) * 2)  # the clock was in the future, and is right now
    assert sum(path.stat().st_size for path in files(tmp_path)) < 5000
    assert cache.load_plan(HERE, "job5") is not None


def test_what_killed_writers_left_is_removed_in_time(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for name, age in ((".old.json.0.tmp", 7200), (".new.json.0.tmp", 0)):
        file = path.with_name(name)
        file.write_text("half")
        os.utime(file, (os.stat(file).st_mtime - age,) * 2)
    TuningCache(tmp_path).save_plan(HERE, JOB, PLAN)
    assert {file.name for file in files(tmp_path)} == {path.name, ".new.json.0.tmp"}
