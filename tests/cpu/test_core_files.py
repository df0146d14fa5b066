"""Folders that are whole or absent, also when their writer is killed."""

import os
import signal
import subprocess
import sys

import pytest

from upshift.core import files
from upshift.core.files import atomic_folder

KILLED_AT_A_RENAME = """
import os, signal, sys
from pathlib import Path
from upshift.core.files import atomic_folder
left = int(sys.argv[2])
def hook(event, args):
    global left
    if event == "os.rename":
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "text").write_text("new")
"""


def replace(path, text):
    with atomic_folder(path) as folder:
        (folder / "text").write_text(text)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    for text in ("old", "new"):
        replace(tmp_path / "a", text)
        assert (tmp_path / "a" / "text").read_text() == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_an_error_leaves_the_old_folder(tmp_path):
    replace(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a") as folder:
        (folder / "text").write_text(str(1 / 0))
    assert (tmp_path / "a" / "text").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("num_renames", [0, 1])
def test_a_writer_killed_while_it_replaces_leaves_the_old_folder_or_the_new(tmp_path, num_renames):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    if not files._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot exchange")
    replace(tmp_path / "a", "old")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED_AT_A_RENAME, str(tmp_path / "a"), str(num_renames)]
    assert subprocess.run(command, env=environment).returncode in (0, -signal.SIGKILL)
    assert (tmp_path / "a" / "text").read_text() in ("old", "new")


def test_paths_that_cannot_be_exchanged_are_an_error(tmp_path):
    (tmp_path / "one").mkdir()
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "one", tmp_path / "absent")
