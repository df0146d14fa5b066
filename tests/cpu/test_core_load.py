"""The meter beside real programs that burn CPU time and say how much they did."""

import subprocess
import sys
import time

import pytest

from upshift.core import load
from upshift.core.load import Load, LoadMeter

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")

BURN = """
import time
input()
end = time.monotonic() + 1.5
before = time.process_time()
while time.monotonic() < end: pass
print(time.process_time() - before)
"""
# The burning process outlives the one that starts it, so that it is nobody's descendant here.
BURN_ELSEWHERE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN!r}], start_new_session=True)"


def burnt_beside(meter, program):
    """(load while the program burnt CPU time, share of all cores that it burnt by its own account)."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        meter.start()
        print("go", file=process.stdin, flush=True)
        seconds = float(process.stdout.readline())
        measured = meter.stop()
    return measured, seconds / (measured.seconds * measured.num_cores)


def slack(measured):
    """The kernel counts in ticks, and the two readings are not of one instant."""
    return 0.08 / (measured.seconds * measured.num_cores)


def test_what_another_program_uses_is_counted_as_others():
    measured, burnt = burnt_beside(LoadMeter(), BURN_ELSEWHERE)
    assert measured.others_share >= burnt - slack(measured)
    assert measured.is_busy


def test_what_a_child_uses_is_counted_as_our_own():
    measured, burnt = burnt_beside(LoadMeter(), BURN)
    assert measured.own_share >= burnt - slack(measured)
    assert measured.others_share + measured.own_share <= 1.0 + slack(measured)


def test_what_a_child_used_that_has_ended_is_still_our_own():
    meter = LoadMeter()
    meter.start()
    done = subprocess.run([sys.executable, "-c", BURN], input="go\n", capture_output=True, text=True, check=True)
    measured = meter.stop()
    burnt = float(done.stdout) / (measured.seconds * measured.num_cores)
    assert measured.own_share >= burnt - slack(measured)


def test_what_this_process_uses_is_its_own():
    meter = LoadMeter()
    meter.start()
    before, end = time.process_time(), time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
    burnt = time.process_time() - before
    measured = meter.stop()
    assert measured.own_share == pytest.approx(burnt / (measured.seconds * measured.num_cores), abs=slack(measured))


def test_a_meter_that_was_not_started_tells_nothing():
    meter = LoadMeter()
    assert meter.stop() is None
    meter.start()
    assert meter.stop() is not None
    assert meter.stop() is None


def test_where_the_system_does_not_tell_there_is_no_load(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "_PROC", tmp_path)
    meter = LoadMeter()
    meter.start()
    assert meter.stop() is None


def test_unreadable_accounts_are_no_load_rather_than_an_error(tmp_path, monkeypatch):
    (tmp_path / "stat").write_text("cpu0 not numbers\n")
    monkeypatch.setattr(load, "_PROC", tmp_path)
    meter = LoadMeter()
    meter.start()
    assert meter.stop() is None


@pytest.mark.parametrize(
    ("others_share", "num_cores", "busy"),
    [(0.0, 2, False), (0.04, 2, False), (0.06, 2, True), (0.02, 16, False), (0.02, 64, True)],
)
def test_busy_is_a_twentieth_of_the_cores_or_half_a_core(others_share, num_cores, busy):
    measured = Load(others_share=others_share, own_share=0.1, seconds=60.0, num_cores=num_cores)
    assert measured.is_busy == busy


def test_a_stretch_too_short_to_tell_is_not_called_busy():
    assert not Load(others_share=0.2, own_share=0.1, seconds=0.1, num_cores=2).is_busy
    assert Load(others_share=0.4, own_share=0.1, seconds=0.1, num_cores=2).is_busy
