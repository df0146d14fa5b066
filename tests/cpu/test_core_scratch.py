import fcntl
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from upshift.core.scratch import scratch_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_scratch_folder_is_private_and_goes_away(temporary):
    with scratch_folder() as folder:
        (folder / "large").write_bytes(b"x" * 1000)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(temporary.iterdir()) == []


def test_it_goes_away_after_an_error_too(temporary):
    with pytest.raises(ZeroDivisionError), scratch_folder():
        1 / 0  # noqa: B018
    assert list(temporary.iterdir()) == []


def test_two_at_a_time_leave_each_other_alone(temporary):
    with scratch_folder() as one, scratch_folder() as two:
        (one / "a").touch()
        with scratch_folder():
            assert (one / "a").exists() and two.exists()


def test_what_a_killed_process_left_is_removed_by_the_next(temporary):
    code = """
import time
from upshift.core.scratch import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    time.sleep(1000)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        left = process.stdout.readline().decode().strip()
        with scratch_folder():
            assert os.path.isdir(left), "a living process keeps its folder"
        os.kill(process.pid, signal.SIGKILL)
    assert os.path.isdir(left)
    with scratch_folder():
        assert not os.path.exists(left)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_others_that_clean_up_while_a_folder_is_being_locked_leave_it(temporary, monkeypatch, moment):
    lock = fcntl.flock

    def with_others(*given):
        monkeypatch.setattr(fcntl, "flock", lock)
        if moment == "before":
            remove_as_others_do()
        lock(*given)
        if moment == "after":
            remove_as_others_do()

    def remove_as_others_do():
        with scratch_folder():
            pass

    monkeypatch.setattr(fcntl, "flock", with_others)
    with scratch_folder() as folder:
        assert folder.is_dir()
        remove_as_others_do()
        assert folder.is_dir()


def test_a_link_with_such_a_name_is_not_followed(temporary):
    (temporary / "precious").mkdir()
    (temporary / "precious" / ".lock").touch()
    (temporary / "upshift-scratch-link").symlink_to(temporary / "precious")
    with scratch_folder():
        assert (temporary / "precious").is_dir()
