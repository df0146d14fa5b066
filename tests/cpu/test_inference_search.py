"""The search with real and with really misbehaving backends, each in its own process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

import upshift.inference.backend as backend
from upshift.core.files import sha256_file
from upshift.core.records import read_jsonl
from upshift.errors import BackendError, BadInputError, ConfigError, StorageError, UnknownNameError
from upshift.inference.artifact import load
from upshift.inference.preprocess import Preprocessing
from upshift.inference.search import Samples, SearchConfig, search
from upshift.models.spec import ModelSpec, state_dict_on_cpu

LABELS = tuple("0123456789")
MODELS = '''
import time, torch
from pathlib import Path
from torch import nn
from upshift.errors import BadInputError

class Slow(nn.Module):
    """A model whose eager form wastes time, so that whatever exports it is faster beyond doubt."""
    def __init__(self, seconds: float = 0.003):
        super().__init__()
        self.seconds = seconds
        self.layer = nn.Linear(64, 10)
    def forward(self, x):
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            time.sleep(self.seconds)
        return self.layer(x.flatten(1))

class Quick(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, x):
        return self.layer(x.flatten(1))

class Structured(Quick):
    def forward(self, x):
        y = self.layer(x.flatten(1))
        return {"logits": y, "more": (y.mean(1), [y * 2, None]), "name": "n"}

class Overflowing(Quick):
    def forward(self, x):
        return self.layer(x.flatten(1)) / (x.flatten(1)[:, 20:21] * 0)

class BuiltOnce(Quick):
    def __init__(self):
        super().__init__()
        built = Path(__file__).with_name("was-built")
        if built.exists():
            raise BadInputError("the model must be built once", received="twice", hint="do not")
        built.touch()

class Bytes(Quick):
    def forward(self, x):
        return self.layer(x.float() / 255)

class Regression(Quick):
    def forward(self, x):
        return self.layer(x.flatten(1)).sum(1)
'''
ROGUES = '''
import ctypes, os, time
import numpy as np
import torch
from upshift.inference.backends.eager import Eager

class Segfaults(Eager):
    def build(self, context): ctypes.string_at(0)

class Exits(Eager):
    def load(self, context):
        os._exit(3)

class Sleeps(Eager):
    def build(self, context): time.sleep(1e6)

class Allocates(Eager):
    def load(self, context):
        kept = []
        while True: kept.append(np.ones(1_000_000))

class Raises(Eager):
    def build(self, context): raise RuntimeError("I cannot express this model")

class _Changes(Eager):
    def load(self, context):
        run = super().load(context)
        return lambda inputs: [self.change(leaf.copy()) for leaf in run(inputs)]

class Nan(_Changes):
    def change(self, leaf):
        leaf[-1] = np.nan
        return leaf

class Wrong(_Changes):
    def change(self, leaf): return leaf * 1.01

class Reshapes(_Changes):
    def change(self, leaf): return leaf[:, :9]

class MerelySlow(_Changes):
    def change(self, leaf):
        time.sleep(0.02)
        return leaf

class FastLiar(Eager):
    """Right while it is verified, wrong when it is loaded from its artifact."""
    def load(self, context):
        run = super().load(context)
        lies = os.path.exists(context.folder / "manifest.json")
        bias = np.float32(1.0 if lies else 0.0)
        weight = run.__closure__[0].cell_contents.layer
        w, b = weight.weight.detach().numpy().T.copy(), weight.bias.detach().numpy()
        return lambda inputs: [inputs.reshape(len(inputs), -1) @ w + b + bias]

class FlipsAtOnceInFifty(_Changes):
    def change(self, leaf):
        leaf[::50] = -leaf[::50]
        return leaf

class HonestButSlower(_Changes):
    def load(self, context):
        run = Copies().load(context)
        return lambda inputs: [self.change(leaf) for leaf in run(inputs)]
    def change(self, leaf):
        time.sleep(0.0005)
        return leaf

class TellsItsThreads(Eager):
    def load(self, context):
        seen = (context.num_threads, torch.get_num_threads(), os.environ["OMP_NUM_THREADS"])
        with open(os.path.join(os.path.dirname(__file__), "threads"), "a") as stream:
            print(seen, file=stream)
        return Copies().load(context)

class _CopiesOf(Eager):
    def load(self, context):
        run = Copies().load(context)
        self.scratch = context.folder.parents[2]
        self.is_reloaded = (context.folder / "manifest.json").exists()
        return lambda inputs: self.change(run(inputs))

class FastUntilReloaded(_CopiesOf):
    def change(self, leaves):
        time.sleep(0.02 if self.is_reloaded else 0)
        return leaves

class DiesWhileAnotherIsConfirmed(_CopiesOf):
    def change(self, leaves):
        if (self.scratch / "first" / "confirm").exists():
            os._exit(3)
        time.sleep(0.0005)
        return leaves

class Copies(Eager):
    """Faithful and fast, with changed numerics as far as anyone knows."""
    def load(self, context):
        model = FastLiar.load.__globals__["Eager"].load(self, context).__closure__[0].cell_contents.layer
        w, b = model.weight.detach().numpy().T.copy(), model.bias.detach().numpy()
        return lambda inputs: [inputs.reshape(len(inputs), -1) @ w + b]
'''


class Bench:
    """A folder with models, weights and real digits."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "models_of_test.py").write_text(MODELS)
        (folder / "rogues_of_test.py").write_text(ROGUES)
        digits = load_digits()
        self.images = (digits.images * 15).astype(np.uint8)[:, None]
        self.targets = digits.target.astype(np.int64)
        self.preprocessing = Preprocessing(kind="image", input_shape=(1, 8, 8), mean=(0.3,), std=(0.35,))
        self.weights = folder / "weights.safetensors"
        save_file(state_dict_on_cpu(self._trained()), self.weights)

    def _trained(self):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"layer": torch.nn.Linear(64, 10)})
        inputs, labels = self.preprocessing.apply(self.images[:1000]).flatten(1), torch.from_numpy(self.targets[:1000])
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(40):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model["layer"](inputs), labels).backward()
            optimizer.step()
        return model

    def spec(self, name="Quick"):
        path = self.folder / "models_of_test.py"
        return ModelSpec(factory=name, file=str(path), file_sha256=sha256_file(path))

    def samples(self, **changes):
        parts = {
            "calibration": self.images[:50],
            "selection": self.images[50:150],
            "test": self.images[1000:],
            "test_labels": self.targets[1000:],
        }
        return Samples(**{**parts, **changes})

    def search(self, out, *candidates, model="Quick", samples=None, labels=LABELS, trials=None, events=(), **config):
        result = search(
            self.spec(model),
            self.weights,
            self.preprocessing,
            samples or self.samples(),
            labels=labels,
            out=out,
            config=SearchConfig(candidates=candidates, **{"num_rounds": 8, **config}),
            on_event=lambda line: [event(line) for event in events],
            trials=trials,
        )
        return result, {candidate.name: candidate for candidate in result.candidates}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"))
    sys.path.insert(0, str(bench.folder))
    yield bench
    sys.path.remove(str(bench.folder))


