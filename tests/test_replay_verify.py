"""Damage of every kind: what `rlsf replay verify` says of it, and what it saves."""

import random
import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

from rlsf.cli import main
from rlsf.config.replay import ReplayConfig
from rlsf.errors import RunDirError
from rlsf.replay import ReplayReader, ReplayStore
from rlsf.replay.salvage import Fallback
from rlsf.replay.tables import FILE_NAME
from rlsf.replay.verify import verify
from rlsf.run_dir import RunDir
from rlsf.seeds import derive_seed
from tests.damaged_stores import CONFIG, ITERATIONS, check_damaged, content, make_store
from tests.replay_groups import make_group

LOG = FILE_NAME + "-wal"
PAGE = 4096


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """By whether the newest changes are in the log alone: the folder, its content, all groups ever made."""
    made = {}
    for logged in (False, True):
        folder = tmp_path_factory.mktemp("stores") / "store"
        groups = make_store(folder, logged=logged)
        twin = folder.with_name("twin")  # reading a log leaves files behind
        shutil.copytree(folder, twin)
        made[logged] = folder, content(twin), groups
    return made


@pytest.fixture
def damaged(stores, tmp_path):
    def damage(change, *, logged: bool = False, file: str = FILE_NAME):
        """Whether `change`, given the bytes of a file, was harmless, and how many groups were saved of it."""
        folder, expected, groups = stores[logged]
        target = tmp_path / "damaged"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        data = bytearray((target / file).read_bytes())
        change(data)
        (target / file).write_bytes(data)
        return check_damaged(target, expected, groups)

    return damage


def test_a_whole_store_is_whole(stores, tmp_path):
    for logged, (folder, expected, _) in stores.items():
        shutil.copytree(folder, tmp_path / str(logged))
        files = sorted(path.name for path in folder.iterdir())
        assert files == [FILE_NAME, LOG][: 1 + logged]
        found = verify(tmp_path / str(logged), iteration=ITERATIONS)
        assert found.is_whole and found.stored == len(expected[1]) == 40
        assert {name: report.whole for name, report in found.tables.items()} == {
            "settings": 1, "progress": 5, "groups": 63, "payloads": 63, "rollouts": 126, "embeddings": 63,
            "journal": found.tables["journal"].whole,
        }  # fmt: skip


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_are_found_or_harmless(stores, damaged, logged, seed):
    rng = random.Random(seed)
    outcomes = set()
    for _ in range(12):
        file = rng.choice([FILE_NAME, LOG][: 1 + logged])
        folder = stores[logged][0]
        at, bit = rng.randrange((folder / file).stat().st_size), 1 << rng.randrange(8)

        def flip(data: bytearray, at=at, bit=bit) -> None:
            data[at] ^= bit

        outcomes.add(damaged(flip, logged=logged, file=file)[0])
    assert False in outcomes


def test_every_byte_of_the_header_may_be_damaged(damaged):
    for at in [*range(0, 100, 7), 18, 19, 21, 47, 56, 59, 63, 68]:

        def flip(data: bytearray, at=at) -> None:
            data[at] ^= 1 << at % 8

        harmless, saved = damaged(flip)
        assert harmless or saved == 40, at


def test_without_its_first_page_all_groups_are_saved(damaged):
    def clear(data: bytearray) -> None:
        data[:PAGE] = bytes(PAGE)

    assert damaged(clear) == (False, 40)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.95, 0.999999])
def test_a_truncated_file_gives_what_is_left(damaged, share):
    def cut(data: bytearray) -> None:
        del data[int(len(data) * share) :]

    harmless, saved = damaged(cut)
    assert not harmless
    assert saved >= 25 if share > 0.9 else saved >= 0


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.3, 0.999])
def test_a_truncated_log_is_noticed(damaged, share):
    def cut(data: bytearray) -> None:
        del data[int(len(data) * share) :]

    harmless, saved = damaged(cut, logged=True, file=LOG)
    assert not harmless and saved > 20


