"""What the control groups of this process allow it: processor time and memory (Linux cgroups, v1 and v2).

A group is bound by its own limits and by those of all groups above it. In a container the groups above may
not be seen, or the group's own path may not exist because its folder is mounted as the root: every folder
from the group's own up to the root is looked at, and those that are not there are left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MOUNT = Path("sys/fs/cgroup")
_NO_LIMIT_BYTES = 2**60
"""v1 has no word for "no limit": it shows the largest number of pages."""


@dataclass(frozen=True)
class CpuThrottling:
    """How often a quota of processor time was used up, since the group was made.

    Attributes:
        num_periods: In which the group ran.
        num_throttled: In which it was stopped before the period's end.
    """

    num_periods: int
    num_throttled: int


def quota_cores(root: Path = Path("/")) -> float | None:
    """Processor time that may be used, in cores (1.5 is a core and a half); None without a quota."""
    quotas = []
    for folder in _folders("cpu", root):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
            if quota not in ("max", "-1"):
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Memory that all processes of the group may use together; None without a limit."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_left_bytes(root: Path = Path("/")) -> int | None:
    """Memory that the group may still take, file caches that can be dropped included; None without a limit."""
    left = []
    for limit, folder in _memory(root):
        for usage in ("memory.current", "memory.usage_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                statistics = _numbers(folder / "memory.stat")
                droppable = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
                left.append(max(0, limit - int((folder / usage).read_text()) + droppable))
    return min(left, default=None)


def cpu_throttling(root: Path = Path("/")) -> CpuThrottling | None:
    """How often the quota that binds most was used up; None where no quota is counted."""
    counts = []
    for folder in _folders("cpu", root):
        with contextlib.suppress(OSError, ValueError):
            statistics = _numbers(folder / "cpu.stat")
            if "nr_throttled" in statistics:
                counts.append(CpuThrottling(statistics.get("nr_periods", 0), statistics["nr_throttled"]))
    return max(counts, key=lambda count: (count.num_throttled, count.num_periods), default=None)


def _memory(root: Path) -> Iterator[tuple[int, Path]]:
    """(limit in bytes, folder) of each group that has a limit."""
    for folder in _folders("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                limit = int((folder / name).read_text())
                if limit < _NO_LIMIT_BYTES:
                    yield limit, folder


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's group and of those above it, in v1 and v2."""
    seen = {root / _MOUNT, root / _MOUNT / controller}
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            mounts = [controller, controllers] if controllers else ["", "unified"]
            parts = [part for part in path.split("/") if part]
            # A path that leads out of the cgroup namespace cannot be followed: only the root is seen.
            parts = [] if ".." in parts else parts
            for mount in mounts:
                for depth in range(len(parts), -1, -1):
                    seen.add(root.joinpath(_MOUNT, mount, *parts[:depth]))
    yield from sorted(seen)


def _numbers(path: Path) -> dict[str, int]:
    """The "name number" lines of a file."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
