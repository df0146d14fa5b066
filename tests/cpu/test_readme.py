"""The README's example and commands do what the README says: they are taken from it and run as they are written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import upshift
from verbs_of_the_cli import VERBS, page_of

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def code_blocks(language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    return [block for of, block in blocks if of == language]


def commands() -> list[list[str]]:
    """Every `upshift …` line of the blocks without a language, without what it printed."""
    lines = [line.removeprefix("$ ") for block in code_blocks("") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if re.match(r"(\S*/)?upshift ", line)]


@pytest.fixture
def folder_of_pictures(tmp_path: Path) -> Path:
    """`pictures/<class>/<n>.png` of odd sizes, which the README takes for granted."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(100):
            height, width = random.integers(20, 50, size=2)
            pixels = np.clip(random.normal(colour, 40, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def run_in(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "UPSHIFT_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished


@pytest.mark.slow
def test_example_trains_a_model_of_its_own_on_pictures_of_its_own(folder_of_pictures: Path) -> None:
    (example,) = code_blocks("python")
    (folder_of_pictures / "mine.py").write_text(example, encoding="utf-8")
    finished = run_in(folder_of_pictures, sys.executable, "mine.py")
    metrics, prediction = finished.stdout.splitlines()[:2]
    assert re.search(r"'accuracy': (1\.0|0\.9)", metrics)
    assert prediction.startswith("('blue', 'green', 'red') tensor(")
    assert (folder_of_pictures / "mine" / "report.html").is_file()


@pytest.mark.slow
def test_command_on_pictures_of_ones_own_runs(folder_of_pictures: Path) -> None:
    (command,) = [words for words in commands() if "data.source=pictures" in words]
    assert command[:2] == ["upshift", "run"]
    # Training is what the command adds to the example, which has optimized already; it takes a tenth of the time.
    words = ["train", *command[2:], "--set", "epochs=1"]
    finished = run_in(folder_of_pictures, sys.executable, "-m", "upshift", *words)
    assert "on 60 test images" in finished.stdout


def test_version_command_prints_the_version(tmp_path: Path) -> None:
    (command,) = [words for words in commands() if "--version" in words]
    finished = run_in(tmp_path, sys.executable, "-m", "upshift", *command[1:])
    assert finished.stdout == f"upshift {upshift.__version__}\n"


def test_every_command_shown_has_only_options_that_exist() -> None:
    shown = commands()
    assert len(shown) >= 3
    for _, verb, *words in shown:
        if verb == "--version":
            continue
        command = VERBS[verb] if verb in VERBS else VERBS[f"{verb} {words[0]}"]
        known = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("-")} <= known


def test_table_of_verbs_is_that_of_the_program() -> None:
    rows = re.findall(
        r"^\| \[`upshift ([a-z]+(?: [a-z]+)*)[^`]*`\]\((docs/[\w-]+\.md)\) \| [^|]* \| ([^|]*)\|$",
        TEXT,
        flags=re.MULTILINE,
    )
    assert [verb for verb, _, _ in rows] == list(VERBS)
    for verb, page, python in rows:
        assert page == f"docs/{page_of(verb)}.md"
        name = verb.split()[-1]
        assert python.strip() == (f"`upshift.{name}`" if name in upshift.__all__ else "")


def test_make_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make (\w+)", TEXT, flags=re.MULTILINE))
    assert named >= {"run", "test"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_python_version_is_that_of_the_package() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"Python {required.removeprefix('>=')} or newer" in TEXT


def test_picture_is_there_and_small_enough_to_load() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert len(pictures) == 1
    assert (ROOT / pictures[0]).stat().st_size < 300_000
