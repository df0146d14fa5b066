"""The report in a real browser: silent, self-contained, and readable on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from upshift.workflows.report import report

pytestmark = pytest.mark.slow

HOSTILE = "<img src=http://upshift.invalid/x onerror=alert(1)><script>alert(1)</script>" + "long" * 40

# The lowest contrast (WCAG 2.2, 1.4.3) of any text against what is painted behind it.
LOWEST_CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = (element) => {
    const layers = [];
    for (let node = element; node; node = node.parentElement) layers.push(rgba(getComputedStyle(node).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const luminance = (color) => {
    const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = color.slice(0, 3).map(value => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let lowest = [99, 'no text'];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), below = behind(element);
    const color = over(rgba(element.closest('svg') ? style.fill : style.color), below);
    const [low, high] = [luminance(color), luminance(below)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, text];
  }
  return lowest;
}"""


def candidate(name: str, verdict: str, speedup: float | None, **known: Any) -> dict[str, Any]:
    interval = None if speedup is None else [speedup * 0.9, speedup * 1.1]
    reason = f"a reason of some length, with a name in it: {HOSTILE}"
    return {
        "name": name,
        "verdict": verdict,
        "reason": reason,
        "speedup": speedup,
        "speedup_interval": interval,
        **known,
    }


def png() -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 60, 60)).save(stream, "png")
    return base64.b64encode(stream.getvalue()).decode()