@pytest.fixture
def rogue(monkeypatch):
    monkeypatch.setattr(backend, "_REGISTRY", dict(backend._REGISTRY))

    def register(name, class_name, tier="A"):
        return backend.register(
            backend.BackendInfo(
                name=name, tier=tier, description="of a test", implementation=f"rogues_of_test:{class_name}"
            )
        )

    return register


@pytest.fixture(scope="module")
def found(bench, tmp_path_factory):
    """A search that a real backend wins."""
    folder = tmp_path_factory.mktemp("found")
    result, by_name = bench.search(
        folder / "artifact", "onnxruntime", model="Slow", trials=folder / "trials.jsonl", num_threads=1
    )
    return folder, result, by_name


def test_the_faster_faithful_candidate_is_chosen_and_saved(found, bench):
    folder, result, by_name = found
    assert result.chosen.name == "onnxruntime"
    assert result.chosen.speedup > 2 and result.chosen.speedup_interval[0] > 1
    assert by_name["eager"].verdict == "accepted"
    artifact = load(folder / "artifact")
    assert artifact.backend == "onnxruntime" and artifact.labels == LABELS
    scores = artifact.predict_stored(bench.images[1000:])
    assert np.mean(scores.argmax(1) == bench.targets[1000:]) == pytest.approx(result.chosen.accuracy)
    assert result.chosen.accuracy > 0.8


