"""`upshift profile`: the record, the page, the trace, the command line, and what is refused."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import upshift
from upshift.errors import BadInputError, ConfigError, PlanError, StorageError
from upshift.recipes.recipe import Recipe
from upshift.reports.profile_lines import profile_lines
from upshift.reports.profile_page import render_profile
from upshift.tuning.plan import Plan, load_plan
from upshift.tuning.profiling.advice import Advice
from upshift.tuning.profiling.job import Job
from upshift.workflows.profile import ProfiledTraining, _write_plans

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "profile.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> ProfiledTraining:
    """The embedded digits in tiny batches, so that there is advice."""
    out = tmp_path_factory.mktemp("profile") / "out"
    done: ProfiledTraining = upshift.profile("digits", overrides=["batch_size=2"], out=out, num_steps=8)
    return done


# --- the record ---------------------------------------------------------------------------------------


def test_folder_holds_the_record_the_page_the_trace_and_the_plans(profiled: ProfiledTraining) -> None:
    names = {path.name for path in profiled.path.iterdir() if not path.name.startswith(".")}
    plans = {f"plan-{advice['plan_name']}.json" for advice in profiled.result["advice"] if advice["plan_name"]}
    assert names == {"profile.json", "profile.html", "trace.json.gz", *plans}
    assert json.loads((profiled.path / "profile.json").read_text()) == profiled.result


def test_parts_add_up_to_the_step_and_to_the_throughput(profiled: ProfiledTraining) -> None:
    breakdown, timeline = profiled.result["breakdown"], profiled.result["timeline"]
    names = ("data_wait", "host_overhead", "device_compute", "synchronization", "communication")
    assert all(breakdown[name] >= 0 for name in names)
    assert sum(breakdown[name] for name in names) == pytest.approx(breakdown["seconds"])
    assert breakdown["samples_per_second"] == pytest.approx(2 / breakdown["seconds"])
    assert breakdown["num_steps"] == len(timeline["step"]) == len(timeline["data"]) == len(timeline["starts"]) >= 8
    step, waited = statistics.median(timeline["step"]), statistics.fmean(timeline["data"])
    assert breakdown["data_wait"] == pytest.approx(waited)
    assert breakdown["seconds"] == pytest.approx(waited + step)


def test_operators_of_the_step_account_for_the_step(profiled: ProfiledTraining) -> None:
    breakdown, rows = profiled.result["breakdown"], profiled.result["operators"]
    within = [row for row in rows if row["phase"] != "data"]
    seconds = sum(row["seconds"] + row["overhead_seconds"] for row in within)
    assert seconds == pytest.approx(breakdown["seconds"] - breakdown["data_wait"])
    assert [row["share"] for row in rows] == sorted((row["share"] for row in rows), reverse=True)
    names = {(row["name"], row["phase"]) for row in rows}
    assert {("aten::convolution", "forward"), ("aten::convolution_backward", "backward")} <= names
    assert any(phase == "optimizer" and name.startswith("aten::_fused_adam") for name, phase in names)


def test_arithmetic_of_a_layer_is_counted_exactly(tmp_path: Path) -> None:
    recipe = Recipe(name="linear", model=Linear, batch_size=32)
    result = upshift.profile(recipe, out=tmp_path / "out", num_steps=3).result
    (forward,) = [row for row in result["operators"] if row["name"] == "aten::addmm"]
    assert forward["flops"] == 2 * 32 * 64 * 10
    assert forward["num_bytes"] == 4 * (32 * 64 + 64 * 10 + 10 + 32 * 10)
    assert forward["flops_per_second"] == pytest.approx(forward["flops"] / forward["seconds"])
    roofline = result["roofline"]
    least = max(forward["flops"] / roofline["flops_per_second"], forward["num_bytes"] / roofline["bytes_per_second"])
    assert forward["share_of_limit"] == pytest.approx(least / forward["seconds"])


class Linear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


def test_memory_is_that_of_the_tensors(tmp_path: Path) -> None:
    recipe = Recipe(name="linear", model=Linear, batch_size=32)
    memory = upshift.profile(recipe, out=tmp_path / "out", num_steps=3).result["memory"]
    weights, outputs = 4 * (64 * 10 + 10), 4 * 32 * 10
    assert memory["parameters"] == memory["gradients"] == weights
    assert memory["optimizer_state"] == 0
    batch = 32 * 64 * 4 + 32 * 8
    assert memory["peak"] >= 2 * weights + batch + outputs
    assert memory["peak"] == max(size for _, size in memory["timeline"])
    assert memory["peak"] == max(memory["peak_by_phase"].values())
    assert [phase for phase, _ in memory["timeline"]] == sorted(
        (phase for phase, _ in memory["timeline"]), key=["forward", "backward", "optimizer"].index
    )


def test_trace_has_steps_operators_and_python_functions(profiled: ProfiledTraining) -> None:
    with gzip.open(profiled.path / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    kinds = {event.get("cat") for event in events}
    assert {"cpu_op", "python_function", "user_annotation"} <= kinds
    assert sum(event["name"] == "upshift: step" and event.get("cat") == "user_annotation" for event in events) == 2


def test_fields_are_the_documented_ones(profiled: ProfiledTraining) -> None:
    table = PAGE[PAGE.index("## profile.json") :]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*) \|$", table, flags=re.MULTILINE)
    documented = {name: told for names, told in rows for name in re.findall(r"`(\w+)`", names)}
    result = profiled.result
    assert set(documented) == set(result)

    def told(field: str) -> set[str]:
        return set(re.findall(r"`(\w+)`", documented[field]))

    parts = {"data_wait", "host_overhead", "device_compute", "synchronization", "communication"}
    assert told("breakdown") | parts == set(result["breakdown"])
    assert told("operators") == set(result["operators"][0])
    assert told("memory") == set(result["memory"]) | set(result["memory"]["holders"][0])
    assert told("timeline") == set(result["timeline"])
    assert told("roofline") == set(result["roofline"])
    assert told("scaling") == set(result["scaling"])
    assert told("advice") == set(result["advice"][0]) == set(Advice.__dataclass_fields__)


def test_causes_are_the_documented_ones() -> None:
    from typing import get_args

    from upshift.tuning.profiling.advice import SEARCH
    from upshift.tuning.profiling.cause import Kind

    section = PAGE[PAGE.index("## Advice") : PAGE.index("## profile.json")]
    assert set(re.findall(r"^\| `([a-z0-9 ]+)` \|", section, flags=re.MULTILINE)) - {"cause"} == {
        *get_args(Kind),
        SEARCH,
    }


# --- advice -------------------------------------------------------------------------------------------


def test_commands_are_of_this_program_and_name_plans_that_exist(profiled: ProfiledTraining) -> None:
    import typer.main

    from upshift.cli import app

    verbs = typer.main.get_group(app).commands
    for advice in profiled.result["advice"]:
        program, verb, recipe, *options = shlex.split(advice["command"])
        assert (program, recipe) == ("upshift", "digits")
        with verbs[verb].make_context(verb, [recipe, *options]) as context:
            wanted = ["batch_size=64"] if advice["cause"] == "small batch" else ["batch_size=2"]
            assert context.params["set_"] == wanted
            if advice["plan"] is not None:
                plan = load_plan(context.params["plan"])
                assert all(getattr(plan, name) == value for name, value in advice["plan"].items())


def test_advice_is_ranked_by_what_it_spares(profiled: ProfiledTraining) -> None:
    advices = [advice for advice in profiled.result["advice"] if advice["spared_seconds"] is not None]
    assert profiled.result["advice"][len(advices)]["cause"] == "search"
    spared = [advice["spared_seconds"] for advice in advices]
    assert spared == sorted(spared, reverse=True)
    total = profiled.result["breakdown"]["seconds"]
    for advice in advices:
        assert 0 < advice["spared_seconds"] < total
        assert advice["speedup"] == pytest.approx(total / (total - advice["spared_seconds"]))


# --- the page and the terminal ----------------------------------------------------------------------------


def test_page_shows_each_part_and_each_advice(profiled: ProfiledTraining) -> None:
    page = (profiled.path / "profile.html").read_text(encoding="utf-8")
    assert page == render_profile(profiled.result)
    for words in ("Where a step’s time goes", "What to do", "Operators", "Memory over a step", "Input pipeline"):
        assert f"<h2>{words}</h2>" in page
    for advice in profiled.result["advice"]:
        assert advice["action"][:40] in page
    assert page.count("<svg") == 2 and page.count('class="bar"') == 1
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)


def test_names_from_elsewhere_are_shown_and_not_obeyed(profiled: ProfiledTraining) -> None:
    hostile = "<script>alert(1)</script>\x1b[31m\u202e&"
    result = json.loads(json.dumps(profiled.result))
    result["recipe"] = result["variant"] = hostile
    for advice in result["advice"]:
        advice |= {"title": hostile, "where": hostile, "action": hostile, "command": hostile}
    for row in result["operators"]:
        row |= {"name": hostile, "site": hostile, "phase": hostile}
    result["memory"]["holders"] = [{"name": hostile, "site": hostile, "num_bytes": 3}]
    result["memory"]["timeline"] = [[hostile, 5], [hostile, 7]]
    result["items"] = {"seconds": 1.0, "functions": [{"place": hostile, "name": hostile, "own_seconds": 1.0}]}
    page = render_profile(result)
    assert "<script" not in page and "\x1b" not in page
    text = "\n".join(map(str, profile_lines(result)))
    assert "\x1b" not in text and "\u202e" not in text


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"breakdown": None},
        {"breakdown": {"seconds": "x"}, "operators": [3]},
        {"timeline": {"step": ["x"], "data": []}},
    ],
)
def test_a_record_with_holes_still_makes_a_page_and_lines(broken: dict[str, Any]) -> None:
    assert "</html>" in render_profile(broken)
    assert profile_lines(broken)


# --- the command line -------------------------------------------------------------------------------------


def test_json_is_one_document_and_the_terminal_says_what_to_do(upshift_cli: Callable[..., Any]) -> None:
    answer = upshift_cli("profile", "digits", "--steps", 3, "--json", "--quiet", "--out", "a")
    assert answer.code == 0
    assert json.loads(answer.out)["run_dir"].endswith("/a")
    answer = upshift_cli("profile", "digits", "--steps", 3, "--quiet", "--set", "batch_size=2", "--out", "b")
    assert answer.code == 0
    for words in ("bound by", "computing", "overhead", "waiting for data", "operator", "upshift tune digits"):
        assert words in answer.out
    assert answer.out.rstrip().endswith("b/profile.html")


def test_default_folder_lies_among_the_runs(upshift_cli: Callable[..., Any]) -> None:
    answer = upshift_cli("profile", "digits", "--steps", 3, "--quiet", "--json")
    (folder,) = (path for path in Path("runs").iterdir())
    assert folder.name.startswith("digits-profile-")
    assert json.loads(answer.out)["run_dir"] == str(folder.resolve())


RECIPE_FILE = """
import torch
from torch import nn
from upshift import DataConfig, Recipe

