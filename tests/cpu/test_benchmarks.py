"""Each benchmark runs from its command line, on tiny data, and prints what a person and a script can read."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("bench_*.py"))


def write_images(path: Path, num_rows: int, mode: str, side: int) -> None:
    """A split in the layout of the hub, whose ten classes can be told apart by brightness."""
    rng = np.random.default_rng(num_rows)
    rows = []
    for index in range(num_rows):
        label = index % 10
        shape = (side, side) if mode == "L" else (side, side, 3)
        pixels = (label * 22 + rng.integers(0, 40, shape)).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        rows.append({"image": {"bytes": stream.getvalue(), "path": None}, "label": label})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([row["image"] for row in rows], kind), "label": [row["label"] for row in rows]})
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": [str(index) for index in range(10)]},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, mode, side in (("mnist", "L", 28), ("cifar10", "RGB", 32)):
        write_images(folder / name / "train.parquet", 260, mode, side)
        write_images(folder / name / "test.parquet", 60, mode, side)
    return folder


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run_script(name: str, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "UPSHIFT_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("UPSHIFT_DATA_DIR", None)
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cache,
        check=False,
    )


def parsed(finished: subprocess.CompletedProcess[str]) -> tuple[list[str], dict[str, Any]]:
    """The lines before the last, and the last as JSON."""
    assert finished.returncode == 0, finished.stderr
    *lines, last = finished.stdout.rstrip("\n").split("\n")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return lines, json.loads(last, parse_constant=refuse)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_tells_the_claim_and_the_common_options(name: str, tmp_path: Path) -> None:
    finished = run_script(name, tmp_path, "--help")
    assert finished.returncode == 0, finished.stderr
    for option in ("--quick", "--rounds", "--results"):
        assert option in finished.stdout


def test_startup_prints_a_table_and_one_line_of_json(tmp_path: Path) -> None:
    lines, document = parsed(run_script("bench_startup.py", tmp_path, "--quick"))
    assert any("upshift --help" in line for line in lines)
    assert set(document) == {"claim", "quick", "aims", "summary", "commit", "environment"}
    assert document["summary"]["upshift --help"]["median_seconds"] > 0
    assert document["aims"] == {"upshift --help under 0.3 s": None}  # nothing is claimed by a quick trial


@pytest.mark.slow
def test_training_throughput_trains_every_contender_to_about_the_same_loss(data_dir: Path, cache_dir: Path) -> None:
    script = ("bench_training_throughput.py", cache_dir, "--quick", "--data-dir", str(data_dir))
    lines, document = parsed(run_script(*script))
    for recipe in ("mnist-mlp", "cifar10-simplecnn"):
        contenders = document["summary"][recipe]
        assert {"the articles' loop", "resident tensors, by hand", "upshift"} <= set(contenders)
        expected = contenders["the articles' loop"]["mean_loss"]
        for facts in contenders.values():
            assert facts["samples_per_second"] > 0
            assert math.isclose(facts["mean_loss"], expected, rel_tol=0.1)
    assert any(line.startswith("upshift ") for line in lines)


@pytest.mark.slow
def test_peers_train_the_same_model_and_those_that_are_missing_are_told(data_dir: Path, cache_dir: Path) -> None:
    options = ("--quick", "--models", "mnist-mlp", "--peers", "articles,careful,keras-jax,upshift")
    lines, document = parsed(run_script("bench_training_peers.py", cache_dir, *options, "--data-dir", str(data_dir)))
    figures = document["summary"]["mnist-mlp"]
    for peer in ("articles", "careful", "upshift"):
        assert figures[peer]["samples_per_second"] > 0
        assert math.isclose(figures[peer]["mean_loss"], figures["articles"]["mean_loss"], rel_tol=0.1)
        # The steps are only a part of a whole job.
        assert figures[peer]["job_seconds"] > 0 and 0 < figures[peer]["job_share_of_peak"] < 1
    assert figures["upshift-again"]["num_jobs"] == 1
    is_installed = find_spec("keras") is not None and find_spec("jax") is not None
    (row,) = [line for line in lines if line.startswith("Keras on JAX")]
    assert ("not installed" in row) != is_installed
    assert set(document["aims"].values()) == {None}


@pytest.mark.slow
def test_peer_whose_process_ends_is_in_the_table_with_the_reason(
    data_dir: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("keras", "jax"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('a broken installation')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = ("--quick", "--models", "mnist-mlp", "--peers", "articles,keras-jax,upshift")
    lines, document = parsed(run_script("bench_training_peers.py", cache_dir, *options, "--data-dir", str(data_dir)))
    (row,) = [line for line in lines if line.startswith("Keras on JAX")]
    assert "failed: ImportError: a broken installation" in row
    assert document["summary"]["mnist-mlp"]["upshift"]["samples_per_second"] > 0


@pytest.mark.slow
def test_tuning_compares_a_first_and_a_second_run_with_the_baseline(cache_dir: Path) -> None:
    lines, document = parsed(run_script("bench_tuning.py", cache_dir, "--quick"))
    (job,) = document["summary"]["jobs"]
    assert (job["recipe"], job["epochs"], job["rounds"]) == ("digits", 1, 1)
    assert all(seconds > 0 for seconds in job["seconds"].values())
    assert 0 <= job["spent_share"]["auto, first run"] < 1
    assert any(line.startswith("digits, 1 epoch ") for line in lines)
    assert len(document["aims"]) == 3 and set(document["aims"].values()) == {None}


@pytest.mark.slow
def test_trainings_that_would_last_too_long_are_cut_and_named_by_their_steps(cache_dir: Path, tmp_path: Path) -> None:
    options = ("--recipe", "digits", "--epochs", "2,2000,3000", "--minutes", "0.2", "--rounds", "1")
    finished = run_script("bench_tuning.py", cache_dir, *options, "--results", str(tmp_path))
    _, document = parsed(finished)
    whole, cut = document["summary"]["jobs"]
    assert (whole["epochs"], whole["max_steps"]) == (2, None), "two cut to one length are one"
    assert 0 < cut["max_steps"] < 2000 * 23
    (written,) = tmp_path.glob("tuning-*.json")
    assert f"digits, {cut['max_steps']} steps (of 23 an epoch)" in json.loads(written.read_text())["notes"][0]


@pytest.mark.slow
def test_what_was_left_out_is_timed_beside_the_plain_steps(data_dir: Path, cache_dir: Path) -> None:
    lines, document = parsed(run_script("bench_left_out.py", cache_dir, "--quick", "--data-dir", str(data_dir)))
    found = document["summary"]["settings"]["mnist-mlp"]
    assert found["failures"] == {} and all(speed[0] > 0 for speed in found["times_the_plain_steps"].values())
    assert {"plain once more", "denormals flushed"} < set(found["times_the_plain_steps"])
    compiling = document["summary"]["compiling"]["mnist-mlp"]
    assert compiling["standing still"] > 0 and compiling["another process at work"] > 0
    assert any(line.startswith("another process, in all") for line in lines)


@pytest.mark.slow
def test_overhead_compares_the_trainer_with_a_bare_loop(data_dir: Path, cache_dir: Path) -> None:
    lines, document = parsed(run_script("bench_overhead.py", cache_dir, "--quick", "--data-dir", str(data_dir)))
    assert any(line.startswith("bare loop") for line in lines)
    assert len(document["summary"]["overhead"]) == 3


@pytest.mark.slow
def test_time_to_accuracy_keeps_what_it_has_measured(data_dir: Path, cache_dir: Path, tmp_path: Path) -> None:
    script = ("bench_time_to_accuracy.py", cache_dir, "--quick", "--data-dir", str(data_dir))
    results = ("--results", str(tmp_path))
    _, first = parsed(run_script(*script, *results, "--recipe", "mnist-mlp"))
    (written,) = tmp_path.glob("time-to-accuracy-*-torch*.json")
    _, second = parsed(run_script(*script, *results, "--recipe", "cifar10-simplecnn"))
    assert set(second["summary"]) == {"mnist-mlp", "cifar10-simplecnn"}
    assert second["summary"]["mnist-mlp"] == first["summary"]["mnist-mlp"]
    run = json.loads(written.read_text())["rounds"]["mnist-mlp seed 0"]
    assert run["baseline"]["epochs"] == 2
    assert (run["ratio"] is None) == (run["fast"]["time_to_target_seconds"] is None)


@pytest.mark.slow
def test_inference_shows_every_candidate_with_its_verdict(data_dir: Path, cache_dir: Path, tmp_path: Path) -> None:
    script = ("bench_inference.py", cache_dir, "--quick", "--data-dir", str(data_dir), "--results", str(tmp_path))
    lines, document = parsed(run_script(*script))
    assert sum("chosen" in line for line in lines) == 2
    for found in document["summary"].values():
        assert {candidate["name"] for candidate in found["candidates"]} == {"eager", "onnxruntime"}
    (written,) = tmp_path.glob("inference-*.json")
    assert all(rounds for rounds in json.loads(written.read_text())["rounds"].values())


def test_results_become_a_page_between_its_marks(tmp_path: Path) -> None:
    run_script("bench_startup.py", tmp_path, "--quick", "--results", str(tmp_path / "results"))
    page = tmp_path / "page.md"
    page.write_text((BENCHMARKS / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    write = ("table.py", tmp_path, "--results", str(tmp_path / "results"), "--write", str(page))
    assert run_script(*write).returncode == 0
    once = page.read_text(encoding="utf-8")
    assert "### Start-up" in once and "| upshift --help |" in once and "No results yet" not in once
    assert run_script(*write).returncode == 0
    assert page.read_text(encoding="utf-8") == once


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# nothing here\n", encoding="utf-8")
    finished = run_script("table.py", tmp_path, "--results", str(tmp_path), "--write", str(page))
    assert finished.returncode == 1
    assert page.read_text(encoding="utf-8") == "# nothing here\n"