def test_the_optimize_object_has_what_scripts_rely_on(found):
    folder, result, _ = found
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert {
        "artifact", "backend", "latency_ms_p50", "eager_latency_ms_p50", "speedup", "speedup_interval",
        "accuracy_drop", "batch_size", "max_drop", "candidates",
    } <= set(value)  # fmt: skip
    for candidate in value["candidates"]:
        assert {"name", "verdict", "reason", "latency_ms_p50", "latency_ms_p90", "latency_ms_p99"} <= set(candidate)
        assert candidate["verdict"] in ("chosen", "accepted", "refused", "failed")
    assert json.loads((folder / "artifact" / "manifest.json").read_text())["evidence"] == value


def test_every_candidate_and_its_rounds_are_in_the_trials(found):
    records = list(read_jsonl(found[0] / "trials.jsonl"))
    assert [record["name"] for record in records if record["event"] == "candidate"] == ["onnxruntime"]
    rounds = [record for record in records if record["event"] == "rounds"]
    assert {record["stage"] for record in rounds} == {"selection", "confirmation"}
    assert all(len(record["median_seconds"]) == 8 for record in rounds)


@pytest.mark.slow
def test_crashes_hangs_and_wrong_values_are_verdicts_and_the_search_goes_on(bench, rogue, tmp_path):
    expected = {
        "Segfaults": ("failed", "SIGSEGV"),
        "Exits": ("failed", "exit code 3"),
        "Sleeps": ("failed", "time limit"),
        "Allocates": ("failed", "memory limit"),
        "Raises": ("failed", "I cannot express this model"),
        "Nan": ("refused", "NaN"),
        "Wrong": ("refused", "round-off"),
        "Reshapes": ("refused", "shape"),
        "MerelySlow": ("accepted", "slower than eager by at least"),
    }
    for name in expected:
        rogue(name, name)
    result, by_name = bench.search(
        tmp_path / "artifact", *expected, time_limit_seconds=40.0, memory_limit_bytes=1500 * 2**20, num_threads=1
    )
    for name, (verdict, reason) in expected.items():
        assert (by_name[name].verdict, reason in by_name[name].reason) == (verdict, True), by_name[name]
    assert result.chosen.name == "eager"
    assert (result.chosen.speedup, result.chosen.speedup_interval) == (1.0, (1.0, 1.0))
    assert "no other candidate" in result.chosen.reason
    assert load(tmp_path / "artifact", trust_code=True)(bench.images[:3]).shape == (3, 10)


@pytest.mark.slow
def test_a_candidate_that_is_wrong_after_reload_falls_back_to_the_next(bench, rogue, tmp_path):
    rogue("liar", "FastLiar")
    rogue("honest", "HonestButSlower")
    result, by_name = bench.search(tmp_path / "artifact", "liar", "honest", model="Slow", num_threads=1)
    assert by_name["liar"].verdict == "refused" and "after reload" in by_name["liar"].reason
    assert result.chosen.name == "honest"


@pytest.mark.slow
def test_one_that_is_proven_slower_is_timed_no_further_and_says_than_which(bench, rogue, tmp_path):
    rogue("best", "Copies")
    rogue("slower", "HonestButSlower")
    rogue("slowest", "MerelySlow")
    trials = tmp_path / "trials.jsonl"
    result, by_name = bench.search(
        tmp_path / "artifact", "best", "slower", "slowest", model="Slow", trials=trials, num_rounds=30, num_threads=1
    )
    assert result.chosen.name == "best" and by_name["eager"].verdict == "accepted"
    rounds = {(record["stage"], record["name"]): record for record in read_jsonl(trials) if record["event"] == "rounds"}
    assert rounds.keys() == {(stage, name) for stage in ("selection", "confirmation") for name in ("eager", "best")} | {
        ("selection", "slower"), ("selection", "slowest")
    }  # fmt: skip
    for name in ("slower", "slowest"):
        candidate, record = by_name[name], rounds["selection", name]
        assert record["eliminated"].startswith("slower than best by at least ") and record["failure"] is None
        assert len(record["median_seconds"]) < 30
        assert candidate.verdict == "accepted"
        assert candidate.reason.startswith(f"verified, {record['eliminated']} (")
        low, high = candidate.speedup_interval
        assert 0 < low <= candidate.speedup <= high and candidate.latency_ms_p99 >= candidate.latency_ms_p50
    assert by_name["slower"].speedup_interval[0] > 1.0 > by_name["slowest"].speedup_interval[1]
    for stage in ("selection", "confirmation"):
        assert [len(rounds[stage, name]["median_seconds"]) for name in ("eager", "best")] == [30, 30]
        assert rounds[stage, "best"]["eliminated"] is None