class Net(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.classify = nn.Linear(64, num_classes)

    def forward(self, images):
        flat = images.flatten(1)
        low = min(value.item() for value in flat[:6].flatten())
        return self.classify(flat - low)

RECIPE = Recipe(name="mine", model=Net, data=DataConfig(source="digits"))
"""


def test_a_recipe_file_is_named_by_file_and_line(tmp_path: Path, upshift_cli: Callable[..., Any]) -> None:
    (tmp_path / "mine.py").write_text(RECIPE_FILE)
    answer = upshift_cli("profile", "mine.py", "--steps", 5, "--quiet", "--json")
    advice = json.loads(answer.out)["advice"][0]
    assert (advice["cause"], advice["where"]) == ("synchronization", "mine.py:13")


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digitz",), "did you mean 'digits'"),
        (("digits", "--steps", 2), "--steps must be at least 3; received 2"),
        (("digits", "--plan", "no-such.json"), "a plan must be"),
        (("digits", "--set", "batch_size=100000"), "batch_size must be at most"),
        (("digits", "--out", "/proc/nothing"), "hint:"),
        (("digits", "--set", "epochs=abc"), "epochs"),
    ],
)
def test_bad_requests_are_answered_in_one_line(
    upshift_cli: Callable[..., Any], arguments: tuple[Any, ...], words: str
) -> None:
    answer = upshift_cli("profile", *arguments, "--quiet")
    assert answer.code == 2
    assert answer.out == ""
    assert words in answer.err and len(answer.err.strip().splitlines()) == 1


def test_a_folder_with_something_in_it_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("x")
    with pytest.raises(BadInputError, match="new or empty") as caught:
        upshift.profile("digits", out=tmp_path, num_steps=3)
    assert caught.value.hint == "name another one", "a profile cannot be resumed"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("out", ["/proc/mine", "/proc/deep/er", "/dev/null/mine"])
def test_a_folder_that_cannot_be_written_is_refused_before_data_are_packed(out: str) -> None:
    packed: list[str] = []
    with pytest.raises(StorageError, match=f"^{out} must be a folder that can be written; "):
        upshift.profile("digits", out=out, on_data_progress=lambda *done: packed.append(done[0]))
    assert not packed


def test_datasets_whose_size_is_no_multiple_of_the_batch_are_profiled(tmp_path: Path) -> None:
    data = {name: TensorDataset(torch.rand(150, 1, 8, 8), torch.arange(150) % 10) for name in ("train", "test")}
    recipe = Recipe(name="linear", model=Linear, batch_size=64)
    items = upshift.profile(recipe, data=data, out=tmp_path / "out", num_steps=3).result["items"]
    assert items["num_items"] == 150


def test_settings_of_the_process_are_as_they_were(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        torch.set_float32_matmul_precision("medium")
        overrides = ["batch_size=8"]
        upshift.profile("digits", plan=Plan(num_threads=1), overrides=overrides, out=tmp_path / "out", num_steps=3)
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads + 1, "medium")
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")


def test_plans_that_commands_name_are_written_and_a_changed_one_without_the_evidence(tmp_path: Path) -> None:
    plan = Plan(micro_batch_size=2, subject="a model", environment={"cpu": "a"}, trials=({"name": "x"},))
    job = Job(
        recipe="digits",
        options={},
        settings=(),
        data_handed_over=False,
        plan=plan,
        plan_argument=None,
        data_path="resident",
        augments=False,
        num_cores=2,
        folder=tmp_path,
    )
    unknown: dict[str, Any] = {"where": None, "action": "", "basis": "", "is_bound": False, "changes_algorithm": False}
    unknown |= {"seconds": None, "spared_seconds": None, "speedup": None}
    again = Advice(cause="x", title="code", command=job.profile(), plan=None, plan_name=None, **unknown)
    threads: dict[str, Any] = {"num_threads": 1}
    command = job.train_with("threads", threads)
    changed = Advice(cause="y", title="threads", command=command, plan=threads, plan_name="threads", **unknown)
    _write_plans([again, changed], job)
    named = [word for item in (again, changed) for word in shlex.split(item.command) if word.endswith(".json")]
    assert [load_plan(name) for name in named] == [plan, Plan(micro_batch_size=2, num_threads=1)]


def test_wrong_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        upshift.profile("digits", num_steps="many", out=tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(PlanError):
        upshift.profile("digits", plan="auto", out=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


class Fails(nn.Module):
    """Cannot take a batch in training."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise ArithmeticError("not today")
        outputs: torch.Tensor = self.classify(images.flatten(1))
        return outputs


def test_a_model_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="not today"):
        upshift.profile(Recipe(name="fails", model=Fails), out=tmp_path / "out", num_steps=3)
    assert list(tmp_path.iterdir()) == []


