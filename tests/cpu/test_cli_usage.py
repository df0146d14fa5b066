"""A command line that cannot be served is answered by the rule, what was received, and what to write instead."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upshift.core.files import cache_folder, storage_errors
from upshift.errors import StorageError

Cli = Callable[..., Any]

WRONG: dict[tuple[str, ...], tuple[str, ...]] = {
    ("frob",): ("a command must be one of upshift; received 'frob'; hint: known: run, recipes, train, ",),
    ("trian", "digits"): ("received 'trian'; hint: did you mean 'train'?",),
    ("plan", "emitt"): ("a command must be one of upshift plan; received 'emitt'; hint: did you mean 'emit'?",),
    ("train",): ("upshift train must be given RECIPE; received none; hint: for example upshift train digits",),
    ("predict", "there"): ("upshift predict must be given FILE...; received none; hint: for example",),
    ("plan", "emit", "a"): ("upshift plan emit must be given --recipe; received none; hint: ", "--recipe digits"),
    ("train", "digits", "--out"): ("--out must be followed by its value; received none; hint: see upshift train",),
    ("--json",): ("must follow its name", "received --json; hint: as in upshift recipes --json",),
    ("plan", "--json"): ("received --json; hint: as in upshift plan emit --json",),
    ("recipes", "all", "more"): ("must be given nothing beyond its arguments; received all more; hint: ",),
    ("predict", "x", "y", "--top", "0"): ("--top must be at least 1; received 0; hint: leave it out for 3",),
    ("profile", "digits", "--steps", "0"): ("--steps must be at least", "received 0"),
    ("optimize", "x", "--max-drop", "3"): ("--max-drop must be at least 0 and below 1; received 3.0",),
    ("optimize", "x", "--budget", "-1"): ("--budget must be ", "received -1.0"),
    ("tune", "digits", "--budget", "-1"): ("--budget must be above 0 seconds; received -1.0",),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_a_wrong_command_line_is_answered_in_its_own_words(words: tuple[str, ...], upshift_cli: Cli) -> None:
    answer = upshift_cli(*words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1
    for said in WRONG[words]:
        assert said in answer.err


def test_no_help_of_a_command_is_cut_short(upshift_cli: Cli) -> None:
    answer = upshift_cli("--help")
    assert answer.code == 0 and "  profile " in answer.out and "..." not in answer.out.replace("[ARGS]...", "")


@pytest.mark.parametrize("columns", [40, 72, 120])
def test_the_list_of_recipes_stays_within_its_window(columns: int) -> None:
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "upshift", "recipes"]
    with subprocess.Popen(command, stdout=terminal, env=environment) as process:
        os.close(terminal)
        printed = b""
        while part := _read(reader):
            printed += part
    os.close(reader)
    lines = printed.decode().splitlines()
    assert process.returncode == 0 and max(map(len, lines)) <= columns
    words = " ".join(" ".join(lines).split())
    assert "digits" in words and "cifar10-simplecnn" in words and "[variants: fast]" in words


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's answer where the other end is closed
        return b""


def test_a_file_in_the_place_of_a_run_folder_is_told_to_be_one(upshift_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mn.npz").write_bytes(b"data")
    answer = upshift_cli("train", "digits", "--plan", "baseline", "--out", tmp_path / "mn.npz")
    assert answer.code == 2 and "which is a file; hint: name a folder" in answer.err and "--resume" not in answer.err
    assert (tmp_path / "mn.npz").read_bytes() == b"data"


def test_a_path_that_cannot_be_written_is_answered_by_what_names_another(tmp_path: Path) -> None:
    for path, named, other in (
        (tmp_path / "run" / "report.html", "--out", "UPSHIFT_CACHE_DIR"),
        (cache_folder() / "digits", "UPSHIFT_CACHE_DIR", "--out"),
    ):
        with pytest.raises(StorageError) as caught, storage_errors(path):
            raise PermissionError(13, "Permission denied", str(path))
        assert named in caught.value.hint and other not in caught.value.hint
