"""Runs rlsf in a child process and kills or interrupts it at a chosen moment.

Children are forked from a server that has imported the model stack once: a run takes seconds instead of the quarter
minute that the imports take.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["rlsf.runner", "rlsf.run", "trl.trainer.grpo_trainer", "sklearn.metrics"])


@dataclass(frozen=True)
class Moment:
    """Where to kill: at the `call`-th call of `target`, before or after it does its work."""

    target: str
    """`module:Class.method` or `module:function`, patched where it is looked up."""
    call: int = 1
    after: bool = False
    sends: signal.Signals = signal.SIGKILL

    def arm(self) -> None:
        """Patch the target in this process."""
        module_name, _, attribute = self.target.partition(":")
        owner: Any = importlib.import_module(module_name)
        *path, name = attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        original: Callable[..., Any] = getattr(owner, name)
        calls = 0

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls < self.call:
                return original(*args, **kwargs)
            if self.after:
                original(*args, **kwargs)
            os.kill(os.getpid(), self.sends)
            raise AssertionError("unreachable: the signal ends the process or raises KeyboardInterrupt")

        setattr(owner, name, wrapper)


def run_cli(arguments: list[str], log: Path, moment: Moment | None = None, timeout: float = 300) -> int:
    """`rlsf ARGUMENTS` in a child; its output goes to `log`. Returns the exit status, −9 where it was killed."""
    log.touch()
    process = _context.Process(target=_child, args=(arguments, str(log), moment))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"rlsf {' '.join(arguments)} did not end within {timeout} s; see {log}")
    assert process.exitcode is not None
    if process.exitcode == 255:  # multiprocessing's word for a child of whose end nobody told it
        raise RuntimeError(f"the server that forks children is gone: killed, or out of memory? See {log}")
    return process.exitcode


def _child(arguments: list[str], log: str, moment: Moment | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the suite runs in the background
    if moment is not None:
        moment.arm()
    sys.exit(run_here(arguments, Path(log)))


def run_here(arguments: list[str], log: Path) -> int:
    """`rlsf ARGUMENTS` in this process, which should have nothing else to do; returns the exit status."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["rlsf", *arguments]
    from rlsf.cli import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
