"""The report page: whole, escaped, and honest about what is missing."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from upshift.errors import ArtifactError
from upshift.workflows.report import report

HOSTILE = "<script>alert('1')</script>\"&$x^2 \u202e\x00\ud800 中"
VOID = {"meta", "link", "img", "br", "hr", "col"}


def result(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "recipe": "shapes",
        "variant": "fast",
        "seed": 7,
        "num_parameters": 1234,
        "epochs": 3,
        "steps": 30,
        "train_seconds": 6.1,
        "samples_per_second": 4210.4,
        "metrics": {"accuracy": 0.985, "loss": 0.0512},
        "run_dir": "runs/shapes-20260301-101500",
        "data": {"kind": "image", "input_shape": [1, 4, 4], "num_classes": 2, "num_train": 600, "num_test": 200},
        "command": ["upshift", "run", "shapes", "--seed", "7"],
        **changes,
    }


def optimize(**changes: Any) -> dict[str, Any]:
    eager = {"name": "eager", "verdict": "accepted", "reason": "the reference", "speedup": 1.0, "latency_ms_p50": 0.9}
    chosen = {
        "name": "openvino",
        "verdict": "chosen",
        "reason": "the fastest proven",
        "latency_ms_p50": 0.21,
        "speedup": 4.2,
        "speedup_interval": [3.9, 4.5],
        "accuracy": 0.985,
        "accuracy_drop": 0.0,
        "accuracy_drop_upper": 0.001,
    }
    failed = {"name": "compile", "verdict": "failed", "reason": "no compiler <here>"}
    return {
        "artifact": "runs/a/artifact",
        "backend": "openvino",
        "latency_ms_p50": 0.21,
        "eager_latency_ms_p50": 0.9,
        "speedup": 4.2,
        "speedup_interval": [3.9, 4.5],
        "accuracy_drop": 0.0,
        "max_drop": 0.005,
        "batch_size": 1,
        "candidates": [eager, chosen, failed],
        **changes,
    }


def evaluation(num_classes: int = 2, *, label: str = "class", png: str | None = None) -> dict[str, Any]:
    labels = [f"{label} {index}" for index in range(num_classes)]
    matrix = [[97 if row == column else 1 for column in range(num_classes)] for row in range(num_classes)]
    per_class = [{"label": name, "precision": 0.97, "recall": 0.97, "f1": 0.97, "support": 100} for name in labels]
    mistake = {"row": 3, "label": labels[0], "predicted": labels[1], "probability": 0.912, "png": png}
    return {
        "version": 1,
        "split": "test",
        "num_samples": 200,
        "metrics": {"accuracy": 0.985, "loss": 0.0512, "calibration_error": 0.02},
        "labels": labels,
        "confusion_matrix": matrix,
        "per_class": per_class,
        "calibration": [
            {"confidence": 0.95, "accuracy": 0.96, "count": 150},
            {"confidence": None, "accuracy": None, "count": 0},
        ],
        "mistakes": [mistake],
    }


def metrics(num_lines: int = 30) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "epoch": 0,
            "loss": 1 / step,
            "accuracy": 1 - 1 / (step + 1),
            "learning_rate": 0.1,
            "samples_per_second": 100.0,
        }
        for step in range(1, num_lines + 1)
    ]
    lines[-1] |= {"eval_split": "test", "eval_accuracy": 0.985, "eval_loss": 0.0512}
    return lines


def write_run(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        many = name.endswith("l")
        text = "".join(json.dumps(line) + "\n" for line in content) if many else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def whole_run(folder: Path, **changes: Any) -> Path:
    recipe = {"name": "shapes", "batch_size": 64, "epochs": 3, "optimizer": {"name": "sgd", "lr": 0.05}}
    return write_run(
        folder,
        {
            "recipe.json": {"recipe": recipe, "model_spec": {"factory": "shapes:Net", "args": {"width": 8}}},
            "plan.json": {"device": "cpu", "precision": "fp32", "version": 1},
            "result.json": result(optimize=optimize(), **changes),
            "evaluation.json": evaluation(),
            "metrics.jsonl": metrics(),
        },
    )


def repr_of(value: object) -> str:
    return repr(value)[:16]


def page_of(run: Path) -> str:
    return report(run).read_text(encoding="utf-8")


def words(page: str) -> str:
    """The text that a reader sees, white space made single."""
    body = page[page.index("<body") :]
    text = re.sub(r"<[^>]+>", " ", body)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#x27;", "'"), ("&amp;", "&")):
        text = text.replace(entity, character)
    return re.sub(r"\s+", " ", text.replace("\u00a0", " "))


class Structure(HTMLParser):
    """Checks that every element is closed, and collects ids and tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def structure(page: str) -> Structure:
    parsed = Structure()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    return parsed


