"""The run directory: nothing half-written is ever taken for whole."""

import json
from pathlib import Path

import pytest

from rlsf.errors import RunDirError
from rlsf.run_dir import RunDir, iterations_in, read_jsonl


@pytest.fixture
def directory(tmp_path):
    run = RunDir.create(tmp_path / "run")
    run.write_text(run.config, "name: run\n")
    return run


def test_a_second_run_of_the_same_name_is_refused(directory):
    with pytest.raises(RunDirError, match="rlsf resume"):
        RunDir.create(directory.path)


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunDirError, match="no run of rlsf"):
        RunDir.create(tmp_path)
    RunDir(tmp_path).set_aside()
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_only_a_run_with_nothing_else_in_it_is_overwritten(tmp_path):
    foreign = tmp_path / "project"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("of another tool")
    with pytest.raises(RunDirError, match="no run of rlsf"):
        RunDir(foreign).set_aside()
    run = RunDir.create(tmp_path / "run")
    run.write_text(run.config, "name: run\n")
    run.write_json(run.versions, {})
    (run.path / "thesis.tex").write_text("precious")
    with pytest.raises(RunDirError, match=r"it holds thesis\.tex"):
        run.set_aside()
    (tmp_path / "link").symlink_to(run.path)
    with pytest.raises(RunDirError, match="not overwritten"):
        RunDir(tmp_path / "link").set_aside()
    (run.path / "thesis.tex").unlink()
    with run.locked(), pytest.raises(RunDirError, match="another process"):
        RunDir(run.path).set_aside()
    run.set_aside()
    assert (run.previous / "config.yaml").exists() and not run.path.exists()
    with pytest.raises(RunDirError, match=r"rename it"):
        RunDir.open(run.path)
    RunDir.create(run.path).discard()
    assert run.config.read_text() == "name: run\n"


def test_what_was_set_aside_comes_back_unless_the_new_run_stands(directory):
    directory.write_json(directory.versions, {})
    directory.set_aside()
    directory.put_back()
    assert directory.config.read_text() == "name: run\n"
    directory.set_aside()
    new = RunDir.create(directory.path)
    new.write_text(new.config, "name: new\n")
    new.put_back()
    assert new.config.read_text() == "name: new\n" and new.previous.exists()
    new.drop_previous()
    assert not new.previous.exists()


def test_a_copy_of_a_checkpoint_is_the_users(directory):
    for iteration in range(4):
        directory.write_checkpoint(iteration, lambda folder: (folder / "a").write_text("1"))
    own = [directory.checkpoints / "iter_000000_keep", directory.checkpoints / "iter_backup"]
    for folder in own:
        folder.mkdir()
    own.append(directory.checkpoints / "iter_000009.tar.gz")
    own[-1].write_text("packed")
    assert [path.name for path in directory.prune_checkpoints(keep=2)] == ["iter_000002", "iter_000003"]
    directory.drop_after(2)
    assert all(path.exists() for path in own)
    assert [path.name for path in iterations_in(directory.checkpoints)] == ["iter_000002"]


@pytest.mark.parametrize("line", ["1", "[]", "{", '{"iteration": "x"}'])
def test_a_broken_line_is_named(line, directory):
    directory.metrics.write_text(line + '\n{"iteration": 1}\n')
    with pytest.raises(RunDirError, match=r"metrics\.jsonl:1: broken line"):
        directory.drop_after(0)


def test_a_folder_that_only_looks_like_a_run_is_left_alone(tmp_path):
    (tmp_path / "checkpoints" / "iter_000007").mkdir(parents=True)
    (tmp_path / "checkpoints" / "iter_000007" / "precious.bin").write_text("x")
    with pytest.raises(RunDirError, match="no run of rlsf"):
        RunDir.create(tmp_path)


def test_two_processes_never_work_on_one_run(directory):
    with directory.locked(), pytest.raises(RunDirError, match="another process"), RunDir(directory.path).locked():
        pass
    with RunDir(directory.path).locked():
        pass


