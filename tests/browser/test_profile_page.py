"""The page of a profile in a real browser: silent, self-contained, and no wider than a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import upshift

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page_file(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profile") / "out"
    page: Path = upshift.profile("digits", overrides=["batch_size=4"], out=out, num_steps=5).page
    return page


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_page_is_silent_and_fits(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(page_file.as_uri())
    assert [text for text in said if text != page_file.as_uri()] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg.chart").count() == 2 and page.locator(".bars").count() == 1
    for chart in page.locator("svg.chart, .bars").all():
        box = chart.bounding_box()
        assert box is not None and box["width"] > 250 and box["height"] > 40
    context.close()