def test_the_page_says_the_result_in_one_sentence(tmp_path: Path) -> None:
    page = page_of(whole_run(tmp_path / "shapes-20260301-101500"))
    said = "Trained in 6.1 s to 98.5 % accuracy on 200 test images; inference 4.2× faster (3.9–4.5×) with OpenVINO, "
    assert f"{said}accuracy unchanged." in words(page)
    assert "1 March 2026, 10:15" in page
    assert "fast variant" in page


def test_the_page_is_well_formed_with_every_section(tmp_path: Path) -> None:
    page = page_of(whole_run(tmp_path / "run"))
    tags = [tag for tag, _ in structure(page).tags]
    headings = re.findall(r"<h2>([^<]*)</h2>", page)
    assert headings == [
        "What was trained",
        "How training went",
        "How good the model is on the test split",
        "Time and throughput",
        "Inference",
        "How to reproduce",
    ]
    assert tags.count("h1") == 1
    assert tags.count("svg") == 6


def test_the_page_forbids_and_names_no_request(tmp_path: Path) -> None:
    page = page_of(whole_run(tmp_path / "run"))
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert not re.search(r"https?://|//\w+\.", page)
    assert "<script" not in page


def test_candidates_are_listed_with_verdict_and_reason(tmp_path: Path) -> None:
    text = words(page_of(whole_run(tmp_path / "run")))
    assert "torch.compile ! failed" in text
    assert "no compiler <here>" in text
    assert "at most 0.10" in text


def test_names_of_others_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run", recipe_description=HOSTILE, notes=[HOSTILE])
    changed = result(
        recipe=HOSTILE,
        variant=HOSTILE,
        run_dir=HOSTILE,
        notes=[HOSTILE],
        command=[HOSTILE],
        optimize=optimize(artifact=HOSTILE, candidates=[{"name": HOSTILE, "verdict": HOSTILE, "speedup": 2.0}]),
        environment={"cpu": HOSTILE, "packages": {HOSTILE: HOSTILE}, "accelerator": {"name": HOSTILE}},
        target={HOSTILE: 1},
    )
    recipe = {"recipe": {"stages": [{"epochs": 1, "freeze": [HOSTILE]}]}, "model_spec": {"factory": HOSTILE}}
    plan = {HOSTILE: HOSTILE}
    write_run(run, {"result.json": changed, "recipe.json": recipe, "plan.json": plan})
    write_run(run, {"evaluation.json": {**evaluation(label=HOSTILE), "split": HOSTILE}})
    page = page_of(run)
    structure(page)
    assert "<script" not in page
    assert "\x00" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("evaluation.json", ["Confusion matrix", "Each class", "Calibration:", "Mistakes it is most sure of"]),
        ("metrics.jsonl", ["How training went", "Throughput while training"]),
        ("plan.json", ["Plan", "precision"]),
    ],
)
def test_a_missing_file_leaves_its_section_out(tmp_path: Path, missing: str, gone: list[str]) -> None:
    run = whole_run(tmp_path / "run")
    whole = words(page_of(run))
    assert all(part in whole for part in gone)
    (run / missing).unlink()
    page = page_of(run)
    structure(page)
    text = words(page)
    assert not any(part in text for part in gone)
    assert "98.5 % accuracy on 200 test images" in text
    assert len(re.findall("<h2>", page)) == 6 - (missing == "metrics.jsonl")


