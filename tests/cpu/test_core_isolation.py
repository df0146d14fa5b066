import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from upshift.core.isolation import ChildFailure, ChildProcess, tree_memory_bytes
from upshift.errors import ConfigError

HANDLERS = """
import ctypes, os, subprocess, sys, time
from upshift.errors import ConfigError

def make():
    return lambda message: globals()["do_" + message["do"]](message)

def do_echo(message):
    print("a library prints to stdout")
    os.write(1, b"and below Python too\\n")
    print("and to stderr", file=sys.stderr)
    return {"value": message["value"]}

def do_pids(message):
    child = subprocess.Popen(["sleep", "1000"])
    return {"pids": [os.getpid(), child.pid]}

def do_segfault(message): ctypes.string_at(0)
def do_exit(message): print("so long", flush=True); os._exit(7)
def do_abort(message): os.abort()
def do_sleep(message): time.sleep(1e6)
def do_hold_the_lock(message): ctypes.PyDLL(None).sleep(1000)
def do_raise(message): raise ValueError("two\\nlines")
def do_bad_input(message): raise ConfigError("a rule", received=3, hint="a way out")
def do_close(message): os.closerange(3, 64); time.sleep(1000)
def do_allocate(message):
    kept = []
    while True:
        kept.append(b"x" * 5_000_000)
        time.sleep(0.01)
def do_allocate_in_a_child(message):
    code = "import time; k = []\\nwhile True: k.append(b'x' * 5_000_000); time.sleep(0.01)"
    subprocess.run([sys.executable, "-c", code])
def do_not_json(message): return {"value": object()}
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "handlers_of_test.py").write_text(HANDLERS)
    monkeypatch.syspath_prepend(tmp_path)
    with ChildProcess("handlers_of_test:make", folder=tmp_path, memory_limit_bytes=200 * 2**20) as child:
        yield child


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until_gone(*pids):
    deadline = time.monotonic() + 120
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process outlived its parent"
        time.sleep(0.02)


def ask(child, do, **message):
    return child.request({"do": do, **message}, time_limit_seconds=300)


def test_what_libraries_print_does_not_corrupt_the_answer(child):
    assert ask(child, "echo", value=[1, {"a": "é\n"}]) == {"value": [1, {"a": "é\n"}]}
    assert "below Python" in child.log.read_text()


def test_a_large_message_goes_both_ways(child):
    value = "x" * 3_000_000
    assert ask(child, "echo", value=value) == {"value": value}


@pytest.mark.parametrize(
    ("do", "reason"),
    [("segfault", "SIGSEGV"), ("abort", "SIGABRT"), ("exit", "exit code 7; its last words: so long")],
)
def test_a_crash_is_named(child, do, reason):
    with pytest.raises(ChildFailure, match=reason):
        ask(child, do)


@pytest.mark.parametrize("do", ["sleep", "hold_the_lock"])
def test_a_hang_is_killed_at_the_time_limit(child, do):
    with pytest.raises(ChildFailure, match=r"exceeded the time limit of 0.5 s"):
        child.request({"do": do}, time_limit_seconds=0.5)
    wait_until_gone(child.pid)


@pytest.mark.parametrize("do", ["allocate", "allocate_in_a_child"])
def test_allocation_without_end_is_killed_at_the_memory_limit(child, do):
    with pytest.raises(ChildFailure, match="exceeded the memory limit of 200 MiB"):
        ask(child, do)
    wait_until_gone(child.pid)


def test_an_exception_is_a_failure_of_that_request_only(child):
    with pytest.raises(ChildFailure, match="ValueError: two lines"):
        ask(child, "raise")
    assert ask(child, "echo", value=1) == {"value": 1}


def test_bad_input_comes_back_as_it_was_raised(child):
    from upshift.errors import BadInputError

    with pytest.raises(BadInputError) as caught:
        ask(child, "bad_input")
    assert (caught.value.rule, caught.value.received, caught.value.hint) == ("a rule", "3", "a way out")
    assert issubclass(ConfigError, BadInputError)


def test_a_child_that_closes_its_pipes_is_a_failure(child):
    with pytest.raises(ChildFailure, match="closed its pipe"):
        ask(child, "close")


def test_an_answer_that_is_not_json_is_a_failure(child):
    with pytest.raises(ChildFailure):
        ask(child, "not_json")


def test_a_failed_child_stays_failed_and_says_why(child):
    for _ in range(2):
        with pytest.raises(ChildFailure, match="SIGSEGV"):
            ask(child, "segfault")


def test_close_ends_what_the_child_started(child):
    pids = ask(child, "pids")["pids"]
    assert all(is_running(pid) for pid in pids)
    child.close()
    wait_until_gone(*pids)


def test_close_leaves_no_descriptor_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        ChildProcess("handlers_of_test:make", folder=tmp_path).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_counts_the_whole_tree(child):
    alone = tree_memory_bytes(os.getpid())
    ask(child, "echo", value=0)
    assert tree_memory_bytes(os.getpid()) > alone > 10 * 2**20


PARENT = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from upshift.core.isolation import ChildProcess
child = ChildProcess("handlers_of_test:make", folder=pathlib.Path(sys.argv[1]))
print(*child.request({"do": "pids"}, time_limit_seconds=300)["pids"], flush=True)
child.request({"do": sys.argv[2]}, time_limit_seconds=1000)
"""


@pytest.mark.parametrize("busy_with", ["sleep", "hold_the_lock"])
def test_a_parent_that_is_killed_takes_the_child_and_its_children_along(tmp_path, busy_with):
    (tmp_path / "handlers_of_test.py").write_text(HANDLERS)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), busy_with],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(is_running(pid) for pid in pids)
        os.kill(parent.pid, signal.SIGKILL)
    wait_until_gone(*pids)
