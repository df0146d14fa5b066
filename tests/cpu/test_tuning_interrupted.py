"""Tuning that was stopped on its way: what it had learnt is begun with, and only what it had not decided is raced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from live_trainings import STEP_SECONDS, Net, assert_same_losses, plainly, train, tuned

from upshift.tuning.config import KnownPlan
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.trials import REFUSED_BEFORE, UNDECIDED, Trial
from upshift.tuning.whole_plans import refused_plans
from upshift.workflows.tuning_memory import to_document

CHANNELS_LAST = Plan(memory_format="channels_last")
ADOPTED = {"name": "channels_last", "changes": {"memory_format": "channels_last"}, "verdict": "adopted"}
REFUSED = {"name": "2 threads", "changes": {"num_threads": 2}, "verdict": "refused"}


@pytest.mark.usefixtures("simulated_clock")
@pytest.mark.parametrize("is_decided", [True, False])
def test_candidates_that_were_decided_are_not_raced_again(is_decided: bool, tmp_path: Path) -> None:
    known = KnownPlan(
        plan=CHANNELS_LAST,
        step_seconds=STEP_SECONDS,
        data_seconds=0.0,
        speedup=3.0,
        build_seconds=0.0,
        is_complete=False,
        decided=(ADOPTED, REFUSED) if is_decided else (ADOPTED,),
    )
    model = Net(slow="contiguous")
    plain = train(tmp_path / "plain", plainly(model), epochs=60)
    found = tuned(tmp_path / "tuned", model, arguments={"known": known}, facts={"num_cores": 2}, epochs=60)
    tuner = found.tuner
    assert tuner is not None and tuner.took_known and tuner.is_complete and found.plan == CHANNELS_LAST
    assert found.ledger.trials[0].verdict == "adopted" and found.ledger.trials[0].num_rounds == 0
    trial = found.trials["2 threads"]
    if is_decided:
        assert (trial.verdict, trial.reason) == ("not tried", REFUSED_BEFORE)
        assert tuner.decided_before == (ADOPTED, REFUSED)
        assert all(trial.num_rounds == 0 for trial in found.ledger.trials)
    else:
        assert trial.verdict == "refused" and trial.num_rounds > 0
    assert "channels_last" not in found.trials
    assert_same_losses(found.losses[:300], plain.losses[:300])


@pytest.mark.usefixtures("simulated_clock")
@pytest.mark.parametrize("fails", [False, True])
def test_a_plan_that_is_gone_on_with_keeps_its_speedup_and_can_still_fail(fails: bool, tmp_path: Path) -> None:
    known = KnownPlan(
        plan=CHANNELS_LAST,
        step_seconds=STEP_SECONDS,
        data_seconds=0.0,
        speedup=3.0,
        build_seconds=7.0,
        is_complete=False,
        decided=(ADOPTED,),
    )
    model = Net(slow="contiguous")
    num_steps = 0

    def trouble(logits: torch.Tensor) -> torch.Tensor:
        nonlocal num_steps
        num_steps += 1
        if fails and num_steps == 40:
            raise RuntimeError("kernel panic")
        return logits

    model.trouble = trouble
    arguments = {"known": known, "first_plan": BASELINE}
    found = tuned(tmp_path, model, arguments=arguments, plan=CHANNELS_LAST, epochs=5)
    assert found.tuner is not None and len(found.losses) == 100
    document = to_document(found.tuner, found.plan)
    assert document is not None
    if fails:
        assert found.plan == BASELINE and any("the tuned plan was dropped" in note for note in found.notes)
        assert (document["speedup"], document["build_seconds"], document["complete"]) == (1.0, 0.0, False)
        assert document["decided"] == [], "what was refused on top of the plan was not refused on top of the first one"
    else:
        assert found.plan == CHANNELS_LAST and document["speedup"] > 1.5 and document["build_seconds"] == 7.0


def test_plans_are_refused_on_top_of_what_was_adopted_before_them() -> None:
    nonsense = [{}, {"changes": 3, "verdict": "refused"}, {"changes": {"speed": 1}, "verdict": "refused"}]
    first = {"name": "4 threads", "changes": {"num_threads": 4}, "verdict": "failed"}
    assert refused_plans([first, *nonsense, ADOPTED, REFUSED], BASELINE) == [
        Plan(num_threads=4),
        Plan(memory_format="channels_last", num_threads=2),
    ]


def test_a_candidate_whose_race_was_cut_short_is_undecided() -> None:
    def trial(verdict: Any, reason: str) -> Trial:
        return Trial(
            name="x", changes={}, tier="A", verdict=verdict, reason=reason, expected_gain=0, expected_seconds=0, step=0
        )

    assert trial("refused", "slower").is_decided and not trial("refused", UNDECIDED).is_decided
    assert not trial("not tried", "too dear").is_decided and not trial("demoted", "it failed").is_decided


# A real process

RECIPE = '''
import os
import signal

import torch
from layered_recipe import RECIPE as LAYERED, Layered
from dataclasses import replace


class Killed(Layered):
    """Kills its process while the second candidate is raced."""

    steps = 0

    def forward(self, images):
        if torch.get_num_threads() == 2 and not self.conv.weight.is_contiguous() and "KILL" in os.environ:
            self.steps += 1
            if self.steps == 60:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


RECIPE = replace(LAYERED, model=Killed, epochs=40, checkpoint_every_steps=10)
'''
RUN = """
import json, sys
import simulated_clock
simulated_clock.install()
from upshift import train
recipe, out, plan, resume = sys.argv[1:]
print(json.dumps(train(recipe, out=out, plan=plan, resume=resume == "resume").result))
"""


def run(folder: Path, name: str, *, plan: str = "auto", resume: bool = False, kill: bool = False) -> Any:
    """Train in a process of its own, of four threads, so that two are a candidate on every machine."""
    tests = Path(__file__).parent
    recipe = folder / "killed.py"
    recipe.write_text(RECIPE)
    settings = {
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "OMP_NUM_THREADS": "4",
        "UPSHIFT_CACHE_DIR": str(folder / "cache"),
    }
    arguments = [str(recipe), str(folder / name), plan, "resume" if resume else "anew"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        env=os.environ | settings | ({"KILL": "1"} if kill else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
    return None if kill else json.loads(done.stdout)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("keeps_cache", [True, False])
def test_a_run_that_is_killed_while_it_tunes_is_resumed_with_what_it_had_found(
    keeps_cache: bool, tmp_path: Path
) -> None:
    run(tmp_path, "run", kill=True)
    left = json.loads((tmp_path / "run/tuning.json").read_text())
    assert left["complete"] is False and left["plan"]["memory_format"] == "channels_last"
    assert [trial["name"] for trial in left["decided"]] == ["channels_last"]
    assert json.loads((tmp_path / "run/plan.json").read_text())["memory_format"] == "channels_last"
    remembered = [json.loads(path.read_text())["content"] for path in (tmp_path / "cache").glob("tuning-v1/*/trials/*")]
    assert [trial["name"] for trials in remembered for trial in trials] == ["channels_last"], "for what things cost"
    if not keeps_cache:
        (tmp_path / "cache").rename(tmp_path / "lost")
    resumed = run(tmp_path, "run", resume=True)
    assert resumed["resumed_from_step"] > 0 and resumed["plan"]["memory_format"] == "channels_last"
    adopted, *others = resumed["plan"]["trials"]
    assert (adopted["name"], adopted["verdict"]) == ("channels_last", "adopted") and adopted == left["decided"][0]
    assert all(trial["name"] != "channels_last" for trial in others), "it is not raced again"
    run(tmp_path, "plain", plan="baseline")
    # Round-off, which any other execution has, is amplified by further training.
    assert_same_losses(losses(tmp_path / "run")[:400], losses(tmp_path / "plain")[:400], relative=1e-4)
