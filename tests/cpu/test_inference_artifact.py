"""Artifacts as their users meet them: loaded, called, and altered by hostile hands."""

import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from upshift.core.files import sha256_file
from upshift.errors import ArtifactError, BackendError, BadInputError
from upshift.inference.artifact import load
from upshift.inference.backend import BuildContext, backends
from upshift.inference.manifest import Manifest, OutputSignature, file_facts, write_manifest
from upshift.inference.preprocess import Preprocessing
from upshift.inference.structure import flatten
from upshift.models.spec import ModelSpec, state_dict_on_cpu

MODELS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)
    def scores(self, x):
        return self.out(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
    def forward(self, x):
        return self.scores(x)
class Tree(Net):
    def forward(self, x):
        y = self.scores(x)
        return {"logits": y, "pair": (y * 2, [y.sum(1), None]), "note": "kept"}
class Alias(Net):
    # Outputs that are one tensor twice, the input itself, a view, and not dependent on the input.
    def forward(self, x):
        y = self.scores(x)
        return y, y, x, y.T, self.out.bias
class Bytes(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(256, 8), nn.Linear(8, 4)
    def forward(self, x):
        return self.out(self.table(x).mean(1))
"""
IMAGES = Preprocessing(kind="image", input_shape=(3, 6, 5), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
TEXT = Preprocessing(kind="text", input_shape=(12,))
LABELS = ("cat", "dog", "emu", "fox")


class Maker:
    """Builds artifacts without a search."""

    def __init__(self, folder):
        self.folder = folder
        self.models = folder / "models_of_artifacts.py"
        self.models.write_text(MODELS)

    def model(self, name):
        spec = ModelSpec(factory=name, file=str(self.models), file_sha256=sha256_file(self.models))
        torch.manual_seed(1)
        model = spec.make().eval()
        weights = self.folder / f"{name}.safetensors"
        save_file(state_dict_on_cpu(model), weights)
        return spec, weights, model

    def make(self, backend="onnxruntime", name="Net", preprocessing=IMAGES):
        path = self.folder / f"{name}-{backend}"
        if path.exists():
            return path
        spec, weights, model = self.model(name)
        shared = self.folder / f"shared-{name}"
        shared.mkdir(exist_ok=True)
        path.mkdir()
        stored = np.random.default_rng(0).integers(0, 256, (16, *preprocessing.input_shape), dtype=np.uint8)
        inputs = preprocessing.apply(stored)
        options = backends()[backend].create().build(
            BuildContext(
                folder=path, shared=shared, spec=spec, weights=weights, sample=inputs[:2], calibration=inputs,
                batch_size=1, seed=0,
            )
        )  # fmt: skip
        with torch.no_grad():
            leaves, tree = flatten(model(inputs[:2]))
        signature = OutputSignature(
            tree=tree,
            dtypes=tuple(str(leaf.dtype).removeprefix("torch.") for leaf in leaves),
            shapes=tuple(tuple(leaf.shape[1:]) for leaf in leaves),
            logits=0,
        )
        manifest = Manifest(
            backend=backend, options=options, preprocessing=preprocessing, output=signature, labels=LABELS,
            num_threads=1, files=file_facts(path),
        )  # fmt: skip
        write_manifest(path, manifest)
        return path


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    return Maker(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def altered(maker, tmp_path):
    path = tmp_path / "artifact"
    shutil.copytree(maker.make(), path)
    return path


def edit(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def images(count, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 6, 5), dtype=np.uint8)


# --- every backend gives what the model gave --------------------------------------------------------------

ALL = [
    "eager",
    "onnxruntime",
    pytest.param("openvino", marks=pytest.mark.slow),
    pytest.param("openvino-int8", marks=pytest.mark.slow),
    pytest.param("compile", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("backend", ALL)
def test_any_batch_size_gives_what_the_model_gave(maker, backend):
    artifact = load(maker.make(backend), trust_code=True)
    model = maker.model("Net")[2]
    tolerance = 0.1 if backend == "openvino-int8" else 1e-5
    for count in (1, 3, 64):
        inputs = IMAGES.apply(images(count))
        with torch.no_grad():
            expected = model(inputs)
        torch.testing.assert_close(artifact(inputs), expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(artifact(inputs.numpy()), expected.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ALL)
def test_a_tree_of_outputs_comes_back_as_the_model_built_it(maker, backend):
    artifact = load(maker.make(backend, "Tree"), trust_code=True)
    model = maker.model("Tree")[2]
    inputs = IMAGES.apply(images(3))
    with torch.no_grad():
        expected = model(inputs)
    received = artifact(inputs)
    assert list(received) == list(expected) and received["note"] == "kept"
    assert isinstance(received["pair"], tuple) and isinstance(received["pair"][1], list)
    assert received["pair"][1][1] is None
    tolerance = 0.2 if backend == "openvino-int8" else 1e-5
    torch.testing.assert_close(received["pair"][1][0], expected["pair"][1][0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", [*ALL[:3], ALL[-1]])
def test_outputs_that_are_aliases_views_or_constants_come_back_whole(maker, backend):
    artifact = load(maker.make(backend, "Alias"), trust_code=True)
    inputs = IMAGES.apply(images(3))
    with torch.no_grad():
        expected = maker.model("Alias")[2](inputs)
    received = artifact(inputs)
    assert isinstance(received, tuple)
    for one, other in zip(received, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_text_is_taken_as_bytes_and_as_integers(maker, backend):
    artifact = load(maker.make(backend, "Bytes", TEXT), trust_code=True)
    stored = np.frombuffer(b"hello, world", np.uint8)[None]
    np.testing.assert_array_equal(artifact(stored), artifact(stored.astype(np.int64)))
    assert artifact.predict_stored(stored).shape == (1, 4)


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_calls_from_many_threads_do_not_mix(maker, backend):
    artifact = load(maker.make(backend))
    batches = [IMAGES.apply(images(1 + seed % 3, seed)).numpy() for seed in range(8)]
    expected = [artifact(batch) for batch in batches]
    wrong = []

    def work(index):
        for _ in range(40):
            if not np.array_equal(artifact(batches[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_result_is_not_overwritten_by_the_next_call(maker, backend):
    artifact = load(maker.make(backend))
    first = artifact(images(2))
    kept = first.copy()
    artifact(images(2, seed=9))
    np.testing.assert_array_equal(first, kept)


# --- what goes in ------------------------------------------------------------------------------------------


def test_uint8_images_are_preprocessed_as_in_training(maker):
    artifact = load(maker.make())
    expected = artifact(IMAGES.apply(images(4)).numpy())
    np.testing.assert_array_equal(artifact(images(4)), expected)
    np.testing.assert_array_equal(artifact(images(4).transpose(0, 2, 3, 1)), expected)
    np.testing.assert_array_equal(artifact(torch.from_numpy(images(4))).numpy(), expected)
    np.testing.assert_array_equal(artifact.predict_stored(images(4), batch_size=3), expected)


def test_what_is_given_as_a_tensor_comes_back_as_a_tensor(maker):
    artifact = load(maker.make())
    inputs = IMAGES.apply(images(2))
    assert isinstance(artifact(inputs), torch.Tensor) and isinstance(artifact(inputs.numpy()), np.ndarray)
    assert isinstance(artifact(inputs.requires_grad_()), torch.Tensor)


def test_views_and_read_only_arrays_are_taken(maker):
    artifact = load(maker.make("eager"), trust_code=True)
    inputs = IMAGES.apply(images(4)).numpy()
    expected = artifact(np.ascontiguousarray(inputs[::2]))
    np.testing.assert_array_equal(artifact(inputs[::2]), expected)
    inputs.flags.writeable = False
    np.testing.assert_array_equal(artifact(inputs)[::2], expected)


# --- what was altered ---------------------------------------------------------------------------------------


def test_a_changed_byte_is_noticed(altered):
    content = bytearray((altered / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (altered / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"content of model\.onnx has changed"):
        load(altered)


def test_a_truncated_file_is_noticed(altered):
    os.truncate(altered / "model.onnx", 100)
    with pytest.raises(ArtifactError, match="100 bytes"):
        load(altered)


def test_a_missing_file_is_noticed(altered):
    (altered / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load(altered)


def test_a_file_that_is_not_listed_is_noticed(altered):
    (altered / "sitecustomize.py").write_text("")
    with pytest.raises(ArtifactError, match="not listed"):
        load(altered)


def test_a_link_in_place_of_a_file_is_noticed(altered, tmp_path):
    shutil.move(altered / "model.onnx", tmp_path / "elsewhere.onnx")
    (altered / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match="not a regular file"):
        load(altered)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "a/b.onnx", "..", "manifest.json", ".hidden", ""])
def test_a_file_outside_the_folder_is_refused(altered, name):
    edit(altered, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(ArtifactError, match="not a plain file name"):
        load(altered)


def test_a_newer_format_asks_for_an_update(altered):
    edit(altered, lambda manifest: manifest.update(format=99))
    with pytest.raises(ArtifactError, match="update upshift"):
        load(altered)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("output"),
        lambda m: m.pop("files"),
        lambda m: m.update(format="one"),
        lambda m: m.update(files=[1]),
        lambda m: m.update(labels=None),
        lambda m: m["preprocessing"].update(input_shape=[2**40, 2**40]),
        lambda m: m["preprocessing"].update(input_shape=[-1]),
        lambda m: m["preprocessing"].update(kind="video"),
        lambda m: m["preprocessing"].update(std=[0, 0, 0]),
        lambda m: m["output"].update(logits=7),
        lambda m: m["output"].update(tree={"kind": "code"}),
        lambda m: m["output"].update(tree={"kind": "tensor", "index": 5, "path": "output"}),
        lambda m: m.update(num_threads="many"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(altered, change):
    edit(altered, change)
    with pytest.raises(BadInputError):
        load(altered)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_not_a_json_object_is_refused(altered, content):
    (altered / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        load(altered)


def test_an_unknown_backend_is_refused(altered):
    edit(altered, lambda manifest: manifest.update(backend="os:system"))
    with pytest.raises(BadInputError, match="backend"):
        load(altered)


def test_a_file_that_its_backend_cannot_read_is_a_backend_error(altered):
    (altered / "model.onnx").write_bytes(b"not an onnx file")
    edit(altered, lambda manifest: manifest.update(files=file_facts(altered)))
    with pytest.raises(BackendError, match="ONNX Runtime"):
        load(altered)


def test_a_folder_that_is_no_artifact_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            load(path)


# --- code that an artifact names ------------------------------------------------------------------------------


def test_code_of_the_users_needs_the_users_word(maker):
    path = maker.make("eager")
    with pytest.raises(ArtifactError, match="trust_code=True"):
        load(path)
    assert load(path, trust_code=True).labels == LABELS


def test_a_copy_of_the_code_elsewhere_may_be_named(maker, tmp_path, monkeypatch):
    shutil.copy(maker.models, tmp_path / "copy.py")
    assert load(maker.make("eager"), code_file=tmp_path / "copy.py").labels == LABELS
    monkeypatch.chdir(tmp_path)  # as the hint of the refusal has it
    assert load(maker.make("eager"), code_file="copy.py").labels == LABELS
    (tmp_path / "copy.py").write_text(MODELS + "# changed\n")
    with pytest.raises(ArtifactError, match="changed"):
        load(maker.make("eager"), code_file=tmp_path / "copy.py")


@pytest.mark.parametrize(
    "factory",
    [
        "os:system",
        "subprocess:call",
        "upshift.models.spec:nn.Module",
        "upshift.models.spec:Path",
        "upshift.core.files:os.system",
    ],
)
def test_a_manifest_cannot_have_code_called_that_is_not_a_model_of_upshift(maker, tmp_path, factory):
    path = tmp_path / "artifact"
    shutil.copytree(maker.make("eager"), path)
    spec = {"factory": factory, "file": None, "file_sha256": None, "args": {"command": f"touch {tmp_path}/pwned"}}
    (path / "model.json").write_text(json.dumps(spec))
    edit(path, lambda manifest: manifest.update(files=file_facts(path)))
    with pytest.raises(ArtifactError, match="trust_code"):
        load(path)
    assert not (tmp_path / "pwned").exists()


# --- what an import costs ---------------------------------------------------------------------------------------


def test_an_artifact_loads_without_the_libraries_of_other_backends_or_telemetry(maker):
    for backend, absent in (("onnxruntime", "openvino"), ("openvino", "onnxruntime")):
        code = (
            f"import sys; from upshift.inference.artifact import load; load({str(maker.make(backend))!r});"
            f"assert not any(m.split('.')[0] in ('{absent}', 'nncf') for m in sys.modules);"
            "assert 'openvino_telemetry.main' not in sys.modules"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)


def test_models_stay_in_evaluation_mode(maker):
    assert isinstance(maker.model("Net")[2], nn.Module) and not maker.model("Net")[2].training
