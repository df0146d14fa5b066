"""What slows the machine down, read from files laid out as Linux lays them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from upshift.core.slowdowns import slowdown_counts, slowdowns

CPU = f"sys/devices/system/cpu/cpu{min(os.sched_getaffinity(0))}"
COOL = {
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone0/temp": "61000",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "95000",
    f"{CPU}/cpufreq/cpuinfo_max_freq": "4200000",
    f"{CPU}/cpufreq/scaling_max_freq": "4200000",
    f"{CPU}/cpufreq/scaling_min_freq": "800000",
    f"{CPU}/cpufreq/scaling_governor": "powersave",
    f"{CPU}/cpufreq/scaling_driver": "intel_pstate",
    f"{CPU}/thermal_throttle/core_throttle_count": "7",
    f"{CPU}/thermal_throttle/package_throttle_count": "9",
    "proc/loadavg": "1.97 1.22 1.05 4/114 2274",
    "proc/stat": "cpu  1 2 3\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\n",
    "proc/self/cgroup": "0::/",
    "sys/fs/cgroup/cpu.stat": "nr_periods 1000\nnr_throttled 3\n",
}


def machine(root: Path, **changes: str) -> Path:
    for name, text in {**COOL, **changes}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_a_machine_that_shows_nothing_gives_no_warning(tmp_path: Path) -> None:
    assert slowdowns(root=tmp_path) == []
    assert slowdowns(root=tmp_path, since=slowdown_counts(tmp_path)) == []


def test_a_cool_machine_with_little_to_do_gives_no_warning(tmp_path: Path) -> None:
    root = machine(tmp_path)
    assert slowdowns(root=root) == [] and slowdowns(root=root, since=slowdown_counts(root)) == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("sys/class/thermal/thermal_zone0/temp", "96400", "96 °C hot, and is slowed down from 95 °C"),
        (f"{CPU}/cpufreq/scaling_max_freq", "2100000", "held at 2.1 of 4.2 GHz"),
        (f"{CPU}/cpufreq/bios_limit", "1900000", "held at 1.9 of 4.2 GHz"),
        (f"{CPU}/cpufreq/scaling_driver", "acpi-cpufreq", "held at 0.8 of 4.2 GHz"),
        ("proc/loadavg", "6.31 1.0 1.0 4/114 2274", "6.3 threads on average"),
        ("sys/fs/cgroup/cpu.stat", "nr_periods 1000\nnr_throttled 400", "used up in 40 % of its periods since"),
    ],
)
def test_each_slowdown_is_told_of_and_nothing_else_is(tmp_path: Path, name: str, value: str, says: str) -> None:
    (warning,) = slowdowns(root=machine(tmp_path, **{name: value}))
    assert says in warning


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sys/class/thermal/thermal_zone0/trip_point_0_temp", "0"),
        ("sys/class/thermal/thermal_zone0/trip_point_0_temp", "-274000"),
        ("sys/class/thermal/thermal_zone0/trip_point_0_temp", ""),
        (f"{CPU}/cpufreq/scaling_max_freq", "<unsupported>"),
        (f"{CPU}/cpufreq/cpuinfo_max_freq", "0"),
        ("proc/loadavg", ""),
        ("proc/loadavg", "nan nan nan"),
        ("proc/loadavg", "inf"),
        ("sys/fs/cgroup/cpu.stat", "nr_periods 0\nnr_throttled 0"),
        ("sys/fs/cgroup/cpu.stat", "\x00"),
    ],
)
def test_values_that_mean_nothing_are_left_out(tmp_path: Path, name: str, value: str) -> None:
    assert slowdowns(root=machine(tmp_path, **{name: value, "sys/class/thermal/thermal_zone0/temp": "50000"})) == []


def test_a_hot_zone_that_is_not_the_processors_does_not_matter(tmp_path: Path) -> None:
    zone = {"sys/class/thermal/thermal_zone0/type": "iwlwifi_1", "sys/class/thermal/thermal_zone0/temp": "99000"}
    assert slowdowns(root=machine(tmp_path, **zone)) == []


def test_counts_are_judged_by_what_was_added_while_measuring(tmp_path: Path) -> None:
    past = {"sys/fs/cgroup/cpu.stat": "nr_periods 1000\nnr_throttled 900"}
    root = machine(tmp_path, **past)
    before = slowdown_counts(root)
    machine(root, **{"sys/fs/cgroup/cpu.stat": "nr_periods 1100\nnr_throttled 901"})
    assert slowdowns(root=root, since=before) == []
    machine(
        root,
        **{
            "sys/fs/cgroup/cpu.stat": "nr_periods 1100\nnr_throttled 950",
            f"{CPU}/thermal_throttle/core_throttle_count": "8",
            f"{CPU}/thermal_throttle/package_throttle_count": "11",
        },
    )
    heat, quota = slowdowns(root=root, since=before)
    assert "because of heat (3 times" in heat and "50 % of its periods while this was measured" in quota


def test_this_machine_answers_in_sentences() -> None:
    assert all(isinstance(warning, str) and warning for warning in slowdowns(since=slowdown_counts()))
