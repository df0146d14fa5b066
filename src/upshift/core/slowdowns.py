"""What slows this machine down just now: heat, a capped clock, a quota that is used up, too much work.

`core.load` measures what other programs use while something is timed; this tells beforehand, in words, what a
measurement would suffer from. Whatever the system does not show is left out without a word: in a virtual
machine that is most of it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from upshift.core import cgroup

MAX_THROTTLED_SHARE = 0.05
"""Of the periods of a quota: with less, a measurement's median feels nothing."""
MIN_CLOCK_SHARE = 0.95
"""Of the clock that the processor can have."""

_CPU_ZONE = re.compile(r"x86_pkg_temp|acpitz|(cpu|soc|core|k10temp|bigcore|littlecore).*", re.IGNORECASE)
_THROTTLING_TRIPS = ("passive", "hot", "critical")


@dataclass(frozen=True)
class SlowdownCounts:
    """The system's counts of what slowed this process down; they only ever grow.

    Attributes:
        num_heat_events: How often a core that this process may run on, or its whole processor, was slowed by heat.
        throttling: Use of the quota of processor time; None without one.
    """

    num_heat_events: int
    throttling: cgroup.CpuThrottling | None


def slowdown_counts(root: Path = Path("/")) -> SlowdownCounts:
    """The counts so far, to be handed to `slowdowns` after a measurement.

    Args:
        root: Where `proc` and `sys` are.
    """
    folders = [cpu / "thermal_throttle" for cpu in _usable_cpus(root)]
    of_cores = [_number(folder / "core_throttle_count") or 0 for folder in folders]
    of_package = [_number(folder / "package_throttle_count") or 0 for folder in folders]  # each core repeats it
    return SlowdownCounts(
        num_heat_events=sum(of_cores) + max(of_package, default=0),
        throttling=cgroup.cpu_throttling(root),
    )


def slowdowns(*, since: SlowdownCounts | None = None, root: Path = Path("/")) -> list[str]:
    """What slows this machine down, a sentence each; empty where nothing does, or nothing is shown.

    Args:
        since: Counts from the beginning of a measurement. Without them heat is judged by the temperature alone,
            and the quota by all the time since its group was made.
        root: Where `proc` and `sys` are.
    """
    warnings = [*_hot_zones(root), _capped_clock(root), _overload(root)]
    now = slowdown_counts(root)
    if since is not None and now.num_heat_events > since.num_heat_events:
        events = now.num_heat_events - since.num_heat_events
        warnings.append(f"the processor was slowed down because of heat ({events} times while this was measured)")
    warnings.append(_used_up_quota(now, since))
    return [warning for warning in warnings if warning]


def _hot_zones(root: Path) -> Iterable[str]:
    """Zones of the processor at or above the temperature at which the system slows it down."""
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, temperature = _text(zone / "type"), _number(zone / "temp")
        if kind is None or temperature is None or not _CPU_ZONE.fullmatch(kind):
            continue
        trips = [
            _number(trip.with_name(trip.name.replace("_type", "_temp")))
            for trip in zone.glob("trip_point_*_type")
            if _text(trip) in _THROTTLING_TRIPS
        ]
        # Firmware that does not tell writes 0 or -274 °C.
        limit = min((trip for trip in trips if trip is not None and trip > 0), default=None)
        if limit is not None and temperature >= limit:
            yield (
                f"the processor is {temperature / 1000:.0f} °C hot, and is slowed down from "
                f"{limit / 1000:.0f} °C on ({kind})"
            )


def _capped_clock(root: Path) -> str | None:
    """Cores whose clock is held below what they can do, by a policy, a daemon or the firmware."""
    worst: tuple[float, int, int] | None = None
    for cpu in _usable_cpus(root):
        clock = cpu / "cpufreq"
        highest = _number(clock / "cpuinfo_max_freq")
        caps = [_number(clock / "scaling_max_freq"), _number(clock / "bios_limit")]
        # This driver knows the two ends and what is between them; under the others "powersave" is adaptive.
        if _text(clock / "scaling_driver") == "acpi-cpufreq" and _text(clock / "scaling_governor") == "powersave":
            caps.append(_number(clock / "scaling_min_freq"))
        cap = min((cap for cap in caps if cap), default=None)
        if highest and cap is not None and (worst is None or cap / highest < worst[0]):
            worst = cap / highest, cap, highest
    if worst is None or worst[0] >= MIN_CLOCK_SHARE:
        return None
    return f"the processor's clock is held at {worst[1] / 1e6:.1f} of {worst[2] / 1e6:.1f} GHz"


def _overload(root: Path) -> str | None:
    """More threads that want to run than the whole machine has cores; the load average is the machine's."""
    words = (_text(root / "proc/loadavg") or "").split()
    lines = (_text(root / "proc/stat") or "").splitlines()
    num_cores = sum(bool(re.match(r"cpu\d", line)) for line in lines) or os.cpu_count() or 1
    try:
        load = float(words[0])
    except (IndexError, ValueError):
        return None
    if not num_cores < load < 1e6:
        return None
    return f"{load:.1f} threads on average wanted to run in the last minute, on {num_cores} cores"


def _used_up_quota(now: SlowdownCounts, since: SlowdownCounts | None) -> str | None:
    after, before = now.throttling, since.throttling if since else None
    if after is None:
        return None
    periods = after.num_periods - (before.num_periods if before else 0)
    throttled = after.num_throttled - (before.num_throttled if before else 0)
    if periods <= 0 or throttled / periods < MAX_THROTTLED_SHARE:
        return None
    when = "while this was measured" if since else "since its control group was made"
    return (
        f"this process's quota of processor time was used up in {min(1.0, throttled / periods) * 100:.0f} % of its "
        f"periods {when}: it stood still for the rest of each"
    )


def _usable_cpus(root: Path) -> list[Path]:
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return [root / f"sys/devices/system/cpu/cpu{cpu}" for cpu in cpus]


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return None


def _number(path: Path) -> int | None:
    with contextlib.suppress(ValueError):
        return int(_text(path) or "")
    return None