@pytest.mark.slow
def test_one_that_is_not_proven_faithful_eliminates_nobody(bench, rogue, tmp_path):
    rogue("unproven", "Copies", tier="B")
    rogue("proven", "HonestButSlower")
    trials = tmp_path / "trials.jsonl"
    result, by_name = bench.search(
        tmp_path / "artifact", "unproven", "proven", model="Slow",
        samples=bench.samples(test_labels=None), trials=trials, num_rounds=30, num_threads=1,
    )  # fmt: skip
    assert result.chosen.name == "proven" and by_name["unproven"].verdict == "refused"
    assert by_name["unproven"].speedup > by_name["proven"].speedup
    assert {len(record["median_seconds"]) for record in read_jsonl(trials) if record["event"] == "rounds"} == {30}


@pytest.mark.slow
def test_a_candidate_that_dies_while_another_is_confirmed_does_not_end_the_search(bench, rogue, tmp_path, monkeypatch):
    monkeypatch.setattr("upshift.inference.search.Knockout", lambda *names, **config: None)  # both stay to the end
    rogue("first", "FastUntilReloaded")
    rogue("second", "DiesWhileAnotherIsConfirmed")
    result, by_name = bench.search(tmp_path / "artifact", "first", "second", model="Slow", num_threads=1)
    assert by_name["first"].verdict == "refused" and "no proven gain" in by_name["first"].reason
    assert by_name["second"].verdict == "failed" and "exit code 3" in by_name["second"].reason
    assert result.chosen.name == "eager"