def test_every_page_of_zeros_or_noise_is_noticed(stores, damaged):
    size = (stores[False][0] / FILE_NAME).stat().st_size
    noise = random.Random(0)
    for page in [*range(12), *range(12, size // PAGE, 11)]:  # the first ones are the roots of tables and indexes
        content_of_page = noise.randbytes(PAGE) if page % 2 else bytes(PAGE)

        def overwrite(data: bytearray, page=page, content_of_page=content_of_page) -> None:
            data[page * PAGE : (page + 1) * PAGE] = content_of_page

        harmless, saved = damaged(overwrite)
        assert not harmless and (saved > 0) == (page != 3), page  # that one has all rows of groups


@pytest.mark.parametrize("noise", [False, True])
def test_where_the_way_to_rows_is_lost_they_are_found_on_their_pages(tmp_path, noise):
    with ReplayStore.open(tmp_path / "store", ReplayConfig(), seed=0) as store:
        long = tuple(np.random.default_rng(0).normal(size=900).tolist())  # payloads of several pages
        groups = [
            make_group(f"g{i}", priority=[1.0, 0.3][i % 2], logprobs=long if i % 50 == 0 else (-0.5,))
            for i in range(300)
        ]
        store.add(groups, iteration=1, clusters={"g7": -3, "g8": 2**40})
        store.draw(20, iteration=1, policy_version=1)
        expected = {group.id: group for group in store.groups()}
        clusters, drawn = store.clusters(), store.stats().never_drawn
        roots = [
            store._db.connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0]
            for name in ("groups", "payloads")
        ]
    with (tmp_path / "store" / FILE_NAME).open("r+b") as file:
        for root in roots:
            file.seek((root - 1) * PAGE)
            file.write(random.Random(root).randbytes(PAGE) if noise else bytes(PAGE))
    found = verify(tmp_path / "store", output=tmp_path / "saved")
    assert not found.is_whole and found.salvaged == 300
    with ReplayReader.open_read_only(tmp_path / "saved") as reader:
        assert {group.id: group for group in reader.groups()} == expected
        assert reader.clusters() == clusters and reader.stats().never_drawn == drawn


def test_a_missing_log_is_noticed_by_the_checkpoint(stores, tmp_path):
    shutil.copytree(stores[True][0], tmp_path / "store")
    (tmp_path / "store" / LOG).unlink()
    found = verify(tmp_path / "store", iteration=ITERATIONS)
    assert any("ends with iteration 3, and the run's checkpoint is of iteration 6" in line for line in found.problems)
    assert found.stored == 36
    salvaged = verify(tmp_path / "store", iteration=ITERATIONS, output=tmp_path / "saved").salvaged
    assert salvaged == 36
    with ReplayStore.open(tmp_path / "saved", CONFIG, seed=1) as store:
        store.rollback(ITERATIONS)


def test_an_emptied_file_does_not_lose_its_log(stores, tmp_path):
    shutil.copytree(stores[True][0], tmp_path / "store")
    (tmp_path / "store" / FILE_NAME).write_bytes(b"")
    for open_it in (
        lambda: ReplayStore.open(tmp_path / "store", CONFIG, seed=1),
        lambda: ReplayReader.open_read_only(tmp_path / "store"),
    ):
        with pytest.raises(RunDirError, match="the file is empty, and its log is not"):
            open_it()
    assert verify(tmp_path / "store").problems == ["replay.sqlite: the file is empty"]
    assert (tmp_path / "store" / LOG).exists()
    with pytest.raises(RunDirError, match="there is no replay store"):
        verify(tmp_path)


def change_quietly(directory: Path, *statements: str) -> None:
    """Change rows as damage would: without the triggers that renew checksums."""
    with sqlite3.connect(directory / FILE_NAME) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            sql = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0]
            connection.execute(f"DROP TRIGGER {name}")
            statements = (*statements, sql)
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE groups SET priority = priority + 1 WHERE id = 'a'", "groups"),
        ("UPDATE groups SET task = 'other' WHERE id = 'a'", "groups"),
        ("UPDATE groups SET draws = 7 WHERE id = 'a'", "groups"),
        ("UPDATE groups SET task = CAST(x'ff' AS TEXT) WHERE id = 'a'", "groups"),
        ("UPDATE payloads SET data = (SELECT data FROM payloads WHERE seq = 2) WHERE seq = 1", "payloads"),
        ("DELETE FROM payloads WHERE seq = 1", "payloads"),
    ],
)
def test_a_damaged_group_is_named_wherever_it_is_read_or_changed(tmp_path, statement, table):
    with ReplayStore.open(tmp_path / "replay", CONFIG, seed=0) as store:
        store.add([make_group("a"), make_group("b")], iteration=1)
    change_quietly(tmp_path / "replay", statement)
    named = rf"group 'a' is damaged. `rlsf replay verify {tmp_path}`"
    with ReplayStore.open(tmp_path / "replay", CONFIG, seed=0) as store:
        assert store.get("b").id == "b"
        for read in (
            lambda: store.get("a"),
            lambda: list(store.groups()),
            lambda: store.draw(2, iteration=2, policy_version=1),
        ):
            with pytest.raises(RunDirError, match=named):
                read()
        if table == "groups":
            with pytest.raises(RunDirError, match=named if "CAST" not in statement else "rlsf replay verify"):
                store.update_priorities({"a": 3.0}, iteration=2)
    found = verify(tmp_path / "replay")
    assert [which.split(" ")[0] for which in found.tables[table].damaged] == ["a"] and found.stored == 1


