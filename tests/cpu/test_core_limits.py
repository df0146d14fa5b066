"""What a machine can do: measured with real work, kept, and held against what steps took."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from upshift.core import limits as limits_module
from upshift.core import peaks
from upshift.core.cache import TuningCache
from upshift.core.flops import StepCost, step_cost
from upshift.core.limits import Limits, best_of, known_limits, limits, measure_limits
from upshift.core.roofline import share_of_limit
from upshift.core.typed_fields import to_json
from upshift.errors import ConfigError, UnknownNameError
from upshift.workflows.live_tuning import fast_dtypes

CPU = torch.device("cpu")
KNOWN = Limits(
    device="cpu",
    matmul_flops={"fp32": 2e11, "bf16": 8e11},
    convolution_flops={"fp32": 4e11},
    memory_bytes_per_second=4e10,
    cache_bytes_per_second=2e11,
    cache_bytes=2**25,
    launch_seconds=1e-6,
    num_threads=2,
    was_busy=False,
    num_measurements=1,
    seconds=4.0,
)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real measurements, of a few calls each."""
    for name in ("_PEAK_SECONDS", "_BANDWIDTH_SECONDS", "_LAUNCH_SECONDS"):
        monkeypatch.setattr(limits_module, name, 0.002)
    monkeypatch.setattr(peaks, "MAX_BUFFER_BYTES", peaks._CHUNK_BYTES)


def state() -> tuple[Any, ...]:
    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
    )


@pytest.mark.usefixtures("hasty")
def test_measuring_leaves_the_process_as_it_was() -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu"):
            before = state()
            measure_limits("cpu")
            assert state() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("hasty")
def test_figures_belong_together() -> None:
    found = measure_limits("cpu")
    assert found.device == "cpu" and "fp32" in found.matmul_flops and "fp32" in found.convolution_flops
    assert found.peak_flops("fp32") == max(found.matmul_flops["fp32"], found.convolution_flops["fp32"])
    # A machine of any kind: from a million to 10^18 a second; an operator takes nanoseconds to a second.
    assert all(1e6 < rate < 1e18 for rate in found.matmul_flops.values())
    assert 1e6 < found.memory_bytes_per_second < 1e15 and 1e-9 < found.launch_seconds < 1


@pytest.mark.parametrize("device", ["cuda:7", "nonsense", "meta", ""])
def test_a_device_that_is_not_there_is_refused(device: str, tmp_path: Path) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(ConfigError, match="one that this machine has"):
        limits(device, cache=TuningCache(tmp_path), environment="here")


# --- remembered ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
def test_limits_are_measured_once_a_machine(tmp_path: Path) -> None:
    assert known_limits("cpu", cache=TuningCache(tmp_path), environment="here") is None
    assert list(tmp_path.iterdir()) == []
    first = limits("cpu", cache=TuningCache(tmp_path), environment="here")
    if first.was_busy:
        first = replace(first, was_busy=False)
        TuningCache(tmp_path).save("limits", "here", "cpu", to_json(first))
    assert limits(torch.device("cpu"), cache=TuningCache(tmp_path), environment="here") == first
    assert known_limits("cpu", cache=TuningCache(tmp_path), environment="here") == first
    assert known_limits("cpu", cache=TuningCache(tmp_path), environment="elsewhere") is None


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("num_measurements", [1, 3, 4, 5])
def test_what_was_measured_on_a_busy_machine_is_measured_again_a_few_times(
    tmp_path: Path, num_measurements: int
) -> None:
    cache = TuningCache(tmp_path)
    known = replace(KNOWN, was_busy=True, num_measurements=num_measurements, matmul_flops={"fp32": 1e17, "odd": 5.0})
    cache.save("limits", "here", "cpu", to_json(known))
    found = limits("cpu", cache=cache, environment="here")
    if num_measurements >= limits_module.MAX_MEASUREMENTS:
        assert found == known
    else:
        assert found.num_measurements == num_measurements + 1 and found.peak_flops("fp32") == 1e17
        assert {"fp32", "odd"} < set(found.matmul_flops)  # and those that were measured now
        assert known_limits("cpu", cache=cache, environment="here") == found


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "change",
    [
        {"memory_bytes_per_second": 0.0},
        {"memory_bytes_per_second": None},
        {"matmul_flops": {}},
        {"matmul_flops": {"fp32": -1.0}},
        {"matmul_flops": {"fp32": "fast"}},
        {"matmul_flops": [1.0]},
        {"cache_bytes": 0},
        {"device": "cuda"},
        {"invented": 1},
        {"num_measurements": "many"},
    ],
)
def test_remembered_nonsense_is_measured_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = TuningCache(tmp_path)
    cache.save("limits", "here", "cpu", to_json(KNOWN) | change)
    assert known_limits("cpu", cache=cache, environment="here") is None
    found = limits("cpu", cache=cache, environment="here")
    assert found.device == "cpu" and known_limits("cpu", cache=cache, environment="here") == found


@pytest.mark.usefixtures("hasty")
def test_a_cache_that_cannot_be_written_does_not_hinder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TuningCache(tmp_path / "file")
    assert limits("cpu", cache=cache, environment="here").device == "cpu" and cache.notes