@pytest.mark.slow
def test_a_model_that_cannot_be_made_again_is_a_failure_of_the_model(bench, tmp_path):
    with pytest.raises(BackendError, match="after it was saved and loaded: the model must be built once"):
        bench.search(tmp_path / "artifact", model="BuiltOnce", num_threads=1)


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "recorded"), [(None, None), (2, 2)])
def test_all_candidates_have_the_same_threads_and_only_asked_ones_are_recorded(
    bench, rogue, tmp_path, monkeypatch, asked, recorded
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (bench.folder / "threads").unlink(missing_ok=True)
    rogue("teller", "TellsItsThreads")
    result, _ = bench.search(tmp_path / "artifact", "teller", model="Slow", num_threads=asked)
    assert result.chosen.name == "teller"
    number = asked or 1
    assert (bench.folder / "threads").read_text() == f"{(number, number, str(number))}\n" * 2
    assert json.loads((tmp_path / "artifact" / "manifest.json").read_text())["num_threads"] == recorded


@pytest.mark.slow
def test_a_backend_that_is_not_usable_here_is_failed_with_the_reason(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "_REGISTRY", dict(backend._REGISTRY))
    backend.register(
        backend.BackendInfo(name="alien", tier="A", description="", implementation="x:X", packages=("no_such_package",))
    )
    _, by_name = bench.search(tmp_path / "artifact", "alien", num_threads=1)
    assert by_name["alien"].verdict == "failed" and "not usable here: " in by_name["alien"].reason


@pytest.mark.slow
def test_changed_numerics_are_refused_when_the_test_samples_cannot_prove_them(bench, rogue, tmp_path):
    rogue("copies", "Copies", tier="B")
    few = bench.samples(test=bench.images[1000:1360], test_labels=bench.targets[1000:1360])
    result, by_name = bench.search(tmp_path / "few", "copies", model="Slow", samples=few, num_threads=1)
    assert by_name["copies"].verdict == "refused"
    reason = by_name["copies"].reason
    assert "up to 0.83 points with 95 % confidence on 360 test samples; the budget is 0.5 points" in reason
    assert "it would pass with --max-drop 0.0083 or at least 598 test samples" in reason
    result, by_name = bench.search(tmp_path / "few", "copies", model="Slow", samples=few, max_drop=0.009, num_threads=1)
    assert result.chosen.name == "copies" and by_name["copies"].accuracy_drop == 0.0


@pytest.mark.slow
def test_two_candidates_with_changed_numerics_must_each_prove_more(bench, rogue, tmp_path):
    rogue("copies", "Copies", tier="B")
    rogue("others", "Copies", tier="B")
    samples = bench.samples(test=bench.images[1000:1500], test_labels=bench.targets[1000:1500])
    _, by_name = bench.search(tmp_path / "two", "copies", "others", model="Slow", samples=samples, num_threads=1)
    assert [by_name[name].verdict for name in ("copies", "others")] == ["refused", "refused"]
    assert "at least 765 test samples" in by_name["others"].reason


@pytest.mark.slow
def test_a_drop_in_accuracy_is_refused_even_where_it_is_fast(bench, rogue, tmp_path):
    rogue("flips", "FlipsAtOnceInFifty", tier="B")
    _, by_name = bench.search(tmp_path / "artifact", "flips", max_drop=0.01, num_threads=1)
    assert by_name["flips"].verdict == "refused" and by_name["flips"].accuracy_drop > 0.01


@pytest.mark.slow
def test_without_labels_changed_numerics_are_never_accepted(bench, rogue, tmp_path):
    rogue("copies", "Copies", tier="B")
    rogue("same", "Copies", tier="A")
    unlabelled = bench.samples(test_labels=None)
    result, by_name = bench.search(
        tmp_path / "artifact", "copies", "same", model="Slow", samples=unlabelled, num_threads=1
    )
    assert by_name["copies"].verdict == "refused" and "unproven" in by_name["copies"].reason
    assert result.chosen.name == "same"


def is_faithful(candidate):
    """Its outputs were compared and agree to round-off; only the clock may have kept it from being confirmed."""
    unconfirmed = candidate.reason.startswith("not confirmed after reload from disk: no proven gain")
    agrees = candidate.max_rel_error is not None and candidate.max_rel_error <= 2**-13
    return agrees and (candidate.verdict in ("accepted", "chosen") or (candidate.verdict == "refused" and unconfirmed))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_structured_output_keeps_its_structure(bench, tmp_path, name):
    _, by_name = bench.search(tmp_path / "artifact", name, model="Structured", num_threads=1)
    assert is_faithful(by_name[name]), by_name[name]
    output = load(tmp_path / "artifact", trust_code=True)(torch.zeros(3, 1, 8, 8))
    assert list(output) == ["logits", "more", "name"] and output["name"] == "n"
    assert output["more"][1][1] is None and output["more"][0].shape == (3,)


@pytest.mark.slow
def test_a_regression_model_is_judged_by_its_outputs_alone(bench, tmp_path):
    unlabelled = bench.samples(test_labels=None)
    result, by_name = bench.search(
        tmp_path / "artifact", "onnxruntime", "openvino-int8", model="Regression", samples=unlabelled, labels=()
    )
    assert is_faithful(by_name["onnxruntime"])
    assert by_name["openvino-int8"].verdict == "refused" and "unproven" in by_name["openvino-int8"].reason
    with pytest.raises(BadInputError, match="one score a class"):
        load(result.artifact, trust_code=True).predict_stored(bench.images[:2])


@pytest.mark.slow
def test_text_of_a_torch_dataset_is_searched_as_int64(bench, tmp_path):
    texts = bench.images.reshape(-1, 64).astype(np.int64)
    result = search(
        bench.spec("Bytes"),
        bench.weights,
        Preprocessing(kind="text", input_shape=(64,)),
        Samples(calibration=texts[:50], selection=texts[50:150], test=texts[1000:], test_labels=bench.targets[1000:]),
        labels=LABELS,
        out=tmp_path / "artifact",
        config=SearchConfig(num_rounds=8, candidates=("onnxruntime",), num_threads=1),
    )
    assert all(is_faithful(candidate) for candidate in result.candidates)
    artifact = load(tmp_path / "artifact", trust_code=True)
    assert np.array_equal(artifact.predict_stored(texts[:9]), artifact(texts[:9]))


@pytest.mark.slow
def test_a_model_with_outputs_that_are_not_finite_is_refused_at_once(bench, tmp_path):
    with pytest.raises(BadInputError, match="100 of 100 selection samples"):
        bench.search(tmp_path / "artifact", model="Overflowing")
    assert not (tmp_path / "artifact").exists()


BURN = """
import os, time
end = time.monotonic() + 1200.0
print(os.getpid(), flush=True)
while time.monotonic() < end: pass
"""
BURN_ELSEWHERE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN!r}], start_new_session=True)"


