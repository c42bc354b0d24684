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
from typing import Any

from reward.types import RewardError

_WORKER = Path(__file__).with_name("math_worker.py")
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
        """Whether math-verify takes the two for equal. A comparison that runs out of time, or of which the child dies
        (of memory, say), counts as unequal, with a note.

        Raises:
            RewardError: the child does not start.
        """
        with self._lock:
            for _ in range(2):  # the child may have been killed while it had nothing to do
                try:
                    reply = self._ask({"reference": reference, "answer": answer})
                except (BrokenPipeError, EOFError):
                    status = self._stop()
                    continue
                if reply is None:
                    self._stop()
                    return Verdict(False, None, f"no verdict within {self._timeout:g} s")
                return Verdict(**reply)
            return Verdict(False, None, f"math-verify's process ended over it, with status {status}")

    def close(self) -> None:
        """End the child. Safe to call twice; the next comparison starts a new one."""
        with self._lock:
            self._stop()

    def _ask(self, request: dict[str, str]) -> dict[str, Any] | None:
        """The child's reply; None when the time is up. Raises BrokenPipeError or EOFError where the child is gone."""
        process = self._running()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        return self._read(process, self._timeout)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # -P: the script's own folder must not come first on the path, where types.py would hide the standard one.
            command = [sys.executable, "-P", str(_WORKER)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            try:
                is_ready = self._read(self._process, _START_SECONDS) is not None
            except EOFError:
                raise RewardError(
                    f"the math-verify process ended with status {self._stop()}; try `python -c 'import math_verify'`"
                ) from None
            if not is_ready:
                self._stop()
                raise RewardError(f"math-verify did not start within {_START_SECONDS:g} s")
        return self._process

    def _read(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """The next line from the child; None when the time is up. Raises EOFError where the child is gone."""
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                raise EOFError
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    def _stop(self) -> int | None:
        """The child's exit status; None where there was no child."""
        process, self._process, self._pending = self._process, None, b""
        if process is None:
            return None
        process.kill()
        process.communicate()
        return process.returncode


@cache
def shared_process() -> MathProcess:
    """The one child that all verifiers of this process use; it ends with the interpreter."""
    process = MathProcess()
    atexit.register(process.close)
    return process
