"""A killable process that answers requests, with a time and a memory limit.

Code that may crash, hang or allocate without end runs in a child process of its own group, which talks
in JSON lines over two pipes of its own: what libraries print goes to a log file and cannot corrupt the
answers. The parent watches the memory of the whole process tree while it waits, and kills the group when
a limit is passed. The child starts a guard (a fork that does nothing but wait for the parent's end of a
pipe to close) before anything is imported, so that the group also dies with a parent that was killed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from upshift.errors import BadInputError, UpshiftError

POLL_SECONDS = 0.05
_MAX_LINE_BYTES = 64 * 2**20
_READ_BYTES = 2**16

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class ChildFailure(UpshiftError):
    """A request to a child process was not answered, and why (crash, time, memory, or an exception)."""


class ChildProcess:
    """A process that answers requests by a handler that it imports.

    Args:
        handler: "package.module:name" of a function without arguments that returns the handler of
            requests; called in the child.
        folder: Where the child's log is written.
        memory_limit_bytes: Resident memory of the child and its descendants, together. It is read every
            50 ms, so that a fast allocation can pass it by what is allocated in that time.
        environment: Variables to set in the child.
    """

    def __init__(
        self,
        handler: str,
        *,
        folder: Path,
        memory_limit_bytes: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = folder / "log.txt"
        self.memory_limit_bytes = memory_limit_bytes
        self._buffer = b""
        self.failure: str | None = None
        request_read, self._requests = os.pipe()
        self._answers, answer_write = os.pipe()
        lifeline_read, self._lifeline = os.pipe()
        given = (request_read, answer_write, lifeline_read)
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, *map(str, given), handler],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=given,
                start_new_session=True,
                env={**os.environ, **(environment or {}), "UPSHIFT_CHILD_PATH": json.dumps(sys.path)},
            )
        for descriptor in given:
            os.close(descriptor)

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, message: Mapping[str, Any], *, time_limit_seconds: float) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            ChildFailure: The child crashed, passed a limit (it is killed then), or its handler raised.
            BadInputError: The handler raised it; it is raised here again, in the same words.
        """
        if self.failure is not None:
            raise ChildFailure(self.failure)
        try:
            _write_all(self._requests, json.dumps(message).encode() + b"\n")
            answer = json.loads(self._read_line(time_limit_seconds))
        except BrokenPipeError:
            raise self._fail(self._death()) from None
        except ValueError as error:
            raise self._fail(f"the process gave an answer that cannot be read: {error}") from None
        if "error" in answer:
            raised = answer["error"]
            if raised.get("rule"):
                raise BadInputError(raised["rule"], received=raised["received"], hint=raised["hint"])
            raise ChildFailure(raised["text"])
        return dict(answer["result"])

    def close(self) -> None:
        """Kill the process and all that it started."""
        for pid in [*_descendants(self.pid), self.pid]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if pid != self.pid or self._process.poll() is None:
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for name in ("_requests", "_answers", "_lifeline"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                os.close(descriptor)
                setattr(self, name, -1)
        self.failure = self.failure or "the process was closed"

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_line(self, time_limit_seconds: float) -> bytes:
        deadline = time.monotonic() + time_limit_seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], POLL_SECONDS)
            if ready:
                piece = os.read(self._answers, _READ_BYTES)
                self._buffer += piece
                if not piece:
                    raise self._fail(self._death())
                if len(self._buffer) > _MAX_LINE_BYTES:
                    raise self._fail("the process gave an answer without end")
                continue
            if time.monotonic() > deadline:
                raise self._fail(f"exceeded the time limit of {time_limit_seconds:g} s")
            self._check_memory()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _check_memory(self) -> None:
        if self.memory_limit_bytes is None:
            return
        used = tree_memory_bytes(self.pid)
        if used > self.memory_limit_bytes:
            limit, used_mb = self.memory_limit_bytes / 2**20, used / 2**20
            raise self._fail(f"exceeded the memory limit of {limit:.0f} MiB (it held {used_mb:.0f} MiB)")

    def _fail(self, reason: str) -> ChildFailure:
        self.failure = reason
        self.close()
        return ChildFailure(reason)

    def _death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2.0)
        code = self._process.poll()
        if code is None:
            how = "the process closed its pipe"
        elif code < 0:
            how = f"the process was killed by {signal.Signals(-code).name}"
        else:
            how = f"the process ended with exit code {code}"
        last = self._last_words()
        return f"{how}; its last words: {last}" if last else how

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
            return lines[-1][:300] if lines else ""
        return ""


