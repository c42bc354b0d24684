"""The store against a plain model in memory, and every way in which it can be opened or refuse."""

import sqlite3
import threading

import pytest

from rlsf.config.replay import (
    PerClusterDraw,
    PerTaskDraw,
    PrioritizedDraw,
    RecencyDraw,
    ReplayConfig,
    SuccessDraw,
    UniformDraw,
)
from rlsf.errors import RunDirError
from rlsf.replay import ReplayReader, ReplayStore
from rlsf.replay.tables import FILE_NAME, blob_checksum, row_checksum
from rlsf.replay.verify import verify
from tests.replay_groups import make_group, play_iteration

SEED = 7


def open_store(directory, **config) -> ReplayStore:
    return ReplayStore.open(directory, ReplayConfig(**config), seed=SEED)


def ids(groups) -> list[str]:
    return [group.id for group in groups]


# -- adding and drawing ------------------------------------------------------------------------------------------------


def test_an_empty_store_draws_nothing(tmp_path):
    with open_store(tmp_path) as store:
        assert store.draw(4, iteration=1, policy_version=0) == []
        assert len(store) == 0 and list(store.groups()) == []
        assert store.stats().policy_versions is None


@pytest.mark.parametrize("keep", ["fifo", "reservoir"])
def test_a_store_smaller_than_a_batch(tmp_path, keep):
    with open_store(tmp_path, capacity=2, keep=keep) as store:
        store.add([make_group(f"g{i}") for i in range(7)], iteration=1)
        assert len(store) == 2 and store.seen == 7 and store.stats().evicted == 5
        if keep == "fifo":
            assert ids(store.groups()) == ["g5", "g6"]
        assert sorted(ids(store.draw(5, iteration=1, policy_version=0))) == ids(store.groups())


def test_the_current_iteration_and_stale_versions_are_not_drawn(tmp_path):
    with open_store(tmp_path, max_staleness=2) as store:
        for iteration in range(1, 6):
            store.add([make_group(f"g{iteration}", iteration=iteration, version=iteration)], iteration=iteration)
        drawn = store.draw(9, iteration=5, policy_version=5, exclude_iteration=5)
        assert sorted(ids(drawn)) == ["g3", "g4"]  # 5 − 3 = 2 versions is still fresh enough
        assert ids(store.draw(9, iteration=5, policy_version=7)) == ["g5"]
        assert sorted(ids(store.draw(9, iteration=5, policy_version=3))) == ["g1", "g2", "g3", "g4", "g5"]


def test_what_was_excluded_once_can_be_drawn_later(tmp_path):
    with open_store(tmp_path) as store:
        store.add([make_group("old")], iteration=1)
        store.add([make_group("fresh", iteration=2)], iteration=2)
        assert ids(store.draw(2, iteration=2, policy_version=1, exclude_iteration=2)) == ["old"]
        assert sorted(ids(store.draw(2, iteration=3, policy_version=2, exclude_iteration=3))) == ["fresh", "old"]


def test_a_stale_group_stays_out_when_its_priority_changes_and_its_slot_is_free_for_the_next(tmp_path):
    with open_store(tmp_path, capacity=1, max_staleness=1, draw=PrioritizedDraw()) as store:
        store.add([make_group("old", version=0)], iteration=1)
        assert store.draw(1, iteration=1, policy_version=5) == []
        store.update_priorities({"old": 9.0}, iteration=1)
        assert store.draw(1, iteration=1, policy_version=5) == []
        store.add([make_group("new", version=5)], iteration=1)
        assert ids(store.draw(1, iteration=1, policy_version=5)) == ["new"]


