"""Limits of control groups, read from files laid out as Linux lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from upshift.core import environment
from upshift.core.cgroup import CpuThrottling, cpu_throttling, memory_left_bytes, memory_limit_bytes, quota_cores

GIB = 2**30


def lay_out(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root with the process's groups and the given files below sys/fs/cgroup."""
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert quota_cores(tmp_path) is None and cpu_throttling(tmp_path) is None
    assert memory_limit_bytes(tmp_path) is None and memory_left_bytes(tmp_path) is None


def test_a_container_of_version_2_is_bound_by_what_its_root_shows(tmp_path: Path) -> None:
    files = {
        "cpu.max": "150000 100000\n",
        "cpu.stat": "usage_usec 5\nnr_periods 100\nnr_throttled 40\nthrottled_usec 9\n",
        "memory.max": f"{4 * GIB}\n",
        "memory.current": f"{3 * GIB}\n",
        "memory.stat": f"anon 5\ninactive_file {GIB}\n",
    }
    root = lay_out(tmp_path, "0::/\n", files)
    assert quota_cores(root) == 1.5
    assert cpu_throttling(root) == CpuThrottling(num_periods=100, num_throttled=40)
    assert memory_limit_bytes(root) == 4 * GIB and memory_left_bytes(root) == 2 * GIB


def test_the_tightest_of_a_group_and_those_above_it_binds(tmp_path: Path) -> None:
    files = {
        "user.slice/cpu.max": "200000 100000",
        "user.slice/memory.max": f"{2 * GIB}",
        "user.slice/memory.current": f"{2 * GIB}",
        "user.slice/job.scope/cpu.max": "max 100000",
        "user.slice/job.scope/memory.max": f"{8 * GIB}",
        "user.slice/job.scope/memory.current": f"{GIB}",
        "other.slice/cpu.max": "100000 100000",
    }
    for name in ("user.slice", "user.slice/job.scope"):
        files[f"{name}/memory.stat"] = "inactive_file 4096"
    root = lay_out(tmp_path, "0::/user.slice/job.scope\n", files)
    assert quota_cores(root) == 2.0
    assert memory_limit_bytes(root) == 2 * GIB and memory_left_bytes(root) == 4096


@pytest.mark.parametrize("path", ["/docker/0123", "/"])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1_is_read_too_also_where_the_groups_own_path_is_not_mounted(
    tmp_path: Path, path: str, mount: str
) -> None:
    files = {
        f"{mount}/cpu.cfs_quota_us": "300000",
        f"{mount}/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": f"{GIB}",
        "memory/memory.usage_in_bytes": f"{GIB // 2}",
        "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 4}\n",
    }
    root = lay_out(tmp_path, f"9:name=systemd:/\n4:memory:{path}\n1:{mount}:{path}\n0::/\n", files)
    assert quota_cores(root) == 3.0
    assert memory_limit_bytes(root) == GIB and memory_left_bytes(root) == GIB * 3 // 4


def test_no_limit_is_no_limit_in_either_version(tmp_path: Path) -> None:
    files = {
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "unified/cpu.max": "max 100000",
        "unified/memory.max": "max",
    }
    root = lay_out(tmp_path, "4:memory:/\n1:cpu:/\n0::/\n", files)
    assert quota_cores(root) is None and memory_limit_bytes(root) is None and memory_left_bytes(root) is None


@pytest.mark.parametrize("text", ["", "nonsense", "1 0", "1 2 3", "x y", "max"])
def test_nonsense_is_no_limit(tmp_path: Path, text: str) -> None:
    files = dict.fromkeys(("cpu.max", "cpu.stat", "memory.max", "memory.current", "memory.stat"), text)
    root = lay_out(tmp_path, f"0::/\n{text}\n", files)
    assert quota_cores(root) is None and memory_left_bytes(root) is None
    assert memory_limit_bytes(root) is None and cpu_throttling(root) is None


def test_a_path_that_leads_out_of_the_mount_is_not_followed(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "0::/../../outside\n", {"cpu.max": "400000 100000"})
    (tmp_path / "sys/outside").mkdir()
    (tmp_path / "sys/outside/cpu.max").write_text("100000 100000")
    assert quota_cores(root) == 4.0


def test_cores_and_memory_of_the_environment_are_cut_by_them(tmp_path: Path) -> None:
    files = {"cpu.max": "50000 100000", "memory.max": "1000000", "memory.current": "400000", "memory.stat": ""}
    root = lay_out(tmp_path, "0::/\n", files)
    assert environment.num_usable_cores(root) == 1  # half a core is one thread
    assert environment.memory_bytes(root) == 1_000_000
    assert environment.available_memory_bytes(root) == 500_000  # half of it where /proc/meminfo is not there
    (root / "proc/meminfo").write_text("MemTotal:  99999 kB\nMemAvailable:   700 kB\nHugepagesize: 4 kB\n")
    assert environment.available_memory_bytes(root) == 600_000
