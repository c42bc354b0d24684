"""Kills, full disks and read-only directories: the store stays whole, and says what is wrong."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlsf.config.replay import ReplayConfig
from rlsf.errors import RunDirError
from rlsf.replay import ReplayReader, ReplayStore
from rlsf.replay.verify import verify
from tests.replay_groups import (
    PRUNE_LAG,
    SCENARIO_ITERATIONS,
    SCENARIO_SEED,
    make_group,
    play_iteration,
    scenario_config,
)

ROOT = Path(__file__).resolve().parents[1]


def open_scenario(directory: Path, keep: str) -> ReplayStore:
    return ReplayStore.open(directory, scenario_config(keep), seed=SCENARIO_SEED)


@pytest.fixture(scope="module", params=["fifo", "reservoir", "balanced", "top_reward", "diverse"])
def uninterrupted(request, tmp_path_factory) -> tuple[str, list[str]]:
    """The policy, and the digest at the end of each iteration of a run that nobody killed."""
    with open_scenario(tmp_path_factory.mktemp("uninterrupted"), request.param) as store:
        digests = [store.digest()]
        for iteration in range(1, SCENARIO_ITERATIONS + 1):
            play_iteration(store, iteration)
            digests.append(store.digest())
    return request.param, digests


def check_resume(directory: Path, keep: str, digests: list[str], *, back: int) -> None:
    """A store that was left behind by a kill is whole, goes back, and goes on like the one that was left alone."""
    found = verify(directory)
    assert found.is_whole, found
    with ReplayReader.open_read_only(directory) as reader:
        last = reader.last_iteration
        left_behind = reader.digest()
    target = max(last - back, 0)
    with open_scenario(directory, keep) as store:
        assert store.digest() == left_behind
        store.rollback(target)
        assert store.digest() == digests[target]
        for iteration in range(target + 1, min(target + 2, SCENARIO_ITERATIONS) + 1):
            play_iteration(store, iteration)
            assert store.digest() == digests[iteration]


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process, and return the status that it ended with."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def test_a_run_killed_at_any_statement_can_be_resumed(uninterrupted, tmp_path):
    keep, digests = uninterrupted
    iterations = 3
    with open_scenario(tmp_path / "count", keep) as store:
        statements: list[str] = []
        store._db.connection.set_trace_callback(statements.append)
        for iteration in range(1, iterations + 1):
            play_iteration(store, iteration)
    moments = range(1, len(statements), max(1, len(statements) // 12))
    for moment in moments:
        directory = tmp_path / str(moment)

        def killed(directory=directory, moment=moment) -> None:
            store, left = open_scenario(directory, keep), moment

            def countdown(statement: str) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            store._db.connection.set_trace_callback(countdown)
            for iteration in range(1, iterations + 1):
                play_iteration(store, iteration)

        assert os.WTERMSIG(in_child(killed)) == signal.SIGKILL
        check_resume(directory, keep, digests, back=1)
        shutil.rmtree(directory)


def test_a_process_killed_at_random_moments_can_be_resumed(uninterrupted, tmp_path):
    keep, digests = uninterrupted
    rng = np.random.default_rng(0)
    seconds = 0.3
    interrupted = 0
    for attempt in range(3):
        directory = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.replay_groups", str(directory), keep], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        said = process.communicate()[0].split()
        finished = said[-1:] == [b"done"]
        acknowledged = max((int(word) for word in said if word != b"done"), default=0)
        with ReplayReader.open_read_only(directory) as reader:
            assert reader.last_iteration >= acknowledged
        interrupted += not finished
        if finished:  # a fast machine: kill earlier
            seconds /= 2
        check_resume(directory, keep, digests, back=int(rng.integers(1, PRUNE_LAG + 1)))
    assert interrupted


def test_a_kill_while_the_store_is_compacted_changes_nothing(tmp_path):
    noise = np.random.default_rng(0)

    def make(store: ReplayStore, iteration: int) -> None:
        groups = [
            make_group(f"g{iteration}-{i}", iteration=iteration, logprobs=tuple(noise.normal(size=900).tolist()))
            for i in range(40)
        ]
        store.add(groups, iteration=iteration)
        store.prune_journal(iteration)

    with ReplayStore.open(tmp_path, ReplayConfig(capacity=100), seed=0) as store:
        for iteration in range(1, 6):
            make(store, iteration)
        before = store.digest()
        began = time.perf_counter()
        freed, left = store.compact()
        seconds = time.perf_counter() - began
        assert left < freed and store.digest() == before
    interrupted = 0
    for moment in np.random.default_rng(1).uniform(0, 1.5 * seconds, size=8):
        pid = os.fork()
        if pid == 0:
            with ReplayStore.reopen(tmp_path) as child:
                for _ in range(3):
                    child.compact()
            os._exit(0)
        time.sleep(float(moment))
        os.kill(pid, signal.SIGKILL)
        interrupted += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        assert verify(tmp_path).is_whole
        with ReplayStore.reopen(tmp_path) as store:
            assert store.digest() == before
    assert interrupted


@pytest.mark.parametrize("damage", ["pages", "file size"])
def test_a_full_disk_gives_one_clear_message_and_an_unchanged_store(tmp_path, damage):
    def big(name: str, iteration: int):
        noise = np.random.default_rng(iteration).normal(size=20_000)
        return make_group(name, iteration=iteration, rewards=(1.0,), logprobs=tuple(noise.tolist()))

    def fill() -> None:
        with ReplayStore.open(tmp_path, ReplayConfig(), seed=0) as store:
            store.add([big("first", 1)], iteration=1)
            before = store.digest()
            if damage == "pages":
                pages = store._db.connection.execute("PRAGMA page_count").fetchone()[0]
                store._db.connection.execute(f"PRAGMA max_page_count = {pages + 20}")
            else:
                size = store._db.size_on_disk()
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            with pytest.raises(RunDirError, match=r"replay store .*replay.sqlite: the disk is full"):
                store.add([big("second", 2), big("third", 2), big("fourth", 2)], iteration=2)
            assert store.digest() == before and len(store) == 1 and store.last_iteration == 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            store._db.connection.execute("PRAGMA max_page_count = 1073741823")
            store.add([big("second", 2)], iteration=2)  # once there is room, it goes on
            assert [group.id for group in store.draw(2, iteration=3, policy_version=1)] in (
                ["first", "second"],
                ["second", "first"],
            )

    assert in_child(fill) == 0
    with ReplayReader.open_read_only(tmp_path) as reader:
        assert [group.id for group in reader.groups()] == ["first", "second"]


def as_nobody(work: Callable[[], None]) -> int:
    """Root may write anywhere, so permissions only mean something to another user."""

    def unprivileged() -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        work()

    return in_child(unprivileged)


def test_a_read_only_directory_can_be_read_and_not_written():
    directory = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        with ReplayStore.open(directory / "replay", ReplayConfig(), seed=0) as store:
            store.add([make_group("a")], iteration=1)
        (directory / "empty").mkdir()
        for path in (directory / "replay" / "replay.sqlite", directory / "replay", directory / "empty", directory):
            path.chmod(0o444 if path.is_file() else 0o555)

        def look() -> None:
            with ReplayReader.open_read_only(directory / "replay") as reader:
                assert [group.id for group in reader.groups()] == ["a"] and reader.stats().groups == 1
            for name, message in (
                ("replay", "may not be written|cannot be opened"),
                ("empty", "cannot be opened"),
                ("new", "cannot make the directory"),
            ):
                with pytest.raises(RunDirError, match=message):
                    ReplayStore.open(directory / name, ReplayConfig(), seed=0)

        assert as_nobody(look) == 0
    finally:
        for path in (directory, directory / "replay", directory / "empty"):
            path.chmod(0o755)
        shutil.rmtree(directory)