def test_two_processes_never_start_one_run(directory, monkeypatch):
    monkeypatch.setattr("rlsf.run_dir.START_WAIT", 0.1)
    with (
        directory.starting(),
        pytest.raises(RunDirError, match="another process is starting"),
        RunDir(directory.path).starting(),
    ):
        pass
    with RunDir(directory.path).starting():
        pass
    assert [path.name for path in directory.path.parent.iterdir()] == ["run"]


def test_a_folder_that_was_moved_away_is_missed(directory):
    with directory.locked():
        directory.check_in_place()
        directory.path.rename(directory.path.with_name("moved"))
        directory.samples.mkdir(parents=True)
        with pytest.raises(RunDirError, match="was moved, replaced or deleted"):
            directory.check_in_place()
        with RunDir(directory.path).locked(), pytest.raises(RunDirError, match="was moved, replaced or deleted"):
            directory.check_in_place()  # another run works there now


def test_files_that_cannot_be_dropped_are_one_message(directory, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    directory.write_samples(3, [])
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunDirError, match="Permission denied"):
        directory.drop_after(1)


def test_opening_what_is_no_run_says_so(tmp_path):
    with pytest.raises(RunDirError, match=r"config\.yaml is missing"):
        RunDir.open(tmp_path / "nothing")


def test_a_checkpoint_appears_whole_or_not_at_all(directory):
    def fails(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    directory.write_checkpoint(1, lambda folder: (folder / "a").write_text("1"))
    with pytest.raises(KeyboardInterrupt):
        directory.write_checkpoint(2, fails)
    assert directory.latest_checkpoint() == directory.checkpoint(1)
    directory.drop_after(1)
    assert [path.name for path in directory.checkpoints.iterdir()] == ["iter_000001"]


def test_what_later_iterations_wrote_is_dropped(directory):
    for iteration in (1, 2, 3):
        directory.append_line(directory.metrics, {"iteration": iteration})
        directory.write_samples(iteration, [{"reward": 1.0}])
        directory.write_json(directory.evaluations / f"iter_{iteration:06d}_validation_a_b.json", {})
        directory.write_checkpoint(iteration, lambda folder: (folder / "a").write_text("1"))
        (directory.best / f"iter_{iteration:06d}").mkdir(parents=True)
    with directory.metrics.open("a") as file:
        file.write('{"iteration": 3, "cut o')
    directory.drop_after(2)
    assert [row["iteration"] for row in read_jsonl(directory.metrics)] == [1, 2]
    assert sorted(path.name for path in directory.samples.iterdir()) == ["iter_000001.jsonl", "iter_000002.jsonl"]
    assert len(list(directory.evaluations.iterdir())) == 2
    assert not directory.checkpoint(3).exists()
    assert not (directory.best / "iter_000003").exists()


def test_old_checkpoints_go_and_the_best_adapter_stays(directory):
    for iteration in range(5):
        directory.write_checkpoint(iteration, lambda folder: (folder / "a").write_text("1"))
    for iteration in (0, 2):
        directory.best_adapter(iteration).mkdir(parents=True)
    assert directory.prune_checkpoints(keep=2) == [directory.checkpoint(3), directory.checkpoint(4)]
    directory.prune_best({2})
    assert sorted(path.name for path in directory.checkpoints.iterdir()) == ["best", "iter_000003", "iter_000004"]
    assert [path.name for path in directory.best.iterdir()] == ["iter_000002"]


def test_a_line_cut_off_by_a_kill_is_skipped(directory):
    directory.metrics.write_text(json.dumps({"iteration": 1}) + '\n{"iter')
    assert list(read_jsonl(directory.metrics)) == [{"iteration": 1}]


def test_a_damaged_file_is_named(directory):
    directory.summary.write_text("{")
    with pytest.raises(RunDirError, match=r"summary\.json"):
        directory.read_json(directory.summary)


def test_a_full_disk_is_one_message(directory):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    directory.metrics.symlink_to("/dev/full")
    with pytest.raises(RunDirError, match="No space left"):
        directory.append_line(directory.metrics, {"iteration": 1})
