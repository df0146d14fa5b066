"""Folders that cannot be written and disks that fill up: nothing half-made is left, or it can be gone on with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upshift.core.files import storage_errors, write_json
from upshift.core.records import run_began
from upshift.errors import StorageError
from upshift.workflows.folders import open_run_folder

Cli = Callable[..., Any]
QUICK = ("--plan", "baseline", "--set", "epochs=1", "--quiet")
# A limit on the size of files stands for a disk that fills up.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), -1))
from upshift.cli import main
main()
"""


def limited(limit_bytes: int, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(limit_bytes), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def packed(upshift_cli: Cli) -> None:
    """The data are in the cache already: it is the run folder's disk that is full."""
    from upshift.data.config import DataConfig
    from upshift.data.prepare import prepare

    prepare(DataConfig(), data_dir=None, seed=0, on_progress=None)


@pytest.mark.parametrize(
    ("limit_bytes", "file"), [(5000, "tensorboard"), pytest.param(1000, "recipe.json", marks=pytest.mark.slow)]
)
def test_a_disk_that_is_full_at_the_start_leaves_nothing(
    packed: None, tmp_path: Path, limit_bytes: int, file: str
) -> None:
    done = limited(limit_bytes, "train", "digits", "--out", "run", *QUICK, folder=tmp_path)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: writing") and file in error and "free disk space" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_leaves_a_run_that_can_be_resumed(
    packed: None, upshift_cli: Cli, tmp_path: Path
) -> None:
    done = limited(200_000, "train", "digits", "--out", "run", *QUICK, folder=tmp_path)
    assert done.returncode == 2
    assert f"hint: free some space, and go on with --resume --out {tmp_path / 'run'}" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
    answer = upshift_cli("train", "digits", "--out", "run", "--resume", *QUICK)
    assert answer.code == 0 and (tmp_path / "run" / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [2, 8, 24])
def test_a_real_full_disk_at_the_start_leaves_nothing(packed: None, tmp_path: Path, kilobytes: int) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs a namespace in which a file system can be mounted")
    (tmp_path / "disk").mkdir()
    command = f"{sys.executable} -m upshift train digits --out disk/run {' '.join(QUICK)}"
    script = f"mount -t tmpfs -o size={kilobytes}k none disk && {command}; echo $?; ls -A disk"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["2"], done.stdout
    (error,) = done.stderr.splitlines()
    assert "received No space left on device" in error


def test_a_refused_run_leaves_the_folder_of_another_alone(packed: None, upshift_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    answer = upshift_cli("train", "digits", "--out", "mine", *QUICK)
    assert answer.code == 2 and "--out must be a new or empty folder" in answer.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("out", ["/proc/run", "/proc/deep/er/run", "/dev/null/run", "x" * 300, "/sys/run"])
def test_a_place_where_no_folder_can_be_made_is_bad_input(packed: None, upshift_cli: Cli, out: str) -> None:
    answer = upshift_cli("train", "digits", "--out", out, *QUICK)
    assert answer.code == 2 and "must be a folder that can be written" in answer.err
    assert len(answer.err.splitlines()) == 1 and list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("options", [("--out", "/proc/run"), ("--out", "mine"), ("--out", "gone", "--resume")])
def test_a_folder_that_is_refused_is_so_before_data_are_packed(
    options: tuple[str, ...], upshift_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    answer = upshift_cli("train", "digits", *options, *QUICK)
    assert answer.code == 2 and len(answer.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_whose_name_is_no_text_is_refused_at_once(packed: None, upshift_cli: Cli, tmp_path: Path) -> None:
    answer = upshift_cli("train", "digits", "--out", os.fsdecode(b"caf\xe9"), *QUICK)
    assert answer.code == 2 and "must be text in UTF-8" in answer.err and r"caf\xe9" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_runs_that_lead_nowhere_are_bad_input(packed: None, upshift_cli: Cli) -> None:
    Path("runs").symlink_to("gone")
    answer = upshift_cli("train", "digits", *QUICK)
    assert answer.code == 2 and "runs must be a folder that can be written" in answer.err


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        with open_run_folder("a~recipe", None, resume=False) as folder:
            folder.metrics.write_text("")
            names.append(folder.path.name)
    assert len(set(names)) == 3 and all(run_began(name) is not None for name in names)


def test_an_error_of_another_file_is_not_taken_for_one_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path / "run"):
        Path("/nowhere/picture.png").read_bytes()
    with pytest.raises(StorageError, match="must be a folder that can be written"), storage_errors(tmp_path / "run"):
        (tmp_path / "run" / "missing" / "recipe.json").write_bytes(b"")


def test_json_with_a_name_that_is_no_text_is_read_as_the_same(tmp_path: Path) -> None:
    value = {"run_dir": os.fsdecode(b"caf\xe9"), "label": "é"}
    write_json(tmp_path / "value.json", value)
    assert json.loads((tmp_path / "value.json").read_text(encoding="utf-8")) == value