@pytest.mark.slow
def test_a_program_that_keeps_a_core_busy_while_candidates_are_timed_is_noted(bench, tmp_path):
    # The one that burns outlives the one that started it: it is no child of this process.
    with subprocess.Popen([sys.executable, "-c", BURN_ELSEWHERE], stdout=subprocess.PIPE, text=True) as starter:
        burning = int(starter.stdout.readline())
        try:
            result, _ = bench.search(tmp_path / "artifact", "onnxruntime", model="Slow", num_threads=1)
        finally:
            os.kill(burning, signal.SIGKILL)
    assert [note for note in result.notes if "other programs used" in note and "selection rounds" in note], result.notes
    assert result.to_json()["notes"] == list(result.notes)


@pytest.mark.slow
def test_a_used_up_budget_leaves_the_rest_untried_and_says_so(bench, tmp_path):
    result, by_name = bench.search(tmp_path / "artifact", "onnxruntime", budget_seconds=0.01)
    untried = by_name["onnxruntime"]
    assert untried.verdict == "failed" and "not tried: the budget of 0.01 s" in untried.reason
    assert result.chosen.name == "eager"


def test_a_folder_with_other_things_is_not_replaced(bench, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInputError, match="new, empty, or an artifact"):
        bench.search(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_found_out_before_the_search(bench, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can be written"):
        bench.search(tmp_path / "file" / "artifact")


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import upshift.inference.backend as backend
from test_inference_search import Bench
bench = Bench(Path(sys.argv[1]))
backend.register(backend.BackendInfo(name="Sleeps", tier="A", description="", implementation="rogues_of_test:Sleeps"))
result = bench.search(Path(sys.argv[1]) / "artifact", "Sleeps", events=[lambda line: print(line, flush=True)])
"""


@pytest.mark.slow
def test_a_search_that_is_killed_leaves_no_process_and_no_scratch_folder(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    here = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(here), "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert b"Sleeps: building" in process.stdout.readline()
        workers = []
        while len(workers) < 2:
            assert process.poll() is None
            workers = [pid for pid in _with_argument(b"upshift.inference.worker:create") if _parent(pid) == process.pid]
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while set(workers) & set(_with_argument(b"upshift.inference.worker:create")):
        assert time.monotonic() < deadline, "a worker outlived the search"
        time.sleep(0.05)
    assert list(temporary.glob("upshift-scratch-*"))
    code = "from upshift.core.scratch import scratch_folder\nwith scratch_folder(): pass"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not list(temporary.glob("upshift-scratch-*"))
    assert not (tmp_path / "artifact").exists()


def _with_argument(argument):
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and argument in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def _parent(pid):
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": np.zeros((0, 1, 8, 8), np.uint8), "test_labels": None}, "needs test samples"),
        ({"selection": np.zeros((5, 1, 9, 8), np.uint8)}, "shape"),
        ({"calibration": np.zeros((5, 1, 8, 8), np.float32)}, "uint8"),
        ({"test_labels": np.zeros(3, np.int64)}, "one test label for each"),
        ({"test_labels": np.full(797, 10)}, "from 0 to 9"),
    ],
)
def test_samples_that_do_not_fit_are_refused(bench, tmp_path, changes, message):
    with pytest.raises(BadInputError, match=message):
        bench.search(tmp_path / "artifact", samples=bench.samples(**changes))


@pytest.mark.parametrize(
    "wrong",
    [{"max_drop": -0.1}, {"max_drop": 1.0}, {"num_rounds": 3}, {"batch_size": 0}, {"budget_seconds": 0.0},
     {"time_limit_seconds": -1.0}, {"num_threads": 0}],
)  # fmt: skip
def test_a_config_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError):
        SearchConfig(**wrong)


def test_an_unknown_candidate_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        SearchConfig(candidates=("openvno",))
