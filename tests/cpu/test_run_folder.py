"""That the files of a run folder belong together."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import upshift
from upshift.core.files import sha256_file
from upshift.errors import ArtifactError, TrainingInterrupted

RESULTS = ("result.json", "evaluation.json", "model.safetensors", "artifact", "report.html")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run of an epoch, with a report and what stands for an artifact."""
    path = upshift.train("digits", overrides=["epochs=1"], plan="baseline", out=tmp_path / "run").path
    upshift.report(path)
    (path / "artifact").mkdir()
    (path / "artifact" / "manifest.json").write_text("{}")
    return path


def go_on(path: Path, *overrides: str, **arguments: Any) -> None:
    upshift.train("digits", overrides=overrides, plan="baseline", out=path, resume=True, **arguments)


def test_a_finished_run_that_goes_on_keeps_nothing_of_other_weights_beside_the_new_ones(finished: Path) -> None:
    before = {name: (finished / name).read_bytes() for name in RESULTS if (finished / name).is_file()}
    go_on(finished, "epochs=2")
    assert not (finished / "artifact").exists() and not (finished / "report.html").exists()
    result = json.loads((finished / "result.json").read_text())
    assert result["epochs"] == 2 and result["model_sha256"] == sha256_file(finished / "model.safetensors")
    assert sorted(path.name for path in (finished / "earlier").iterdir()) == sorted(RESULTS)
    for name, content in before.items():
        assert (finished / "earlier" / name).read_bytes() == content
    go_on(finished, "epochs=3")
    kept = json.loads((finished / "earlier" / "result.json").read_text())
    assert kept["epochs"] == 2 and not (finished / "earlier" / "artifact").exists()


def test_a_run_that_is_stopped_while_it_goes_on_has_no_result(finished: Path) -> None:
    class Stop:
        """Ends the training as a second Ctrl-C does."""

        def __getattr__(self, name: str) -> Any:
            def hear(*arguments: Any, **named: Any) -> None:
                if name == "on_record":
                    raise KeyboardInterrupt

            return hear

    with pytest.raises(TrainingInterrupted):
        go_on(finished, "epochs=2", observers=[Stop()])
    assert not any((finished / name).exists() for name in RESULTS)
    with pytest.raises(ArtifactError, match="must be finished"):
        upshift.evaluate(finished)


@pytest.mark.parametrize("verb", [upshift.evaluate, upshift.optimize])
def test_weights_that_were_replaced_are_refused(finished: Path, verb: Any) -> None:
    weights = finished / "model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(ArtifactError, match="the weights of a run must be as they were written"):
        verb(finished)


def test_a_run_whose_result_names_no_hash_is_read_as_before(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    del result["model_sha256"]
    (finished / "result.json").write_text(json.dumps(result))
    assert upshift.evaluate(finished)["metrics"]["accuracy"] == result["metrics"]["accuracy"]


def test_others_may_read_the_weights_as_they_may_the_other_files(finished: Path) -> None:
    modes = {stat.S_IMODE((finished / name).stat().st_mode) for name in ("model.safetensors", "result.json")}
    assert len(modes) == 1
