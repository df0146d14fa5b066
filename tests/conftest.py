"""What all tests share: a cache of their own, the command line in this process, one thread, and a simulated clock."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import simulated_clock as simulation
from answers import Answer


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Packed data go to a folder of this session, never to the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSHIFT_CACHE_DIR", str(folder))
        patch.delenv("UPSHIFT_DATA_DIR", raising=False)
        yield folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Whatever number of cores the machine has, and later tests have what they had before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def simulated_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and tuning read a simulated clock: what they decide is the same on every machine.

    By the test's own patches: of two that undo the same thing on their own, the later one may put back what the
    earlier one had installed, and all tests after it would have that.
    """
    simulation.install_by(monkeypatch)


@pytest.fixture
def upshift_cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Answer]:
    """Call the command line in this process, in an empty folder."""
    from upshift.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["upshift", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call
