"""The rooms of DESIGN, checked from the code's imports: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import upshift

ROOT = Path(upshift.__file__).parent
FLOORS = {
    "core": 0,
    "errors": 0,
    "training": 1,
    "models": 1,
    "data": 1,
    "recipes": 2,
    "tuning": 2,
    "inference": 2,
    "convert": 2,
    "audit": 2,
    "serving": 2,
    "reports": 2,
    "workflows": 3,
    "cli": 4,
    "terminal": 4,
}
SIDEWAYS = {
    ("recipes", "training"),
    ("recipes", "models"),
    ("recipes", "data"),
    ("tuning", "training"),
    ("serving", "inference"),
    ("cli", "terminal"),
    ("core", "errors"),
}
# An optional or heavy dependency is imported in as few files as possible, and inside a function.
LAZY = {
    "sklearn", "pyarrow", "PIL", "matplotlib", "huggingface_hub", "tensorboard", "rich",
    "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "pytorch_optimizer", "lightning", "transformers",
}  # fmt: skip
ENTRY = {"__init__", "__main__"}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in ENTRY:
            yield parts[0], path, ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def at_module_level(tree: ast.Module) -> Iterator[str]:
    statements = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for statement in statements:
        yield from imported(ast.Module([statement], []))


def test_each_room_has_a_floor() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - ENTRY <= set(FLOORS)


def test_imports_go_down_the_floors() -> None:
    wrong = []
    for room, path, tree in modules():
        for name in imported(tree):
            parts = name.split(".")
            if parts[0] != "upshift" or len(parts) == 1:
                continue
            target = parts[1]
            allowed = target == room or FLOORS[target] < FLOORS[room] or (room, target) in SIDEWAYS
            if room == "cli":
                allowed = target in ("cli", "workflows", "errors", "terminal")
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_heavy_dependencies_are_imported_inside_functions() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name} at its top"
        for _, path, tree in modules()
        for name in at_module_level(tree)
        if name.split(".")[0] in LAZY
    ]
    assert wrong == []


def test_only_the_command_line_prints_or_exits() -> None:
    wrong = []
    for room, path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "quit"):
                wrong.append((room, f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}"))
    assert [place for room, place in wrong if room not in ("cli", "terminal")] == []


def test_no_pickle_is_written_or_read() -> None:
    for _, path, tree in modules():
        assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve"} & {n.split(".")[0] for n in imported(tree)}, (
            path
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save", "np.save"):
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                safe = keywords.get("weights_only") == "True" or keywords.get("allow_pickle") == "False"
                assert safe, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import upshift", {"torch", "numpy", "typer", "rich"}),
        ("import upshift.cli", {"torch", "numpy", "rich", "onnx", "openvino", "matplotlib"}),
        ("import upshift.workflows.train", LAZY - {"rich"}),
    ],
)
def test_importing_stays_light(statement: str, forbidden: set[str]) -> None:
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert forbidden & {name.split(".")[0] for name in done.stdout.split()} == set()


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; sys.argv = ['upshift', '--help']\ntry:\n import upshift.cli; upshift.cli.main()\n"
        "except SystemExit: pass\nsys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: upshift" in done.stdout
    assert {"torch", "numpy"} & set(done.stderr.split()) == set()


def test_the_public_surface_is_what_it_is() -> None:
    assert upshift.__all__ == [
        "AugmentConfig",
        "BadInputError",
        "DataConfig",
        "OptimizerConfig",
        "Plan",
        "Recipe",
        "ScheduleConfig",
        "StageConfig",
        "UpshiftError",
        "__version__",
        "emit",
        "evaluate",
        "lightning_callback",
        "load",
        "optimize",
        "predict",
        "profile",
        "report",
        "run",
        "train",
        "transformers_callback",
        "tune",
    ]
    for name in upshift.__all__:
        assert getattr(upshift, name) is not None
    assert not hasattr(upshift, "no_such_name")