@pytest.mark.parametrize("table", ["settings", "progress", "journal"])
def test_damaged_counters_settings_and_journals_are_refused(tmp_path, table):
    with ReplayStore.open(tmp_path / "replay", CONFIG, seed=0) as store:
        store.add([make_group("a")], iteration=1)
        store.add([make_group("b")], iteration=2)
    column = {"settings": "pruned", "progress": "drawn", "journal": "existed"}[table]
    change_quietly(tmp_path / "replay", f"UPDATE {table} SET {column} = 1")
    with pytest.raises(RunDirError, match=r"is damaged\. `rlsf replay verify"):  # noqa: SIM117
        with ReplayStore.open(tmp_path / "replay", CONFIG, seed=0) as store:
            store.rollback(1)
    found = verify(tmp_path / "replay", output=tmp_path / "saved", fallback=Fallback(40, "balanced", 0))
    assert found.tables[table].damaged and found.stored == found.salvaged == 2
    with ReplayStore.open(tmp_path / "saved", CONFIG, seed=0) as store:
        assert {group.id for group in store.groups()} == {"a", "b"}
        assert store.seen == 2 and not store.add([make_group("c")], iteration=2)


def test_salvage_goes_back_to_the_checkpoint(stores, tmp_path):
    folder, _, _ = stores[False]
    shutil.copytree(folder, tmp_path / "store")
    with ReplayStore.open(tmp_path / "store", CONFIG, seed=1) as store:
        store.rollback(5)
        expected = {group.id: group.priority for group in store.groups()}
        clusters, (names, vectors) = store.clusters(), store.embeddings()
        drawn = store.stats().drawn
    shutil.copytree(folder, tmp_path / "other")
    assert verify(tmp_path / "other", iteration=5, output=tmp_path / "saved").salvaged == 40
    with ReplayStore.open(tmp_path / "saved", CONFIG, seed=1) as store:
        assert {group.id: group.priority for group in store.groups()} == expected
        assert store.clusters() == clusters and store.embeddings()[0] == names
        assert (store.embeddings()[1] == vectors).all()
        assert store.last_iteration == 5 and store.stats().drawn == drawn
    with pytest.raises(RunDirError, match="exists and is not an empty folder"):
        verify(tmp_path / "other", output=tmp_path / "saved")


def rlsf(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["rlsf", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), " ".join((said.out + said.err).split())


def test_the_commands(tmp_path, monkeypatch, capsys):
    run = RunDir(tmp_path / "run")
    run.replay.mkdir(parents=True)
    run.config.write_text(
        "name: run\nreplay: {capacity: 30, keep: top_reward}\n"
        "tasks: [{name: sums, source: {kind: reasoning_gym, dataset: chain_sum}}]\n"
    )
    with ReplayStore.open(
        run.replay, CONFIG.model_copy(update={"capacity": 30, "keep": "top_reward"}), seed=derive_seed(0, "replay")
    ) as store:
        for iteration in range(1, 5):
            store.add([make_group(f"g{iteration}-{i}", iteration=iteration) for i in range(20)], iteration=iteration)
        store.prune_journal(4)
    status, text = rlsf(monkeypatch, capsys, "replay", "verify", str(run.path))
    assert status == 0 and "groups │ 30 │ 0" in text
    status, text = rlsf(monkeypatch, capsys, "replay", "compact", str(run.path))
    assert status == 0 and "MiB before" in text
    with run.locked():
        for command in ("verify", "compact"):
            status, text = rlsf(monkeypatch, capsys, "replay", command, str(run.path))
            assert status == 2 and "another process is working on" in text
    change_quietly(run.replay, "UPDATE groups SET priority = 9 WHERE id = 'g4-7'", "UPDATE settings SET keep = 'fifo'")
    status, text = rlsf(monkeypatch, capsys, "replay", "verify", str(run.path))
    assert status == 2 and "g4-7" in text and "--salvage FOLDER` saves the 29 whole groups" in text
    saved = tmp_path / "saved"
    status, text = rlsf(monkeypatch, capsys, "replay", "verify", str(run.path), "--salvage", str(saved))
    assert status == 2 and "a new store with 29 groups" in text and "rlsf resume" in text
    with ReplayReader.open_read_only(saved) as reader:
        assert (len(reader), reader.keep, reader.seed) == (29, "top_reward", derive_seed(0, "replay"))
