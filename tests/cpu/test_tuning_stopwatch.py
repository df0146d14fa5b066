"""Seconds of steps: the same training comes to the same seconds, whether its device makes steps at once or later."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.tuning.stopwatch import Stopwatch
from upshift.tuning.watch import WINDOW_STEPS, Watch


class Machine:
    """Host and device in simulated time: the host asks for steps, the device makes them, one after another."""

    def __init__(self) -> None:
        self.time = self.device_done_at = 0.0

    def host(self, seconds: float) -> None:
        self.time += seconds

    def launch(self, seconds: float) -> None:
        self.device_done_at = max(self.device_done_at, self.time) + seconds

    def wait(self) -> None:
        self.time = max(self.time, self.device_done_at)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr("upshift.core.clock.now", lambda: machine.time)
    return machine


def make_step(machine: Machine, watch: Stopwatch, *, wait: float, launch: float, device: float) -> None:
    machine.host(wait)
    watch.begin()
    machine.host(launch)
    machine.launch(device)
    watch.add(step_seconds=launch, data_seconds=wait)


def test_steps_that_are_only_launched_take_what_the_device_takes(machine: Machine) -> None:
    watch = Stopwatch(is_asynchronous=True)
    for _ in range(10):
        make_step(machine, watch, wait=0.0, launch=0.1, device=5.0)
    assert machine.time == pytest.approx(1.0), "the host is far ahead"
    assert watch.take(machine.wait) == pytest.approx(0.1 + 10 * 5.0)


def test_steps_that_the_host_is_too_slow_for_take_what_the_host_takes(machine: Machine) -> None:
    watch = Stopwatch(is_asynchronous=True)
    for _ in range(10):
        make_step(machine, watch, wait=1.0, launch=2.0, device=0.5)
    assert watch.take(machine.wait) == pytest.approx(10 * 3.0 + 0.5)


def test_steps_that_are_made_at_once_take_what_their_calls_take(machine: Machine) -> None:
    watch = Stopwatch(is_asynchronous=False)
    for _ in range(10):
        make_step(machine, watch, wait=1.0, launch=2.0, device=0.0)
        machine.host(7.0)  # to write a line of the log
    assert watch.take(machine.wait) == pytest.approx(30.0)
    assert watch.take(machine.wait) == 0.0


@given(
    st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.01, 2.0), st.floats(0.01, 5.0)), min_size=1, max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.floats(0.0, 100.0),
)
def test_what_is_done_beside_steps_is_no_part_of_them(
    steps: list[tuple[float, float, float]], pauses: list[bool], beside: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine()
        patch.setattr("upshift.core.clock.now", lambda: machine.time)
        watch, expected = Stopwatch(is_asynchronous=True), 0.0
        for (wait, launch, device), pauses_here in zip(steps, pauses, strict=False):
            make_step(machine, watch, wait=wait, launch=launch, device=device)
            if pauses_here:
                watch.pause(machine.wait)
                before = machine.time
                machine.host(beside)
                expected += machine.time - before
        total = watch.take(machine.wait)
    assert total == pytest.approx(machine.time - expected, abs=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=10))
def test_seconds_that_are_taken_bit_by_bit_are_those_of_the_whole(parts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine()
        patch.setattr("upshift.core.clock.now", lambda: machine.time)
        watch, total = Stopwatch(is_asynchronous=True), 0.0
        for num_steps in parts:
            for _ in range(num_steps):
                make_step(machine, watch, wait=0.2, launch=0.1, device=1.0)
            total += watch.take(machine.wait)
    assert total == pytest.approx(machine.time)


def test_slow_steps_of_an_accelerator_show_in_the_mean_of_many() -> None:
    # Nine in ten calls return at once; the tenth waits for all ten steps.
    def alarms(each: float, watch: Watch) -> int:
        calls = ([0.001] * 9 + [10 * each - 0.009]) * (4 * WINDOW_STEPS)
        return sum(watch.slowdown(seconds) is not None for seconds in calls)

    assert alarms(0.3, Watch(0.1, of_single_steps=False)) > 0
    assert alarms(0.1, Watch(0.1, of_single_steps=False)) == 0
