"""A model is made again in another process, and only what makes a model is called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from upshift.core.reference import load_python_file, reference_to_factory
from upshift.errors import ArtifactError, ConfigError
from upshift.models.spec import ModelSpec, state_dict_on_cpu

USER_FILE = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.fc = nn.Linear(4, width)
    def forward(self, inputs):
        return self.fc(inputs)
"""


def test_another_process_builds_the_same_model(tmp_path: Path) -> None:
    user_file = tmp_path / "my models.py"
    user_file.write_text(USER_FILE)
    module = load_python_file(user_file)
    reference = reference_to_factory(module.Tiny)
    spec = ModelSpec(factory=reference.name, file=reference.file, file_sha256=reference.file_sha256, args={"width": 5})
    model = module.Tiny(5)
    save_file(state_dict_on_cpu(model), tmp_path / "model.safetensors")
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    script = (
        "import json, pathlib, sys, torch\n"
        "from upshift.models.spec import ModelSpec\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "spec = ModelSpec.from_json(json.loads((folder / 'spec.json').read_text()))\n"
        "model = spec.build(folder / 'model.safetensors')\n"
        "assert not model.training\n"
        "print(model(torch.ones(1, 4)).tolist())\n"
    )
    output = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(output.stdout) == model(torch.ones(1, 4)).tolist()


@pytest.mark.parametrize(
    "spec",
    [
        {"factory": "subprocess:run", "args": {"args": ["true"]}},
        {"factory": "os:system", "args": {"command": "true"}},
        {"factory": "builtins:exec", "args": {}},
        {"factory": "torch:load", "args": {"f": "x"}},
    ],
)
def test_a_spec_cannot_have_just_any_function_called(spec: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match=r"must be a torch\.nn\.Module class"):
        ModelSpec.from_json(spec).make()


@pytest.mark.parametrize("factory", ["no_such_package:Net", "upshift.models.mlp:Missing", "MLP", "", ":MLP"])
def test_a_factory_that_is_not_there_is_an_artifact_error(factory: str) -> None:
    with pytest.raises(ArtifactError, match="importable by its name"):
        ModelSpec(factory=factory).make()


@pytest.mark.parametrize(
    "document", [{}, {"factory": 3}, {"factory": "a:b", "argz": {}}, {"factory": "a:b", "args": []}]
)
def test_a_malformed_spec_is_an_artifact_error(document: dict[str, object]) -> None:
    with pytest.raises(ArtifactError):
        ModelSpec.from_json(document)


def test_arguments_that_the_factory_refuses_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="unexpected keyword argument 'widht'"):
        ModelSpec(factory="upshift.models.mlp:MLP", args={"widht": 3}).make()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(nn.Linear(3, 3).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match="weights must fit"):
        ModelSpec(factory="upshift.models.mlp:MLP").build(tmp_path / "other.safetensors")


def test_damaged_or_missing_weights_are_said_to_be_that_and_how_they_come_back(tmp_path: Path) -> None:
    save_file(nn.Linear(3, 3).state_dict(), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for name, content in (("empty", b""), ("cut", b"\x10\0\0"), ("shorter", whole[:-1]), ("missing", None)):
        path = tmp_path / f"{name}.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ArtifactError, match=f"must be a whole safetensors file; received .*{name}.*--resume"):
            ModelSpec(factory="upshift.models.mlp:MLP").build(path)


def test_state_dict_has_the_users_names_and_no_shared_memory() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    compiled = nn.ModuleDict({"_orig_mod": model})
    state = state_dict_on_cpu(compiled)
    assert sorted(state) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert state["0.weight"].data_ptr() != state["1.weight"].data_ptr()
    with torch.no_grad():
        model[0].weight.zero_()
    assert state["0.weight"].any()
