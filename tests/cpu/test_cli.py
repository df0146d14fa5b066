"""The command line: what scripts may rely on, and what a person reads when something is wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import upshift

Cli = Callable[..., Any]
QUICK = ("--plan", "baseline", "--set", "epochs=2", "--quiet")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cache_of_the_tests: Path) -> Path:
    """A real run, optimized with two fast backends."""
    out = tmp_path_factory.mktemp("finished") / "run"
    upshift.train("digits", plan="baseline", overrides=["epochs=6"], out=out)
    upshift.optimize(out, candidates=["onnxruntime"])
    return out


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    images, labels = load_digits(return_X_y=True)
    for row in range(4):
        pixels = (images[row].reshape(8, 8) * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}-is-{labels[row]}.png")
    return folder


# What scripts rely on


def test_train_prints_its_result_as_one_json_document(upshift_cli: Cli) -> None:
    answer = upshift_cli("train", "digits", "--json", *QUICK, "--seed", 5, "--out", "there")
    assert answer.code == 0 and answer.err == ""
    result = json.loads(answer.out)
    assert result == json.loads(Path("there/result.json").read_text())
    assert result["seed"] == 5 and result["epochs"] == 2
    types = {"recipe": str, "plan": dict, "num_parameters": int, "steps": int, "train_seconds": float}
    assert all(isinstance(result[name], kind) for name, kind in types.items())
    # The command it gives makes the same run again.
    command = [*result["command"][1:], "--quiet", "--out", "again"]
    assert command[0] == "train"
    upshift_cli(*command)
    again = json.loads(Path("again/result.json").read_text())
    assert again["metrics"] == result["metrics"]


def test_a_run_goes_to_a_folder_of_its_own_that_latest_points_to(upshift_cli: Cli) -> None:
    for _ in range(2):
        assert upshift_cli("train", "digits", *QUICK, "--set", "epochs=1").code == 0
    folders = sorted(path for path in Path("runs").iterdir() if not path.is_symlink())
    assert len(folders) == 2 and all(path.name.startswith("digits-") for path in folders)
    assert Path("runs/latest").resolve() in [path.resolve() for path in folders]


@pytest.mark.slow
def test_run_trains_optimizes_and_reports(upshift_cli: Cli) -> None:
    answer = upshift_cli("run", "digits", "--set", "epochs=4", "--json", "--quiet")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    found = result["optimize"]
    assert {"artifact", "backend", "latency_ms_p50", "eager_latency_ms_p50", "speedup", "accuracy_drop"} <= set(found)
    low, high = found["speedup_interval"]
    assert 0 < low <= found["speedup"] <= high
    assert {"eager", "compile", "onnxruntime", "openvino", "openvino-int8"} == {c["name"] for c in found["candidates"]}
    assert all({"name", "verdict", "reason"} <= set(candidate) for candidate in found["candidates"])
    page = Path("runs/latest/report.html").read_text()
    assert "<html" in page and found["backend"].split("-")[0] in page.lower().replace(" ", "")
    model = upshift.load(found["artifact"])
    images = np.zeros((3, 1, 8, 8), dtype=np.uint8)
    assert model(images).shape == (3, 10)


def test_evaluate_gives_the_same_metrics_for_a_run_and_its_artifact(upshift_cli: Cli, finished: Path) -> None:
    of_run = json.loads(upshift_cli("evaluate", finished, "--json").out)["metrics"]
    of_artifact = json.loads(upshift_cli("evaluate", finished / "artifact", "--source", "digits", "--json").out)
    assert of_run == pytest.approx(json.loads((finished / "result.json").read_text())["metrics"], rel=1e-5)
    assert of_artifact["metrics"]["accuracy"] == of_run["accuracy"]
    assert of_artifact["metrics"]["loss"] == pytest.approx(of_run["loss"], rel=1e-4)


def test_evaluate_prints_a_table(upshift_cli: Cli, finished: Path) -> None:
    answer = upshift_cli("evaluate", finished)
    assert "accuracy" in answer.out and "precision" in answer.out and len(answer.out.splitlines()) == 17


@pytest.mark.parametrize("what", ["run", "artifact"])
def test_predict_names_the_most_probable_labels_of_pictures(
    upshift_cli: Cli, finished: Path, pictures: Path, what: str
) -> None:
    path = finished if what == "run" else finished / "artifact"
    predictions = json.loads(upshift_cli("predict", path, pictures, "--json", "--top", 2).out)
    assert [Path(item["input"]).name for item in predictions] == sorted(file.name for file in pictures.iterdir())
    for item in predictions:
        first, second = item["top"]
        assert set(first) == {"label", "probability"} and 1 >= first["probability"] >= second["probability"] >= 0
        assert first["label"] == Path(item["input"]).stem[-1]


def test_predict_prints_csv(upshift_cli: Cli, finished: Path, pictures: Path) -> None:
    lines = upshift_cli("predict", finished, pictures / "0-is-0.png", "--csv").out.splitlines()
    assert lines[0] == "input,rank,label,probability"
    assert len(lines) == 4 and lines[1].split(",")[1:3] == ["1", "0"]


def test_predict_reads_a_table_from_stdin(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 300)
    features = generator.normal(size=(300, 3)) + labels[:, None] * 3
    splits = {"x_train": features[:200], "y_train": labels[:200], "x_test": features[200:], "y_test": labels[200:]}
    np.savez(tmp_path / "table.npz", **splits)
    recipe = tmp_path / "table.py"
    recipe.write_text(
        "from torch import nn\nfrom upshift import DataConfig, OptimizerConfig, Recipe\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes: int = 2) -> None:\n"
        "        super().__init__(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
        "RECIPE = Recipe(name='table', model=Net, data=DataConfig(source='table.npz'), epochs=5,\n"
        "                optimizer=OptimizerConfig(name='adamw', lr=0.05))\n"
    )
    command = [sys.executable, "-m", "upshift"]
    subprocess.run([*command, "train", "table.py", "--out", "run", "--quiet"], cwd=tmp_path, check=True)
    table = "a,b,c\n0.1,-0.2,0\n3,3.1,2.9\n"
    done = subprocess.run(
        [*command, "predict", "run", "-", "--json"], cwd=tmp_path, input=table, capture_output=True, text=True
    )
    predictions = json.loads(done.stdout)
    assert [item["top"][0]["label"] for item in predictions] == ["0", "1"]


def test_optimize_prints_the_object_of_the_result(upshift_cli: Cli, finished: Path) -> None:
    answer = upshift_cli("optimize", finished, "--candidate", "onnxruntime", "--json", "--quiet")
    assert answer.code == 0 and answer.err == ""
    assert json.loads(answer.out) == json.loads((finished / "result.json").read_text())["optimize"]


def test_recipes_are_listed(upshift_cli: Cli) -> None:
    listed = json.loads(upshift_cli("recipes", "--json").out)
    assert [item["name"] for item in listed] == [
        "digits", "mnist-mlp", "mnist-mlp-small", "mnist-cnn", "mnist-keras-dense", "mnist-resnet50",
        "cifar10-simplecnn", "cifar10-net", "cifar10-resnet18", "sst2-transformer",
    ]  # fmt: skip
    text = upshift_cli("recipes").out
    assert all(item["name"] in text and item["description"] for item in listed)


def test_a_recipe_of_ones_own_runs(upshift_cli: Cli) -> None:
    example = Path(__file__).parents[2] / "examples" / "my_recipe.py"
    answer = upshift_cli("train", example, "--json", "--quiet", "--set", "epochs=3", "--out", "mine")
    assert json.loads(answer.out)["metrics"]["accuracy"] > 0.8
    assert json.loads(upshift_cli("evaluate", "mine", "--json").out)["num_samples"] == 359


# What a person reads when something is wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "digts"), ("'digts'", "did you mean 'digits'")),
        (("train", "no/such/file.py"), ("no/such/file.py",)),
        (("train", "digits", "--set", "optimiser.lr=1"), ("optimiser.lr", "did you mean 'optimizer.lr'")),
        (("train", "digits", "--set", "epochs=0"), ("epochs must be at least 1", "received 0")),
        (("train", "digits", "--set", "epochs=two"), ("epochs must be a whole number", "'two'")),
        (("train", "digits", "--set", "optimizer.lr=-1"), ("optimizer.lr must be above 0", "-1")),
        (("train", "digits", "--set", "batch_size=99999"), ("batch_size", "99999", "1438")),
        (("train", "digits", "--set", "data.source=mnits"), ("mnits", "did you mean 'mnist'")),
        (("train", "digits", "--set", "epochs"), ("FIELD=VALUE",)),
        (("train", "digits", "--variant", "fastest"), ("fastest",)),
        (("train", "digits", "--target", "accuracy=1.5"), ("1.5",)),
        (("train", "digits", "--plan", "none.json"), ("none.json",)),
        (("train", "digits", "--resume"), ("--resume", "--out")),
        (("train", "digits", "--seed", "-1"), ("seed",)),
        (("train", "mnist-mlp", "--data-dir", "nowhere"), ("--data-dir", "UPSHIFT_DATA_DIR")),
        (("evaluate", "nowhere"), ("nowhere",)),
        (("predict", "nowhere", "x.png"), ("nowhere",)),
        (("optimize", "nowhere"), ("nowhere",)),
        (("report", "nowhere"), ("nowhere",)),
        (("fly",), ("fly",)),
        (("train", "digits", "--no-such-option"), ("--no-such-option",)),
        (("train", "digits", "--epochs", "3"), ("received --epochs; hint:", "--set epochs=3")),
        (("run", "digits", "--lr=0.1"), ("received --lr; hint:", "--set optimizer.lr=0.1")),
        (("train", "digits", "--batch-size"), ("--set batch_size=VALUE",)),
        (("evaluate", "x", "--epochs", "3"), ("received --epochs; hint: upshift evaluate --help",)),
        (("train", "digits", "--seed", "x"), ("--seed must be a whole number; received 'x'; hint: for example",)),
        (("optimize", "x", "--budget=soon"), ("--budget must be a number; received 'soon'",)),
        (
            ("train", "digits", "--set"),
            ("--set must be followed by its value; received none; hint: see upshift train",),
        ),
        (("train", "digits", "--target", "accuracy"), ("'accuracy'; hint: for example --target accuracy=0.99",)),
        (("train", "digits", "--set", "epochs=abc"), ("for example epochs=20",)),
        (("train", "digits", "--set", "model=foo:Bar"), ("No module named 'foo'; hint: check the name",)),
        (("train", "digits", "--variant", "fast"), ("digits has none: leave --variant out",)),
        (
            ("optimize", "nowhere"),
            ("what is optimized must be a run folder; received", "nowhere, which does not exist"),
        ),
        (("optimize", "/tmp"), ("/tmp, which has no recipe.json", "`upshift train digits` makes a run")),
        (("report", "/dev/null"), ("/dev/null, which is a file",)),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_and_leaves_nothing(
    upshift_cli: Cli, arguments: tuple[str, ...], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answer = upshift_cli(*arguments)
    assert answer.code == 2 and answer.out == ""
    errors = [line for line in answer.err.splitlines() if line.lower().startswith("error: ")]
    assert len(errors) == 1
    for word in words:
        assert word.lower() in errors[0].lower()
    assert list(Path.cwd().iterdir()) == []


def test_a_plan_says_what_it_lacks(upshift_cli: Cli, tmp_path: Path) -> None:
    for content, words in (
        ('{"precision": "bf16"}', ('must have a "version"', "a file without one", 'add "version": 1')),
        ('{"version": 1, "num_threads": "2"}', ("plan.num_threads must be a whole number, or none", "'2'")),
        ('{"version": 1, "precision": "fp64"}', ("plan.precision must be one of fp32", "'fp64'")),
    ):
        (tmp_path / "plan.json").write_text(content)
        answer = upshift_cli("train", "digits", "--plan", "plan.json")
        assert answer.code == 2 and all(word in answer.err for word in words), answer.err


def test_a_micro_batch_larger_than_the_batch_is_said(upshift_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"version": 1, "micro_batch_size": 100}')
    result = json.loads(upshift_cli("train", "digits", *QUICK, "--plan", "plan.json", "--json").out)
    assert result["micro_batch_size"] == 64
    assert any("micro_batch_size of 100 is more than the batch size of 64" in note for note in result["notes"])


def test_a_resume_with_other_values_names_each_of_them(upshift_cli: Cli) -> None:
    command = ("train", "digits", "--out", "run", *QUICK)
    assert upshift_cli(*command).code == 0
    answer = upshift_cli(*command, "--resume", "--set", "optimizer.lr=0.2", "--seed", 3, "--set", "epochs=3")
    assert answer.code == 2
    assert "received optimizer.lr was 0.005, is 0.2; seed was 0, is 3; hint:" in answer.err


def test_damaged_weights_of_a_run_come_back_by_a_resume(upshift_cli: Cli) -> None:
    command = ("train", "digits", "--out", "run", *QUICK)
    assert upshift_cli(*command).code == 0
    weights = Path("run/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    answer = upshift_cli("evaluate", "run")
    assert answer.code == 2 and "must be as they were written; received run/model.safetensors" in answer.err
    assert upshift_cli(*command, "--resume").code == 0
    assert weights.read_bytes() == whole


def test_a_report_goes_where_it_is_asked_to_with_the_folders_above(upshift_cli: Cli, finished: Path) -> None:
    answer = upshift_cli("report", finished, "--out", "new/folder/page.html", "--json")
    assert json.loads(answer.out) == {"report": "new/folder/page.html"}
    assert "<html" in Path("new/folder/page.html").read_text()


def test_an_artifact_with_a_changed_byte_is_refused(upshift_cli: Cli, finished: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished / "artifact", copy)
    model = next(copy.glob("*.onnx"))
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    answer = upshift_cli("evaluate", copy, "--source", "digits")
    assert answer.code == 2 and model.name in answer.err and answer.out == ""


def test_predict_names_the_file_that_is_no_image(upshift_cli: Cli, finished: Path, pictures: Path) -> None:
    (pictures / "5.png").write_bytes(b"\x89PNG not really")
    answer = upshift_cli("predict", finished, pictures)
    assert answer.code == 2 and "5.png" in answer.err and answer.out == ""


def test_a_folder_below_a_file_cannot_hold_a_run(upshift_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = upshift_cli("train", "digits", *QUICK, "--out", "file/run")
    assert answer.code == 2 and "must be a folder that can be written" in answer.err


BOUND_BY_PERMISSIONS = """
import ctypes, os, sys
if os.geteuid() == 0:
    # Root writes everywhere by three capabilities; a program that is started without them is bound like any other.
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        if ctypes.CDLL(None, use_errno=True).prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
            sys.exit("capabilities cannot be given up")