def write_run(folder: Path) -> Path:
    labels = [HOSTILE, *(str(index) for index in range(1, 10))]
    picture = png()
    measured = {"latency_ms_p50": 0.2, "accuracy": 0.97, "accuracy_drop": 0.001, "accuracy_drop_upper": 0.008}
    result = {
        "version": 1,
        "recipe": HOSTILE,
        "variant": "fast",
        "seed": 0,
        "num_parameters": 94_186,
        "epochs": 20,
        "steps": 2000,
        "train_seconds": 61.0,
        "samples_per_second": 4210.0,
        "metrics": {"accuracy": 0.97, "loss": 0.1},
        "data": {"source": HOSTILE, "kind": "image", "input_shape": [1, 8, 8], "num_classes": 10, "num_test": 360},
        "notes": [HOSTILE],
        "command": ["upshift", "run", HOSTILE],
        "run_dir": f"runs/{HOSTILE}",
        "resumed_from_step": 700,
        "environment": {"cpu": HOSTILE, "packages": {"torch": "2.13.0"}},
        "optimize": {
            "artifact": f"runs/{HOSTILE}/artifact",
            "backend": "openvino",
            "speedup": 4.2,
            "speedup_interval": [3.9, 4.5],
            "accuracy_drop": 0.001,
            "max_drop": 0.005,
            "candidates": [
                candidate("eager", "accepted", 1.0, **measured),
                candidate("openvino", "chosen", 4.2, **measured),
                candidate(HOSTILE, "refused", 4.9, **measured),
                candidate("compile", "failed", None),
            ],
        },
    }
    evaluation = {
        "split": "test",
        "num_samples": 360,
        "labels": labels,
        "confusion_matrix": [
            [300 if row == column else (row * column) % 7 for column in range(10)] for row in range(10)
        ],
        "per_class": [{"label": label, "precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 36} for label in labels],
        "calibration": [{"confidence": 0.95, "accuracy": 0.96, "count": 300}],
        "mistakes": [{"row": 1, "label": HOSTILE, "predicted": "1", "probability": 0.9, "png": picture}] * 5,
    }
    lines = [
        {"step": step, "loss": 2 / step, "accuracy": 0.9, "learning_rate": 0.1, "samples_per_second": 4000.0}
        for step in range(1, 2001)
    ]
    for line in lines[99::100]:
        line |= {"eval_split": "test", "eval_loss": 0.2, "eval_accuracy": 0.95}
    folder.mkdir()
    recipe = {"recipe": {"name": HOSTILE, "batch_size": 64}, "model_spec": {"factory": HOSTILE}}
    for name, content in (("recipe", recipe), ("result", result), ("evaluation", evaluation)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(write_run(tmp_path_factory.mktemp("runs") / "run")).as_uri()


def opened(browser: Any, address: str, **options: Any) -> Any:
    page = browser.new_page(**options)
    page.goto(address)
    return page


def test_the_page_is_silent_and_asks_for_nothing_but_itself(browser: Any, address: str) -> None:
    page = browser.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_load_state("networkidle")
    assert heard == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
    page.close()


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, address: str, width: int) -> None:
    page = opened(browser, address, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser: Any, address: str, scheme: str) -> None:
    page = opened(browser, address, color_scheme=scheme)
    contrast, text = page.evaluate(LOWEST_CONTRAST)
    assert contrast >= 4.5, text
    page.close()


def test_dark_mode_is_dark_and_paper_is_white(browser: Any, address: str) -> None:
    page = opened(browser, address, color_scheme="dark")
    background = "getComputedStyle(document.documentElement).backgroundColor"
    assert max(int(part) for part in page.evaluate(background)[4:-1].split(",")) < 60
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert page.evaluate(LOWEST_CONTRAST)[0] >= 4.5
    page.close()


def test_the_page_prints(browser: Any, address: str) -> None:
    page = opened(browser, address)
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_ids_are_unique_and_what_they_name_is_there(browser: Any, address: str) -> None:
    page = opened(browser, address)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert ids and len(ids) == len(set(ids))
    used = page.evaluate(
        "[...document.querySelectorAll('[clip-path], use')].map(element => element.getAttribute('clip-path')"
        " || element.getAttribute('xlink:href') || element.getAttribute('href'))"
    )
    assert {reference.removeprefix("url(").strip("#)") for reference in used} <= set(ids)
    page.close()


def test_what_is_shown_is_also_told(browser: Any, address: str) -> None:
    page = opened(browser, address)
    silent = "[...document.querySelectorAll('img, svg[role=img], [role=region]')].filter(element => !(element.alt || "
    silent += "element.getAttribute('aria-label'))).length"
    assert page.evaluate(silent) == 0
    assert page.evaluate("document.querySelectorAll('table').length") == page.locator("table > caption").count()
    assert page.evaluate("[...document.querySelectorAll('th')].filter(cell => !cell.scope).length") == 0
    assert page.evaluate("document.documentElement.lang") == "en"
    page.close()


def test_no_text_of_a_chart_lies_outside_of_it(browser: Any, address: str) -> None:
    page = opened(browser, address, viewport={"width": 360, "height": 800})
    outside = page.evaluate(
        """[...document.querySelectorAll('svg.chart text')].filter(text => {
          const inner = text.getBoundingClientRect(), outer = text.closest('svg').getBoundingClientRect();
          return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.top < outer.top - 1
            || inner.bottom > outer.bottom + 1;
        }).map(text => text.textContent)"""
    )
    assert outside == []
    page.close()


def test_a_verdict_and_its_reason_are_read_on_a_phone_without_scrolling(browser: Any, address: str) -> None:
    page = opened(browser, address, viewport={"width": 360, "height": 800})
    rights = page.evaluate(
        "[...document.querySelectorAll('.candidates :is(th[scope=row], td)')].map(cell => {"
        " const box = cell.getBoundingClientRect(); return [cell.textContent.slice(0, 20), box.left, box.right]; })"
    )
    assert len(rights) == 4 * 7
    assert [cell for cell in rights if cell[1] < 0 or cell[2] > 360] == []
    labels = page.evaluate(
        "[...document.querySelectorAll('.candidates td.number')]"
        ".map(cell => getComputedStyle(cell, '::before').content)"
    )
    assert set(labels) == {'"Latency, ms"', '"Speedup"', '"Accuracy"', '"Drop, points"'}
    page.close()


def test_no_line_of_the_candidates_chart_crosses_a_name(browser: Any, address: str) -> None:
    page = opened(browser, address)
    names, lines = page.evaluate(
        """(() => {
          const chart = document.querySelector('svg.chart[aria-label^="Speedup"]');
          const boxes = (selector) => [...chart.querySelectorAll(selector)].map(element => {
            const box = element.getBoundingClientRect();
            return [box.left, box.right, box.top, box.bottom, element.textContent.trim()];
          });
          return [boxes('text'), boxes('path, line').filter(box => box[1] - box[0] < 3 && box[3] - box[2] > 20)];
        })()"""
    )
    assert len(lines) >= 4, "the scales have upright lines"
    crossed = [
        name[4] for name in names for line in lines
        if name[0] < line[0] < name[1] and name[2] < line[3] and line[2] < name[3]
    ]  # fmt: skip
    assert crossed == []
    page.close()


def test_no_heading_ends_a_printed_page_and_no_table_is_split(browser: Any, address: str) -> None:
    page = opened(browser, address)
    page.emulate_media(media="print")
    loose = page.evaluate(
        "[...document.querySelectorAll('h2, h3, caption')]"
        ".filter(element => getComputedStyle(element).breakAfter !== 'avoid').map(element => element.textContent)"
    )
    assert loose == []
    split = page.evaluate(
        "[...document.querySelectorAll('.scroll, figure:not(.charts), pre, svg.chart')]"
        ".filter(element => getComputedStyle(element).breakInside !== 'avoid')"
        ".map(element => element.outerHTML.slice(0, 80))"
    )
    assert split == []
    page.close()


def test_blocks_fill_two_columns_of_like_height(browser: Any, address: str) -> None:
    page = opened(browser, address, viewport={"width": 1280, "height": 900})
    bottoms = page.evaluate(
        """(() => {
          const flow = document.querySelector('.flow'), left = flow.getBoundingClientRect().left;
          const columns = {};
          for (const child of flow.children) {
            const box = child.getBoundingClientRect(), column = Math.round(box.left - left);
            columns[column] = Math.max(columns[column] ?? 0, box.bottom - flow.getBoundingClientRect().top);
          }
          return Object.values(columns);
        })()"""
    )
    assert len(bottoms) == 2
    assert min(bottoms) >= 0.6 * max(bottoms)
    page.close()