@pytest.mark.parametrize(
    "draw", [UniformDraw(), RecencyDraw(), PerTaskDraw(), PerClusterDraw(), SuccessDraw(), PrioritizedDraw()]
)
def test_one_task_stores_smaller_than_the_draw_and_empty_ones(tmp_path, draw):
    with open_store(tmp_path, draw=draw, max_staleness=3) as store:
        assert store.draw(3, iteration=1, policy_version=0) == []
        store.add([make_group(f"g{i}", priority=2.0) for i in range(3)], iteration=1)
        assert store.draw(0, iteration=1, policy_version=0) == []
        assert sorted(ids(store.draw(9, iteration=1, policy_version=0))) == ["g0", "g1", "g2"]
        assert store.draw(9, iteration=1, policy_version=0, exclude_tasks={"sums"}) == []
        assert store.draw(9, iteration=1, policy_version=4) == []  # all too old


def test_a_second_draw_in_an_iteration_draws_anew_and_both_are_reproducible(tmp_path):
    draws = []
    for name in ("a", "b"):
        with open_store(tmp_path / name) as store:
            store.add([make_group(f"g{i}") for i in range(200)], iteration=1)
            draws.append([ids(store.draw(8, iteration=2, policy_version=1)) for _ in range(2)])
    assert draws[0] == draws[1]
    assert draws[0][0] != draws[0][1]


def test_drawn_groups_carry_their_priority_of_now(tmp_path):
    with open_store(tmp_path, draw=PrioritizedDraw()) as store:
        store.add([make_group("a"), make_group("b", priority=0.0)], iteration=1)
        assert store.update_priorities({"a": 0, "b": 0.25, "gone": 1.0}, iteration=1) == 2
        assert [(g.id, g.priority) for g in store.draw(2, iteration=1, policy_version=0)] == [("b", 0.25)]
        assert store.get("a").priority == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5])
def test_a_bad_priority_changes_nothing(tmp_path, bad):
    with open_store(tmp_path) as store:
        store.add([make_group("a"), make_group("b")], iteration=1)
        before = store.digest()
        with pytest.raises(ValueError, match="group 'b': priority"):
            store.update_priorities({"a": 2.0, "b": bad}, iteration=1)
        assert store.digest() == before


def test_duplicates_and_broken_groups_leave_the_store_alone(tmp_path):
    with open_store(tmp_path, capacity=3) as store:
        store.add([make_group("a")], iteration=1)
        before = store.digest()
        for batch, message in (
            ([make_group("b"), make_group("a")], "group 'a' is in the replay store already"),
            ([make_group("c"), make_group("c")], "group 'c' is twice in the batch"),
            ([make_group("d"), make_group("e", evidence={"bad": object()})], "rollout 'e:0' cannot be stored"),
        ):
            with pytest.raises(ValueError, match=message):
                store.add(batch, iteration=2)
            assert store.digest() == before and store.last_iteration == 1
        store.add([make_group("b")], iteration=1)
        assert ids(store.groups()) == ["a", "b"]


def test_an_evicted_id_may_come_back(tmp_path):
    with open_store(tmp_path, capacity=1) as store:
        digests = [store.digest()]
        for iteration, name in enumerate(["a", "b", "a", "b", "a"], start=1):
            store.add([make_group(name, iteration=iteration)], iteration=iteration)
            digests.append(store.digest())
        for iteration in (4, 2, 0):
            store.rollback(iteration)
            assert store.digest() == digests[iteration]


def test_time_does_not_run_backwards(tmp_path):
    with open_store(tmp_path) as store:
        store.add([make_group("a")], iteration=3)
        with pytest.raises(ValueError, match="iteration 2 lies before iteration 3"):
            store.draw(1, iteration=2, policy_version=0)
        with pytest.raises(ValueError, match="cannot draw -1 groups"):
            store.draw(-1, iteration=3, policy_version=0)


def test_a_store_that_lacks_iterations_of_the_checkpoint_is_noticed(tmp_path):
    with open_store(tmp_path) as store:
        store.rollback(0)
        store.add([make_group("a")], iteration=1)
        with pytest.raises(RunDirError, match="ends with iteration 1 and cannot be resumed from iteration 2"):
            store.rollback(2)


