"""A Chromium for the pages, of whose silence and look these tests are: without one they are skipped, and say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

REQUIRED = os.environ.get("UPSHIFT_CHROMIUM") == "required"
"""Whether a missing browser is a failure: CI sets it where it installs one."""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing(what: str) -> NoReturn:
    """Skip, or fail where the browser is required."""
    if REQUIRED:
        pytest.fail(f"needs {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def chromium_path() -> Path:
    """The executable: CHROMIUM, else `chromium` of the search path."""
    path = Path(os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium")
    if not path.is_file():
        missing(f"a Chromium at {path}; the variable CHROMIUM names another")
    return path


@pytest.fixture(scope="module")
def browser(chromium_path: Path) -> Iterator[Any]:
    """A running browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("the package playwright")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium_path, args=ARGUMENTS)
        yield running
        running.close()
