"""math-verify in a process of its own.

math-verify interrupts itself with SIGALRM, which works in the main thread alone, takes the alarm away from
whoever set one, and does not stop a long integer power at all. A child process can be killed, from any
thread.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from reward.types import RewardError

_START_SECONDS = 120.0  # importing sympy on a busy machine


@dataclass(frozen=True, slots=True)
class Verdict:
    """What math-verify said about one answer."""

    equal: bool | None
    """None where it cannot read the reference."""
    parsed: str | None
    """The answer as sympy prints it; None where it cannot be read."""
    note: str = ""


class MathProcess:
    """One child, started at the first comparison and again after it was killed. Safe to share between
    threads."""

    def __init__(self, timeout: float = 5.0) -> None:
        """`timeout`: seconds for one comparison."""
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""

    def compare(self, reference: str, answer: str) -> Verdict:
        """Whether math-verify takes the two for equal. A comparison that runs out of time counts as unequal,
        with a note.

        Raises:
            RewardError: the child does not start, or dies.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"reference": reference, "answer": answer}).encode() + b"\n")
                process.stdin.flush()
                reply = self._read(process, self._timeout)
            except BrokenPipeError:
                self._died(process)
            if reply is None:
                self._stop()
                return Verdict(False, None, f"no verdict within {self._timeout:g} s")
        return Verdict(**reply)

    def close(self) -> None:
        """End the child. Safe to call twice; the next comparison starts a new one."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # -P: the script's own folder must not come first on the path, where types.py would hide the standard one.
            command = [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if self._read(self._process, _START_SECONDS) is None:
                self._stop()
                raise RewardError(f"math-verify did not start within {_START_SECONDS:g} s")
        return self._process

    def _read(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """The next line from the child; None when the time is up."""
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                self._died(process)
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    def _died(self, process: subprocess.Popen[bytes]) -> NoReturn:
        self._stop()
        raise RewardError(
            f"the math-verify process ended with status {process.returncode}; try `python -c 'import math_verify'`"
        )

    def _stop(self) -> None:
        process, self._process, self._pending = self._process, None, b""
        if process is not None:
            process.kill()
            process.communicate()


@cache
def shared_process() -> MathProcess:
    """The one child that all verifiers of this process use; it ends with the interpreter."""
    process = MathProcess()
    atexit.register(process.close)
    return process