def test_pruning_frees_evicted_groups(tmp_path):
    with open_store(tmp_path, capacity=2) as store:
        for iteration in range(1, 6):
            store.add([make_group(f"g{iteration}-{i}", iteration=iteration) for i in range(2)], iteration=iteration)
        store.prune_journal(4)
        store.rollback(4)
        assert ids(store.groups()) == ["g4-0", "g4-1"]
        store.prune_journal(4)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        for table, rows in (("groups", 2), ("payloads", 2), ("rollouts", 4), ("journal", 0)):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (rows,)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_get_find_and_groups(tmp_path):
    with open_store(tmp_path, capacity=200) as store:
        store.add([make_group(f"g{i:03}", task=f"task{i % 2}") for i in range(150)], iteration=1)
        store.add([make_group("g%_", iteration=2), make_group("größe", iteration=2, text="\0\ud800")], iteration=2)
        assert store.get("größe") == make_group("größe", iteration=2, text="\0\ud800")
        with pytest.raises(KeyError, match="no group 'g'"):
            store.get("g")
        assert store.find("g%").id == "g%_"  # no wildcards
        assert store.find("g149:1").id == store.find("g149").id == "g149"
        assert store.find("grö").id == "größe"
        with pytest.raises(RunDirError, match=r"more than one group fits 'g14': g140, g141, g142, g143, g144, \.\.\."):
            store.find("g14")
        with pytest.raises(RunDirError, match="no group and no rollout has an id that starts with 'h'"):
            store.find("h")
        assert ids(store.groups(task="task1")) == [f"g{i:03}" for i in range(1, 150, 2)]
        assert ids(store.groups(iteration=2)) == ["g%_", "größe"]
        assert ids(store.groups(task="sums", iteration=1)) == []


def test_stats_agree_with_a_count_by_hand(tmp_path):
    with open_store(tmp_path, capacity=3) as store:
        store.add([make_group("lost")], iteration=1)
        store.add([make_group("a", iteration=2, rewards=(0.25, None, 1.0), priority=0.5)], iteration=2)
        store.add([make_group("b", iteration=3, task="gcd", rewards=(None, None))], iteration=3)
        store.add([make_group("c", iteration=3, rewards=(-1.0,), priority=3.0)], iteration=3)
        store.draw(3, iteration=3, policy_version=3)
        stats = store.stats()
        files = [p for p in tmp_path.iterdir() if p.name.startswith(FILE_NAME)]
        assert stats.bytes_on_disk == sum(p.stat().st_size for p in files) > 10_000
    assert (stats.groups, stats.seen, stats.evicted, stats.drawn, stats.never_drawn) == (3, 4, 1, 3, 0)
    assert stats.iterations == {2: 1, 3: 2} and stats.last_iteration == 3
    assert stats.policy_versions == (1, 2) and stats.priorities == (0.5, 1.5, 3.0)
    gcd, sums = stats.tasks
    assert (gcd.task, gcd.groups, gcd.rollouts, gcd.unscored, gcd.reward_mean, gcd.draws) == ("gcd", 1, 2, 2, None, 1)
    assert (sums.groups, sums.rollouts, sums.unscored, sums.draws) == (2, 4, 1, 2)
    assert (sums.reward_mean, sums.reward_min, sums.reward_max) == (pytest.approx(0.25 / 3), -1.0, 1.0)


def test_the_digest_notices_every_kind_of_change(tmp_path):
    with open_store(tmp_path) as store:
        digests = {store.digest()}
        store.add([make_group("a"), make_group("b")], iteration=1)
        digests.add(store.digest())
        store.update_priorities({"a": 1.0 + 2**-52}, iteration=1)
        digests.add(store.digest())
        store.draw(1, iteration=1, policy_version=0)
        digests.add(store.digest())
        store.add([make_group("c", logprobs=(-0.5, -0.0))], iteration=1)
        digests.add(store.digest())
        assert len(digests) == 5
        store.rollback(0)
        store.add([make_group("a"), make_group("b")], iteration=1)
        store.update_priorities({"a": 1.0 + 2**-52}, iteration=1)
        store.draw(1, iteration=1, policy_version=0)
        store.add([make_group("c", logprobs=(-0.5, 0.0))], iteration=1)
        assert store.digest() not in digests


