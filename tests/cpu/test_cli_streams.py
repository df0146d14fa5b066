"""stdout holds what was asked for and nothing else, whatever prints and wherever it leads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upshift.cli import stdout

SLOW = pytest.mark.slow
UPSHIFT = f'upshift() {{ {sys.executable} -m upshift "$@"; }}'
NOISY = """
import atexit, ctypes, os, subprocess, sys
from upshift.models.mlp import MLP
from upshift import DataConfig, Recipe

print("printed at import")
sys.__stdout__.write("written to the stream itself\\n")
os.write(1, b"written to the descriptor\\n")
subprocess.run(["echo", "printed by a child"], check=True)
ctypes.CDLL(None).printf(b"printed by native code\\n")
atexit.register(print, "printed at the end")

def loss(outputs, labels):
    print("printed by the loss")
    return outputs.square().mean()

RECIPE = Recipe(name="noisy", model=MLP, data=DataConfig(source="digits"), loss=loss, epochs=1, max_steps=1)
"""
PRINTED = [
    "printed at import",
    "written to the stream itself",
    "written to the descriptor",
    "printed by a child",
    "printed by native code",
    "printed by the loss",
]


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", f"{UPSHIFT}; {command}"],
        cwd=folder, capture_output=True, env=os.environ | environment, check=False,
    )  # fmt: skip


def test_stdout_is_one_json_document_whatever_user_code_prints(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    done = shell("upshift train noisy.py --plan baseline --out run --json --quiet", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "result.json").read_bytes())
    for text in [*PRINTED, "printed at the end"]:
        assert text in done.stderr.decode()


def test_text_for_people_has_no_prints_of_user_code_either(upshift_cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        NOISY.replace("sys.__stdout__.write", "sys.stdout.write").replace("atexit.", "#")
    )
    answer = upshift_cli("train", "noisy.py", "--plan", "baseline", "--out", "run", "--quiet")
    assert answer.code == 0 and answer.out.startswith("noisy") and "printed" not in answer.out
    assert "printed at import" in answer.err and "printed by the loss" in answer.err


def test_characters_that_stdout_cannot_hold_are_replaced(tmp_path: Path) -> None:
    code = (
        "import sys; from upshift.cli import stdout; stdout.prepare_streams();"
        "stdout.print_text('8×8'); stdout.print_json({'size': '8×8'}); stdout.finish()"
    )
    done = shell(f'{sys.executable} -c "{code}"', tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.isascii()
    text, document = done.stdout.decode().splitlines()
    assert text == "8?8"
    assert json.loads(document) == {"size": "8×8"}, "JSON loses nothing"


@pytest.mark.slow
def test_every_command_prints_in_ascii(tmp_path: Path) -> None:
    done = shell("upshift recipes", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "scikit-learn's 8?8 handwritten digits" in done.stdout.decode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
@pytest.mark.parametrize("arguments", ["--version", "--help", pytest.param("recipes", marks=SLOW)])
def test_a_full_stdout_is_one_line_with_exit_code_2(tmp_path: Path, arguments: str) -> None:
    done = shell(f"upshift {arguments} > /dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "error: stdout must take what is printed; received No space left on device; hint: redirect it to another file"
    ]


@pytest.mark.parametrize("arguments", ["--help", pytest.param("recipes", marks=SLOW)])
def test_a_reader_that_goes_away_is_no_error_to_show(tmp_path: Path, arguments: str) -> None:
    done = shell(f"upshift {arguments} | head -1", tmp_path)
    assert len(done.stdout.splitlines()) == 1 and done.stderr == b""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_do_not_matter(tmp_path: Path, closed: str) -> None:
    done = shell(f"upshift --version {closed}; echo $?; upshift fly {closed}; echo $?", tmp_path)
    assert done.stdout.decode().splitlines()[-1] == "2" and "0" in done.stdout.decode().splitlines()
    assert b"Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_with_closed_streams_keeps_what_is_printed_out_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY.replace("sys.__stdout__.write", "sys.stdout.write"))
    done = shell("upshift train noisy.py --plan baseline --out run >&- 2>&-", tmp_path)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "result.json").read_bytes())["steps"] == 1
    for file in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
        assert b"printed" not in file.read_bytes() or file.name.startswith("events"), file


def test_a_name_whose_bytes_are_no_text_is_written_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"run_dir": os.fsdecode(b"caf\xe9"), "name": "é"}
    stdout.print_json(value)
    assert json.loads(capsys.readouterr().out) == value


def test_stdout_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="inside"), stdout.kept_for_data():
        print("to stderr")
        os.system("echo of a child")
        raise ValueError("inside")
    print("to stdout")
    captured = capfd.readouterr()
    assert captured.out == "to stdout\n"
    assert sorted(captured.err.splitlines()) == ["of a child", "to stderr"]