# --- other ways to train ----------------------------------------------------------------------------------


def test_micro_batches_clipping_averages_and_stages_are_rehearsed(tmp_path: Path) -> None:
    overrides = ["ema_decay=0.99", "clip_grad_norm=1", "epochs=2"]
    plan = Plan(micro_batch_size=16, memory_format="channels_last")
    result = upshift.profile("digits", overrides=overrides, plan=plan, out=tmp_path / "out", num_steps=3).result
    rows = {(row["name"], row["phase"]): row for row in result["operators"]}
    assert rows["aten::convolution", "forward"]["calls"] == 4 * 3
    assert rows["aten::convolution_backward", "backward"]["calls"] == 4 * 3
    assert any(name == "aten::_foreach_lerp_" and phase == "optimizer" for name, phase in rows)
    assert {advice["cause"] for advice in result["advice"]} & {"memory format"} == set()
    assert result["command"] == []


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["whole", "step"])
def test_a_compiled_step_has_operators_and_parts(scope: str, tmp_path: Path) -> None:
    plan = Plan(compile=scope, keep_freed_memory=True)  # type: ignore[arg-type]
    result = upshift.profile("digits", plan=plan, out=tmp_path / "out", num_steps=5).result
    assert result["breakdown"]["device_compute"] > 0
    phases = {row["phase"] for row in result["operators"]}
    assert phases >= ({"forward", "optimizer"} if scope == "step" else {"forward", "backward", "optimizer"})
    assert all(row["flops"] is None for row in result["operators"])
    assert {phase for phase, _ in result["memory"]["timeline"]} == {"forward", "backward", "optimizer"}
    assert any("compiled" in note for note in result["notes"])
    assert [advice["cause"] for advice in result["advice"]][-1] == "search"
