"""docs/ says what is so: options, links, fields of the records, and what is printed for bad input."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import upshift
from upshift.cli import app
from upshift.core.records import RunFolder, read_jsonl
from upshift.data.config import AugmentConfig
from upshift.errors import UpshiftError
from upshift.inference.backend import backends
from upshift.inference.config import SearchConfig
from upshift.tuning.plan import BASELINE, Plan, load_plan
from verbs_of_the_cli import VERBS, page_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
ALWAYS = {"--help", "-h"}


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """A section of a page, from its heading to the next heading of any level."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    assert match is not None, title
    return match.group(1)


def first_cells(text: str) -> list[str]:
    """The names in backticks of the first column of all tables."""
    rows = re.findall(r"^\| (`[^|]*`) \|", text, flags=re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


# --- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_options_of_a_verb_are_those_of_its_page_with_their_defaults(verb: str) -> None:
    rows = re.findall(r"^\| ((?:`-[^`]*`(?:, )?)+) \| ([^|]*) \|", page(page_of(verb)), flags=re.MULTILINE)
    documented = {}
    for names, default in rows:
        for name in re.findall(r"`(-[\w-]+)[^`]*`", names):
            documented[name] = default.strip()
    options = {name: option for option in VERBS[verb].params for name in option.opts if name.startswith("-")}
    assert set(documented) == set(options) - ALWAYS
    for name, default in documented.items():
        if options[name].is_flag:
            assert default == "off"
        elif options[name].default is not None:
            assert default == f"`{options[name].default}`"
        else:
            assert not re.fullmatch(r"`[\d.]+`", default), name


def test_every_verb_has_a_page_and_the_index_names_every_page() -> None:
    index = page("index")
    assert {path.stem for path in DOCS.glob("*.md")} >= set(map(page_of, VERBS))
    for path in DOCS.glob("*.md"):
        assert path.stem == "index" or f"({path.name})" in index


# --- links and examples ------------------------------------------------------------------------------


def links() -> Iterator[tuple[Path, str]]:
    for path in PAGES:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+://", target):
                yield path, target


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_internal_links_lead_somewhere() -> None:
    assert len(list(links())) > 50
    for path, target in links():
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{path.name}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_of_a_page_compiles(path: Path) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for block in (block for language, block in blocks if language == "python"):
        compile(block, str(path), "exec")
        for name in re.findall(r"\bupshift\.(\w+)", block):
            assert name in upshift.__all__, name


def shown_errors() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        yield from re.findall(r"^\$ upshift (.*)\n(error: .*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_errors_that_are_shown_are_those_that_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("red", "green"):
        folder = tmp_path / "pictures" / "train" / name
        folder.mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (40, 40), name).save(folder / f"{number}.png")
    broken = tmp_path / "pictures" / "train" / "red" / "3.png"
    broken.write_bytes(broken.read_bytes()[:80])
    shown = list(shown_errors())
    assert len(shown) >= 3
    for command, line in shown:
        finished = CliRunner().invoke(app, shlex.split(command))
        assert isinstance(finished.exception, UpshiftError)
        assert f"error: {finished.exception}" == line
        assert finished.exception.exit_code == 2


# --- fields of the records -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A real run of one epoch, optimized with no backend but eager, which is quick."""
    folder = tmp_path_factory.mktemp("docs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSHIFT_CACHE_DIR", str(folder.parent / "cache"))
        upshift.train("digits", overrides=["epochs=1"], out=folder)
        upshift.optimize(folder, candidates=["eager"], budget_seconds=1)
    return RunFolder(folder)


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def fields_in(title: str) -> list[str]:
    return first_cells(section(page("run-folder"), title))


def named(title: str, field: str) -> set[str]:
    """The names in backticks of a field's row, in its second column and before any explanation."""
    row = re.search(rf"^\| `{field}` \| (.*) \|$", section(page("run-folder"), title), flags=re.MULTILINE)
    assert row is not None
    return set(re.findall(r"`(\w+)`", row.group(1)))


def test_files_of_a_run_are_the_documented_ones(run_folder: RunFolder) -> None:
    upshift.report(run_folder.path)
    documented = {name.split("/")[0] for name in first_cells(section(page("run-folder"), "The run folder"))}
    assert {path.name for path in run_folder.path.iterdir()} == documented


def test_fields_of_the_result_are_the_documented_ones(run_folder: RunFolder) -> None:
    result = read(run_folder.result)
    optimized = result["optimize"]
    documented = fields_in("result.json")
    optimize_start = documented.index("artifact")
    candidate_start = documented.index("name", optimize_start)
    assert set(documented[:optimize_start]) == set(result)
    assert set(documented[optimize_start:candidate_start]) == set(optimized)
    eager = next(candidate for candidate in optimized["candidates"] if candidate["name"] == "eager")
    assert set(documented[candidate_start:]) == set(eager)
    assert named("result.json", "metrics") == set(result["metrics"])
    assert named("result.json", "data") == set(result["data"])
    assert named("result.json", "environment") == set(result["environment"])


def test_fields_of_the_metrics_are_the_documented_ones(run_folder: RunFolder) -> None:
    last = list(read_jsonl(run_folder.metrics))[-1]
    assert set(fields_in("metrics.jsonl")) == set(last)


def test_fields_of_the_evaluation_are_the_documented_ones(run_folder: RunFolder) -> None:
    evaluation = read(run_folder.evaluation)
    assert set(fields_in("evaluation.json")) == set(evaluation)
    assert named("evaluation.json", "per_class") == set(evaluation["per_class"][0])
    assert named("evaluation.json", "calibration") == set(evaluation["calibration"][0])
    assert named("evaluation.json", "mistakes") == set(evaluation["mistakes"][0])


def test_fields_of_the_recipe_are_the_documented_ones(run_folder: RunFolder) -> None:
    recipe = read(run_folder.recipe)
    assert set(fields_in("recipe.json")) == set(recipe)
    assert named("recipe.json", "origin") == {*recipe["origin"], "RECIPE"}
    assert named("recipe.json", "model_spec") == set(recipe["model_spec"])
    assert named("recipe.json", "preprocessing") == set(recipe["preprocessing"])
    assert named("recipe.json", "data_info") == set(recipe["data_info"])


def test_fields_of_the_manifest_are_the_documented_ones(run_folder: RunFolder) -> None:
    manifest = read(run_folder.artifact / "manifest.json")
    assert set(first_cells(section(page("artifact"), "manifest.json"))) == set(manifest)


def test_events_of_the_trials_are_the_documented_ones(run_folder: RunFolder) -> None:
    text = section(page("run-folder"), "trials.jsonl")
    for trial in read_jsonl(run_folder.trials):
        assert f'"{trial["event"]}"' in text
        if trial["event"] == "rounds":
            assert set(trial) - {"event"} == set(re.findall(r"`(\w+)`", text)) - {"candidate"}


def test_checkpoint_files_are_the_documented_ones(run_folder: RunFolder) -> None:
    text = section(page("run-folder"), "checkpoints/step-n/")
    (checkpoint,) = run_folder.checkpoints.iterdir()
    assert re.fullmatch(r"step-\d+", checkpoint.name)
    assert all(f"`{file.name}`" in text for file in checkpoint.iterdir())


# --- plans, data, backends -------------------------------------------------------------------------------


def test_fields_of_the_plan_are_the_documented_ones_with_their_baseline() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \| ([^|]+) \|", section(page("plan"), "Fields"), flags=re.MULTILINE)
    documented = {name: baseline for names, _, baseline in rows for name in re.findall(r"`(\w+)`", names)}
    assert list(documented) == [field.name for field in fields(Plan)]
    for name, baseline in documented.items():
        if baseline != "empty":
            assert json.loads(baseline) == getattr(BASELINE, name)


def test_plan_that_is_shown_is_one(tmp_path: Path) -> None:
    block = re.search(r"```json\n(.*?)```", page("plan"), flags=re.DOTALL)
    assert block is not None
    (tmp_path / "plan.json").write_text(block.group(1))
    shown = re.search(r"`upshift\.(Plan\([^`]*\))`", page("plan"))
    assert shown is not None
    assert load_plan(tmp_path / "plan.json") == eval(shown.group(1), {"Plan": Plan})


def test_augmentations_are_the_documented_ones_with_their_defaults() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", section(page("data"), "Augmentation"), flags=re.MULTILINE)
    documented = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    assert documented.keys() == {field.name for field in fields(AugmentConfig)}
    for name, default in documented.items():
        assert json.loads(default) == getattr(AugmentConfig(), name)


def test_backends_are_the_documented_ones() -> None:
    assert first_cells(section(page("optimize"), "The backends")) == list(backends())


def test_limit_of_a_candidate_is_the_documented_one() -> None:
    assert f"({SearchConfig().time_limit_seconds:.0f} s a step)" in page("optimize")
