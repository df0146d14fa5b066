"""Contestants in processes of their own, of which only one runs at a time: the others are stopped by a signal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upshift.errors import UpshiftError

FOLDER = Path(__file__).parents[1]
NUM_LINES_KEPT = 12


class ContestantError(UpshiftError):
    """A contestant's process ended; the message is the last that it wrote."""


class Contestant:
    """A process that trains; see `loops.contestant`.

    Args:
        peer: Its key in `loops.contestant.MAKERS`.
        options: Recipe and further arguments.
        environment: Variables beside those of this process.
        log: File for what it prints.
    """

    def __init__(self, peer: str, options: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        start = time.perf_counter()
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "loops.contestant", peer, *options],
                cwd=FOLDER,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # so that a signal reaches its DataLoader workers too
            )
        try:
            self.job: dict[str, Any] = self._answer()
        except BaseException:
            self.end()
            raise
        self.process_seconds = time.perf_counter() - start
        self.turns: list[dict[str, Any]] = []
        self._signal(signal.SIGSTOP)

    def turn(self) -> float:
        """One turn while all others stand still; gives its seconds."""
        self._signal(signal.SIGCONT)
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write("turn\n")
                self._process.stdin.flush()
            self.turns.append(self._answer())
        finally:
            self._signal(signal.SIGSTOP)
        return float(self.turns[-1]["seconds"])

    def end(self) -> None:
        """End the process and its workers."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process.wait()
        said = self._log.read_text(errors="replace").strip().splitlines()
        print("\n".join(said[-NUM_LINES_KEPT:]), file=sys.stderr)
        raise ContestantError(said[-1] if said else f"ended with status {self._process.returncode}")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
