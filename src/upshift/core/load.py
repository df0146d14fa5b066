"""How much of this machine other programs used while something was timed.

What others used is what all processes used of the cores that this one may run on, less what this process
and its descendants used. Preemptions, the load average and pressure-stall figures will not do: they count
threads of our own that wait for each other as much as those of others.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

# Measured on two cores, a model of two threads beside a program that works in bursts: up to 5 % used by others its
# median latency was that of the quiet machine (where 0 to 1.5 % were counted); at 7 % it was 10 % higher, at 17 %
# 25 %, at 47 % 43 % with a mean of 40 times as much.
BUSY_SHARE = 0.05
# For machines with many cores: threads that wait for each other are as slow as the one that has to share its core.
BUSY_CORES = 0.5

_TICKS_SECONDS = 0.04
_PROC = Path("/proc")


@dataclass(frozen=True)
class Load:
    """Who used the usable cores in a stretch of time; shares are of all their time, in [0, 1].

    Attributes:
        others_share: Used by other programs, the kernel and its interrupts, or, in a virtual machine, stolen by
            its host for other machines.
        own_share: Used by this process and its descendants.
        seconds: How long the stretch was.
        num_cores: That this process may be scheduled on.
    """

    others_share: float
    own_share: float
    seconds: float
    num_cores: int

    @property
    def resolution(self) -> float:
        """How far a share can be off: the kernel counts in ticks, usually of 10 ms."""
        return _TICKS_SECONDS / (self.seconds * self.num_cores)

    @property
    def is_busy(self) -> bool:
        """Whether others used enough to disturb what was timed: a twentieth of all cores, or half a core."""
        return self.others_share - self.resolution > min(BUSY_SHARE, BUSY_CORES / self.num_cores)


@dataclass(frozen=True)
class _Reading:
    """Seconds since the machine (busy) or the processes (own) started."""

    clock: float
    busy: float
    own: float


class LoadMeter:
    """Measures what other programs used of the usable cores between `start` and `stop`.

    It reads `/proc` twice and runs nothing in between. The cores are those that this process may be scheduled on; a
    quota of CPU time (cgroup) does not make them fewer. What a process used whose parent, a descendant of ours,
    ended before it counts as others'.

        meter = LoadMeter()
        meter.start()
        ...
        load = meter.stop()
    """

    def __init__(self) -> None:
        self._started: _Reading | None = None

    def start(self) -> None:
        """Begin a stretch, or begin anew."""
        self._started = _read()

    def stop(self) -> Load | None:
        """The load since `start`; None where the system does not tell (no Linux `/proc`), or without `start`."""
        load = self.read()
        self._started = None
        return load

    def read(self) -> Load | None:
        """The same, and the stretch goes on."""
        before = self._started
        now = _read() if before is not None else None
        if before is None or now is None:
            return None
        seconds, num_cores = now.clock - before.clock, len(os.sched_getaffinity(0))
        if seconds <= 0.0:
            return None
        own = now.own - before.own
        others = now.busy - before.busy - own
        return Load(
            others_share=_share(others, seconds * num_cores),
            own_share=_share(own, seconds * num_cores),
            seconds=seconds,
            num_cores=num_cores,
        )


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))


def _read() -> _Reading | None:
    try:
        tick = 1.0 / os.sysconf("SC_CLK_TCK")
        clock, busy = time.monotonic(), _busy_ticks() * tick
        return _Reading(clock=clock, busy=busy, own=_own_ticks() * tick)
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _busy_ticks() -> int:
    """Ticks in which the usable cores were neither idle nor waiting for a disk; stolen ones are among them."""
    usable = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    busy = 0
    for line in (_PROC / "stat").read_text().splitlines():
        name, *fields = line.split()
        if name in usable:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy += user + nice + system + irq + softirq + steal
    return busy


def _own_ticks() -> int:
    """Ticks that this process, its living descendants, and those that they have waited for used."""
    table: dict[int, tuple[int, int]] = {}
    for name in os.listdir(_PROC):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The command's name stands in parentheses and may hold spaces: fields are counted after it.
                with open(f"{_PROC}/{name}/stat", "rb", buffering=0) as file:  # half of what a Path's reading takes
                    fields = file.read().rpartition(b")")[2].split()
                table[int(name)] = int(fields[1]), sum(map(int, fields[11:15]))
    ticks, members = 0, {os.getpid()}
    while members:
        ticks += sum(table[member][1] for member in members)
        members = {pid for pid, (parent, _) in table.items() if parent in members}
    return ticks