def test_the_least_run_makes_a_page(tmp_path: Path) -> None:
    least = {"version": 1, "recipe": "a", "data": {}, "metrics": {}}
    page = page_of(write_run(tmp_path / "run", {"recipe.json": {}, "result.json": least}))
    structure(page)
    assert "None" not in words(page)
    assert "nan" not in words(page)


@pytest.mark.parametrize(
    "value", [None, True, "text", [], {}, [1], {"a": [1]}, -1, 10**400, 1e308, [None, 3], [["x"]]], ids=repr_of
)
def test_values_of_unexpected_type_are_left_out(tmp_path: Path, value: Any) -> None:
    changed = {key: value for key in result(optimize=1, notes=1, environment=1, target=1) if key != "version"}
    run = write_run(tmp_path / "run", {"recipe.json": {"recipe": value}, "result.json": {"version": 1, **changed}})
    write_run(run, {"evaluation.json": dict.fromkeys(evaluation(), value), "plan.json": {"x": value}})
    write_run(run, {"metrics.jsonl": [dict.fromkeys(line, value) for line in metrics(3)]})
    page = page_of(run)
    structure(page)
    plan_is_shown = isinstance(value, str | bool) or value == -1
    headings = re.findall(r"<h2>([^<]*)</h2>", page)
    assert headings == [*(["What was trained"] if plan_is_shown else []), "How to reproduce"]
    shown = words(page).replace(str(run), "").replace("Plan x -1", "")
    assert not re.search(r"\b(None|nan|inf|True)\b|[\[\]{}]|e\+?308|000000|[-−]1\b", shown)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", '{"version": 1, "spl'),
        ("evaluation.json", "garbage"),
        ("recipe.json", "{"),
        ("plan.json", "[1]"),
        ("result.json", '{"version": 1}'),
        ("result.json", ""),
    ],
)
def test_a_damaged_record_is_named_and_the_page_that_was_there_is_kept(tmp_path: Path, name: str, content: str) -> None:
    run = whole_run(tmp_path / "run")
    good = page_of(run)
    (run / name).write_text(content)
    with pytest.raises(ArtifactError, match=re.escape(str(run / name))):
        report(run)
    assert (run / "report.html").read_text(encoding="utf-8") == good