_START = """\
import json, os, sys
sys.path[:] = json.loads(os.environ.pop("UPSHIFT_CHILD_PATH"))
from upshift.core.isolation import serve
serve(*map(int, sys.argv[1:4]), sys.argv[4])
"""


def serve(requests: int, answers: int, lifeline: int, handler: str) -> None:
    """The child's side: answer requests until the parent's end closes."""
    _start_guard(requests, answers, lifeline)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this goes before the parent
    for descriptor in (requests, answers, lifeline):
        os.set_inheritable(descriptor, False)
    handle: Handler | None = None
    with os.fdopen(requests, encoding="utf-8") as stream:
        for line in stream:
            try:
                handle = handle or _imported(handler)
                answer: dict[str, Any] = {"result": handle(json.loads(line))}
            except Exception as error:
                answer = {"error": _error_json(error)}
            _write_all(answers, json.dumps(answer).encode() + b"\n")


def _imported(name: str) -> Handler:
    module, _, attribute = name.partition(":")
    handler: Handler = getattr(importlib.import_module(module), attribute)()
    return handler


def _error_json(error: Exception) -> dict[str, str]:
    text = " ".join(str(error).split())
    if isinstance(error, BadInputError):
        return {"text": text, "rule": error.rule, "received": str(error.received), "hint": error.hint}
    named = text if isinstance(error, UpshiftError) else f"{type(error).__name__}: {text}"
    return {"text": named[:600]}


def _start_guard(requests: int, answers: int, lifeline: int) -> None:
    """Fork a process that kills this group when the parent's end of the lifeline closes.

    A thread would not do: native code that keeps the interpreter's lock would keep it from running, and
    PR_SET_PDEATHSIG leaves the children of the child alive.
    """
    if os.fork() != 0:
        return
    os.close(requests)
    os.close(answers)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        with contextlib.suppress(InterruptedError):
            if os.read(lifeline, 1) == b"":
                os.killpg(0, signal.SIGKILL)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def tree_memory_bytes(pid: int) -> int:
    """Resident memory in bytes of a process and all its descendants."""
    parents = _process_table()
    return sum(parents[member][1] for member in [pid, *_descendants(pid, parents)] if member in parents)


def _descendants(pid: int, table: Mapping[int, tuple[int, int]] | None = None) -> list[int]:
    table = _process_table() if table is None else table
    found: list[int] = []
    frontier = {pid}
    while frontier:
        frontier = {child for child, (parent, _) in table.items() if parent in frontier}
        found.extend(frontier)
    return found


def _process_table() -> dict[int, tuple[int, int]]:
    """(parent, resident bytes) of every process."""
    if not Path("/proc/self/stat").exists():  # macOS
        text = subprocess.run(["ps", "-axo", "pid=,ppid=,rss="], capture_output=True, text=True, check=False).stdout
        rows = (line.split() for line in text.splitlines())
        return {int(pid): (int(parent), int(resident) * 1024) for pid, parent, resident in rows}
    table, page = {}, os.sysconf("SC_PAGE_SIZE")
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The command's name stands in parentheses and may hold spaces: fields are counted after it.
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                table[int(name)] = (int(fields[1]), int(fields[21]) * page)
    return table