RATES = st.dictionaries(st.sampled_from(["fp32", "bf16", "int8"]), st.floats(1e6, 1e15), min_size=1)
LIMITS = st.builds(
    Limits,
    device=st.just("cpu"),
    matmul_flops=RATES,
    convolution_flops=RATES,
    memory_bytes_per_second=st.floats(1e6, 1e13),
    cache_bytes_per_second=st.none() | st.floats(1e6, 1e13),
    cache_bytes=st.just(2**25),
    launch_seconds=st.floats(1e-8, 1e-3),
    num_threads=st.just(2),
    was_busy=st.booleans(),
    num_measurements=st.integers(1, 5),
    seconds=st.just(2.0),
)


@given(first=LIMITS, second=LIMITS)
def test_the_best_of_two_is_as_good_as_each_in_every_figure_and_in_either_order(first: Limits, second: Limits) -> None:
    both = best_of(first, second)
    assert both == best_of(second, first)
    for one in (first, second):
        for table, best in (
            (one.matmul_flops, both.matmul_flops),
            (one.convolution_flops, both.convolution_flops),
        ):
            assert all(best[name] >= rate for name, rate in table.items())
        assert both.memory_bytes_per_second >= one.memory_bytes_per_second
        assert both.launch_seconds <= one.launch_seconds
    assert both.was_busy == (first.was_busy and second.was_busy)
    assert Limits(**json.loads(json.dumps(to_json(both)))) == both


def test_the_last_level_of_cache_is_the_highest_that_is_told(tmp_path: Path) -> None:
    assert peaks.last_cache_bytes(CPU, tmp_path) is None
    for index, (level, size) in enumerate([("1", "48K"), ("1", "32K"), ("2", "1024K"), ("3", "32M"), ("4", "much")]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert peaks.last_cache_bytes(CPU, tmp_path) == 32 * 2**20


def test_a_precision_without_kernels_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peaks.DTYPES, "tiny", torch.float8_e5m2)
    assert peaks.convolution_flops("tiny", peaks.Stopwatch(CPU, 1.0), 0.002) is None


# --- the roofline ----------------------------------------------------------------------------------------


def cost_of(flops: int, num_bytes: int) -> StepCost:
    """A step with so many operations that reads so many bytes of parameters."""
    return StepCost(
        flops=flops,
        parameter_bytes=num_bytes,
        trained_bytes=0,
        optimizer_state_bytes=0,
        saved_bytes=0,
        saved_parameter_bytes=0,
        has_optimizer=False,
    )


@pytest.mark.parametrize(
    ("flops", "num_bytes", "precision", "limited_by", "seconds"),
    [
        (4 * 10**11, 10**8, "fp32", "compute", 1.0),
        (8 * 10**11, 10**8, "bf16", "compute", 1.0),
        (10**6, 4 * 10**10, "fp32", "memory", 1.0),
        (10**3, 2 * 10**7, "fp32", "cache", 1e-4),
        (0, 0, "fp32", "compute", 0.0),
    ],
)
def test_a_step_is_held_against_the_slower_of_computing_and_moving(
    flops: int, num_bytes: int, precision: str, limited_by: str, seconds: float
) -> None:
    found = share_of_limit(cost_of(flops, num_bytes), 2.0, KNOWN, precision)
    assert found.limited_by == limited_by and found.limit_seconds == pytest.approx(seconds)
    assert found.share == pytest.approx(seconds / 2.0) and found.flops_per_second == flops / 2.0


@given(
    flops=st.integers(1, 10**15),
    num_bytes=st.integers(1, 10**13),
    seconds=st.floats(1e-6, 1e6),
    known=LIMITS,
)
def test_the_limit_is_the_roofline(flops: int, num_bytes: int, seconds: float, known: Limits) -> None:
    known = replace(known, cache_bytes_per_second=None)
    precision = next(iter(known.matmul_flops))
    found = share_of_limit(cost_of(flops, num_bytes), seconds, known, precision)
    attainable = min(known.peak_flops(precision), flops / num_bytes * known.memory_bytes_per_second)
    assert math.isclose(found.attainable_flops_per_second, attainable, rel_tol=1e-9)
    assert math.isclose(found.share, flops / seconds / attainable, rel_tol=1e-9)


def test_a_cache_slower_than_the_memory_does_not_lower_the_limit() -> None:
    odd = replace(KNOWN, cache_bytes_per_second=1e6)
    assert share_of_limit(cost_of(10, 10**7), 1.0, odd, "fp32").limit_seconds == pytest.approx(1e7 / 4e10)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_has_no_share(seconds: float) -> None:
    with pytest.raises(ConfigError, match="greater than 0"):
        share_of_limit(cost_of(1, 1), seconds, KNOWN, "fp32")


def test_a_precision_that_was_not_measured_is_named() -> None:
    with pytest.raises(UnknownNameError, match="fp16"):
        share_of_limit(cost_of(1, 1), 1.0, KNOWN, "fp16")


@pytest.mark.usefixtures("hasty")
def test_a_real_step_has_a_share(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    inputs = torch.rand(32, 64)
    cost = step_cost(model, lambda: model(inputs).sum().backward())
    found = share_of_limit(cost, 1e-3, limits("cpu", cache=TuningCache(tmp_path), environment="here"), "fp32")
    assert found.share > 0 and found.limited_by in ("compute", "cache", "memory")


def test_precisions_are_fast_beside_fp32_and_none_is_where_that_is_not_known() -> None:
    assert fast_dtypes(KNOWN) == ("bf16",)
    assert fast_dtypes(replace(KNOWN, matmul_flops={"bf16": 8e11})) == ()