def test_kept_eager_is_said_and_no_speedup_claimed(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    kept = optimize(backend="eager", speedup=1.0, speedup_interval=[1.0, 1.0])
    write_run(run, {"result.json": result(optimize=kept)})
    text = words(page_of(run))
    assert "nothing was proven to run faster than plain PyTorch" in text
    assert "Inference speedup" not in text


@pytest.mark.parametrize(("drop", "said"), [(0.0028, "0.28 points lower"), (-0.01, "1.00 points higher")])
def test_a_change_of_accuracy_is_said(tmp_path: Path, drop: float, said: str) -> None:
    run = whole_run(tmp_path / "run")
    write_run(run, {"result.json": result(optimize=optimize(accuracy_drop=drop))})
    assert f"accuracy {said}" in words(page_of(run))


def test_an_unmeasured_drop_is_not_called_unchanged(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    write_run(run, {"result.json": result(optimize=optimize(accuracy_drop=None))})
    assert "unchanged" not in words(page_of(run))


def test_few_classes_have_numbers_and_many_a_picture(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    few = page_of(write_run(run, {"evaluation.json": evaluation(20)}))
    many = page_of(write_run(run, {"evaluation.json": evaluation(100)}))
    assert 'class="confusion upright"' in few
    assert 'class="confusion' not in many
    assert "10 of 9,900 pairs" in words(many)
    assert "All 100 classes" in words(many)
    structure(many)


def test_a_mistake_is_shown_as_a_picture_with_words_for_it(tmp_path: Path) -> None:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (8, 8), 200).save(stream, "png")
    png = base64.b64encode(stream.getvalue()).decode()
    run = write_run(whole_run(tmp_path / "run"), {"evaluation.json": evaluation(png=png)})
    images = [attributes for tag, attributes in structure(page_of(run)).tags if tag == "img"]
    assert [image["src"] for image in images] == [f"data:image/png;base64,{png}"]
    assert images[0]["alt"] == "Test sample 3: true class 0, predicted class 1"
    assert images[0]["class"] == "pixels"


@pytest.mark.parametrize("png", ['x" onerror="alert(1)', "PHN2Zz4=", "not base64", "\ud800"])
def test_a_picture_that_is_no_png_is_not_embedded(tmp_path: Path, png: str) -> None:
    run = write_run(whole_run(tmp_path / "run"), {"evaluation.json": evaluation(png=png)})
    page = page_of(run)
    assert "<img" not in page
    assert "Mistakes it is most sure of" in page


def test_thinned_curves_say_so(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    assert "logged values in a row" not in words(page_of(run))
    write_run(run, {"metrics.jsonl": metrics(2000)})
    assert "mean of 13 logged values in a row" in words(page_of(run))


def test_the_same_records_make_the_same_bytes(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "shapes-20260301-101500")
    assert report(run).read_bytes() == report(run, out=tmp_path / "again.html").read_bytes()


def test_a_folder_can_be_named_to_write_into(tmp_path: Path) -> None:
    assert report(whole_run(tmp_path / "run"), out=tmp_path) == tmp_path / "report.html"


def test_matplotlib_settings_are_left_as_they_were(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    page_of(whole_run(tmp_path / "run"))
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("files", [{}, {"recipe.json": {}}, {"recipe.json": {}, "result.json": {"version": 99}}])
def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", files)
    with pytest.raises(ArtifactError):
        report(run)
    assert not (run / "report.html").exists()


def test_every_backend_is_called_as_its_makers_do() -> None:
    from upshift.inference.backend import backends
    from upshift.reports.candidates import TITLES

    assert set(TITLES) == set(backends())


def test_what_the_training_loss_includes_and_the_evaluation_does_not_is_said(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    assert "label smoothing" not in words(page_of(run)) and "augmented" not in words(page_of(run))
    recipe = {"label_smoothing": 0.05, "augment": {"horizontal_flip": True, "normalize": True}, "ema_decay": 0.99}
    text = words(page_of(write_run(run, {"recipe.json": {"recipe": recipe}})))
    assert "The training loss includes label smoothing of 0.05, the other does not." in text
    assert "Training samples are augmented, those that are evaluated are not." in text
    assert "What is evaluated are the averaged weights (EMA)." in text


def test_the_time_of_evaluation_says_what_was_evaluated(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run", evaluation_seconds=0.29)
    said = "0.29 s in all: 1 on the test split while training, and the final one on 200 test images"
    assert said in words(page_of(run))
    write_run(run, {"metrics.jsonl": []})
    assert "0.29 s on 200 test images" in words(page_of(run))


def test_the_device_and_the_version_of_upshift_are_named(tmp_path: Path) -> None:
    facts = {"cpu": "A Processor", "packages": {"upshift": "0.1.0", "torch": "2.13.0"}}
    text = words(page_of(whole_run(tmp_path / "run", device="cpu", environment=facts)))
    assert "Device cpu (A Processor)" in text and "upshift 0.1.0" in text


def test_an_interval_that_ends_at_all_of_them_says_100_percent(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    metrics_of_all = {"metrics": {"accuracy": 0.985, "top5_accuracy": 1.0}, "num_samples": 359}
    write_run(run, {"evaluation.json": evaluation() | metrics_of_all})
    assert "Accuracy, top 5 100 % 98.9–100 %" in words(page_of(run))


def test_a_run_from_a_python_program_says_why_there_is_no_command(tmp_path: Path) -> None:
    assert "started from a Python program" in words(page_of(whole_run(tmp_path / "run", command=[])))
    assert "started from a Python program" not in words(page_of(whole_run(tmp_path / "other")))