def test_a_reader_sees_whole_calls_while_a_run_writes(tmp_path):
    with open_store(tmp_path, capacity=9, draw=PrioritizedDraw()) as store:
        store.add([], iteration=0)
        written, read, failures = {store.digest()}, [], []
        done = threading.Event()

        def look() -> None:
            try:
                with ReplayReader.open_read_only(tmp_path) as reader:
                    while not done.is_set() or len(read) < 3:
                        read.append(reader.digest())
                        assert len(list(reader.groups())) <= 9 and reader.stats().groups <= 9
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=look)
        thread.start()
        for iteration in range(1, 25):
            groups = [make_group(f"g{iteration}-{i}", iteration=iteration) for i in range(3)]
            for change in (
                lambda groups=groups, iteration=iteration: store.add(groups, iteration=iteration),
                lambda iteration=iteration: store.draw(3, iteration=iteration, policy_version=iteration),
            ):
                change()
                written.add(store.digest())
        done.set()
        thread.join()
    assert not failures
    assert set(read) <= written and len(set(read)) > 1


def test_groups_are_read_page_by_page_and_survive_changes_in_between(tmp_path):
    with open_store(tmp_path, capacity=150) as store:
        store.add([make_group(f"g{i:03}") for i in range(150)], iteration=1)
        walk = store.groups()
        assert next(walk).id == "g000"
        store.add([make_group(f"h{i:03}", iteration=2) for i in range(100)], iteration=2)
        rest = ids(walk)
        assert rest[-1] == "h099" and len(rest) == len(set(rest))


def multiply(directory, times: int) -> None:
    """Copy every group of a full store of 1000, in SQL: a hundred thousand calls' worth in a moment."""
    with sqlite3.connect(directory / FILE_NAME) as connection:
        connection.create_function("row_checksum", -1, row_checksum)
        connection.create_function("row_is_whole", -1, lambda *_: True)
        connection.create_function("blob_checksum", 2, blob_checksum)
        connection.execute(
            "CREATE TEMP TABLE copies AS WITH RECURSIVE numbers(n) AS "
            "(VALUES (1) UNION ALL SELECT n + 1 FROM numbers LIMIT ?) SELECT n * 1000 AS shift FROM numbers",
            (times - 1,),
        )
        connection.execute(
            "INSERT INTO groups SELECT seq + shift, id || '/' || shift, task, iteration, policy_version, slot + shift, "
            "priority, draws, cluster, class, rank + shift, success, 0 FROM groups, copies"
        )
        connection.execute(
            "INSERT INTO payloads SELECT seq + shift, data, blob_checksum(groups.id || '/' || shift, data) "
            "FROM payloads JOIN groups USING (seq), copies"
        )
        connection.execute("UPDATE progress SET seen = seen * ?", (times,))
    connection.close()


