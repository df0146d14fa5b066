"""What is left of a run when something comes between its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import upshift
from upshift.errors import BackendError


def test_a_run_whose_search_fails_has_its_training_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise BackendError("no backend could be begun")

    monkeypatch.setattr("upshift.workflows.optimize.search", fail)
    with pytest.raises(BackendError, match="no backend could be begun"):
        upshift.run("digits", overrides=["epochs=1"], plan="baseline", out=tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["optimize"] is None and result["command"][:3] == ["upshift", "run", "digits"]
    assert f"{result['metrics']['accuracy']:.1%}"[:3] in (tmp_path / "run" / "report.html").read_text()