os.execv(sys.executable, [sys.executable, "-m", "upshift", *sys.argv[1:]])
"""


def bound_by_permissions(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call the command in a process that a folder's mode binds, also where the tests are run by root."""
    done = subprocess.run(
        [sys.executable, "-c", BOUND_BY_PERMISSIONS, *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )
    if "capabilities cannot be given up" in done.stderr:
        pytest.skip("root may write everywhere, and cannot give that up here")
    return done


def test_a_read_only_folder_cannot_hold_a_run(tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir(mode=0o555)
    done = bound_by_permissions("train", "digits", *QUICK, "--out", "fixed/run", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "must be a folder that can be written" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "fixed").iterdir()) == []


def test_a_read_only_run_is_reported_elsewhere_or_not_at_all(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "report.html").unlink(missing_ok=True)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    run.chmod(0o555)
    done = bound_by_permissions("report", run, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and str(run) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = bound_by_permissions("report", run, "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "report.html").is_file()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    run.chmod(0o755)


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))
from upshift.cli import main
main()
"""


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    # A limit on the size of files stands for a disk that fills up while weights are written.
    arguments = ["train", "digits", "--out", "run", "--quiet", "--set", "epochs=1"]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: writing") and "free" in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_ctrl_c_while_optimizing_ends_at_once_and_leaves_the_run_whole(finished: Path) -> None:
    before = (finished / "result.json").read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "upshift", "optimize", str(finished)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "building" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    assert f"is whole, as it was before the search: go on with upshift optimize {finished}" in err
    assert (finished / "result.json").read_bytes() == before
    assert upshift.load(finished / "artifact").backend
    assert [path.name for path in finished.iterdir() if path.name.startswith(".")] == [".lock"]


def test_no_colour_and_no_bars_where_there_is_no_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "upshift", "train", "digits", "--set", "epochs=2"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stderr
    assert "epoch 2/2" in done.stderr and "accuracy" in done.stdout
    notes = [line for line in done.stdout.splitlines() if line.startswith("! ")]
    assert any(note.endswith("no weights were chosen by it") for note in notes), "a note is one line, however long"
    others = [line for line in done.stdout.splitlines() if line not in notes and not line.startswith("run ")]
    assert all(len(line) <= 80 for line in others)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("evaluate", ""), "PATH"),
        (("report", ""), "RUN"),
        (("predict", "run", ""), "FILE..."),
        (("train", ""), "RECIPE"),
        (("train", "digits", "--out", ""), "--out"),
        (("train", "digits", "--out="), "--out"),
        (("train", "digits", "--plan", ""), "--plan"),
        (("run", "digits", "--data-dir", ""), "--data-dir"),
        (("tune", "digits", "--set", ""), "--set"),
    ],
)
def test_an_empty_value_is_refused_and_does_not_mean_the_current_folder(
    upshift_cli: Cli, arguments: tuple[str, ...], name: str
) -> None:
    answer = upshift_cli(*arguments)
    assert answer.code == 2 and answer.err.startswith(f"error: {name} must not be empty; received ''; hint: ")


def test_every_verb_takes_json_seed_and_quiet() -> None:
    from verbs_of_the_cli import VERBS

    for name, verb in VERBS.items():
        options = {option for parameter in verb.params for option in parameter.opts}
        assert {"--json", "--seed", "--quiet"} <= options, name