def test_a_draw_costs_about_the_same_in_a_store_of_100_000_groups(tmp_path):
    steps = {}
    for size in (1_000, 100_000):
        config = {"capacity": size + 20, "draw": PrioritizedDraw(), "max_staleness": 60}
        with open_store(tmp_path / str(size), **config) as store:
            for iteration in range(1, 51):
                groups = [make_group(f"{iteration}-{i}", iteration=iteration, priority=1 + i % 5) for i in range(20)]
                store.add(groups, iteration=iteration)
        if size > 1000:
            multiply(tmp_path / str(size), size // 1000)
        with open_store(tmp_path / str(size), **config) as store:
            assert len(store) == size
            store.add([make_group(f"new{i}", iteration=51) for i in range(20)], iteration=51)
            store.draw(1, iteration=51, policy_version=51)
            count = 0

            def step() -> int:
                nonlocal count
                count += 1
                return 0

            store._db.connection.set_progress_handler(step, 1)  # called for every instruction of SQLite's machine
            drawn = store.draw(32, iteration=51, policy_version=52, exclude_iteration=51)
            store._db.connection.set_progress_handler(None, 1)
            assert len(set(ids(drawn))) == 32 and not any(name.startswith("new") for name in ids(drawn))
            steps[size] = count
    assert steps[100_000] < 1.2 * steps[1_000]


# -- opening -----------------------------------------------------------------------------------------------------------


def test_a_store_goes_on_after_it_was_closed(tmp_path):
    with open_store(tmp_path / "left alone", draw=PrioritizedDraw(), capacity=9) as store:
        for iteration in range(1, 9):
            play_iteration(store, iteration)
        expected = store.digest()
    for iteration in range(1, 9):
        with open_store(tmp_path / "reopened", draw=PrioritizedDraw(), capacity=9) as store:
            play_iteration(store, iteration)
    assert store.close() is None  # twice is fine
    with ReplayReader.open_read_only(tmp_path / "reopened") as reader:
        assert reader.digest() == expected


@pytest.mark.parametrize(
    ("config", "seed", "message"),
    [
        (ReplayConfig(capacity=8), SEED, "made with replay.capacity = 9 and cannot go on with 8"),
        (ReplayConfig(capacity=9, keep="reservoir"), SEED, "made with replay.keep = fifo"),
        (ReplayConfig(capacity=9), 8, "made with seed = 7"),
    ],
)
def test_a_store_is_not_continued_with_other_settings(tmp_path, config, seed, message):
    open_store(tmp_path, capacity=9).close()
    with pytest.raises(RunDirError, match=message):
        ReplayStore.open(tmp_path, config, seed=seed)


def test_drawing_may_be_configured_anew(tmp_path):
    with open_store(tmp_path) as store:
        store.add([make_group("a", priority=0.0), make_group("b")], iteration=1)
    with open_store(tmp_path, draw=PrioritizedDraw()) as store:
        assert ids(store.draw(2, iteration=1, policy_version=0)) == ["b"]


def test_seeds_of_more_than_64_bits(tmp_path):
    for _ in range(2):
        with ReplayStore.open(tmp_path, ReplayConfig(), seed=2**100) as store:
            assert store.seed == 2**100


def both_ways(directory, message) -> None:
    with pytest.raises(RunDirError, match=message):
        open_store(directory)
    with pytest.raises(RunDirError, match=message):
        ReplayReader.open_read_only(directory)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(RunDirError, match="there is no replay store in"):
        ReplayReader.open_read_only(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"not a database, but long enough to look like one" * 100)
    both_ways(tmp_path, "it is not a replay store")
    (tmp_path / FILE_NAME).unlink()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    both_ways(tmp_path, "is not a replay store of rlsf")


def test_a_store_of_another_version_is_refused(tmp_path):
    open_store(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    both_ways(tmp_path, "schema version 99, and this rlsf reads version 2")
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 1")
    both_ways(tmp_path, "schema version 1, and this rlsf reads version 2: use the rlsf that wrote it")
    with pytest.raises(RunDirError, match="schema version 1, and this rlsf reads version 2"):
        verify(tmp_path)


def test_a_damaged_file_is_said_to_be_damaged(tmp_path):
    with open_store(tmp_path) as store:
        store.add([make_group(f"g{i}") for i in range(50)], iteration=1)
    size = (tmp_path / FILE_NAME).stat().st_size
    with (tmp_path / FILE_NAME).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    both_ways(tmp_path, "is damaged|not a replay store")


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match="cannot make the directory"):
        open_store(tmp_path / "file" / "replay")


def test_two_writers_are_noticed(tmp_path):
    with open_store(tmp_path) as first, open_store(tmp_path) as second:
        first.add([make_group("a")], iteration=1)
        with pytest.raises(RunDirError, match="another process has written to it"):
            second.add([make_group("b")], iteration=1)
        first.add([make_group("c")], iteration=1)
        assert ids(first.groups()) == ["a", "c"]
