"""Batches: nothing is done twice, nothing is lost, and no file stands in the way of another."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from irae.batch import Batch, Failed, Outcome
from irae.engine import Engine, Wishes
from irae.images import Picture, read_image, write_image
from irae.journal import LOCK, NAME, Entry, FolderLock, Journal, JournalError
from irae.models.irae import IRAEConfig
from irae.pipeline import Done, Gate, GateClosed, Settings, Skipped, check_outputs, plan
from irae.restorer import OptionError
from irae.runner import Shape, Workers
from tests.conftest import random_model

Run = Callable[..., list[Outcome]]


@pytest.fixture
def folder(tmp_path: Path, photo: NDArray[Any]) -> Path:
    """Eight photographs of different sizes."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        write_image(folder / f"{number}.png", Picture(photo[5 * number :, 3 * number :]))
    return folder


@pytest.fixture
def run(folder: Path, weights_file: Path) -> Run:
    """Restore the folder by four threads, small tiles in batches of three."""

    def call(inputs: Path = folder, output: Path | None = None, **options: Any) -> list[Outcome]:
        settings = Settings(Wishes("denoise", sigma=options.pop("sigma", None)), **options)
        with Workers([torch.device("cpu")], Shape(48, 3)) as workers:
            engine = Engine(weights_file, "cpu", "fp32", workers)
            return list(Batch(plan([inputs], output, recursive=True), engine, settings, threads=4).run())

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_a_batch_gives_what_single_files_give(run: Run, folder: Path, weights_file: Path) -> None:
    outcomes = run()
    assert [outcome.job.source.name for outcome in outcomes] == [f"{number}.png" for number in range(8)]
    assert all(isinstance(outcome, Done) for outcome in outcomes)
    engine = Engine(weights_file, "cpu", "fp32")
    for path in folder.iterdir():
        picture = read_image(path)
        expected = engine.run(engine.plan(picture, Wishes("denoise"))).astype(int)
        assert np.abs(read_image(folder.with_name("in.restored") / path.name).pixels - expected).max() <= 1


def test_what_is_done_and_why(run: Run, folder: Path, tmp_path: Path, photo: NDArray[Any]) -> None:
    run()
    results = tmp_path / "in.restored"
    before = contents(results)
    assert all(isinstance(outcome, Skipped) for outcome in run())
    assert all(isinstance(outcome, Done) for outcome in run(sigma=20))
    assert contents(results) != before
    assert all(isinstance(outcome, Done) for outcome in run())
    assert contents(results) == before
    write_image(results / "3.png", Picture(photo), overwrite=True)
    (failed,) = [outcome for outcome in run() if isinstance(outcome, Failed)]
    assert "--overwrite" in failed.sentence and failed.job.source.name == "3.png"
    assert sum(isinstance(outcome, Done) for outcome in run(overwrite=True)) == 1
    assert contents(results) == before


def test_other_precision_or_task_is_a_reason(run: Run, folder: Path, tmp_path: Path, weights_file: Path) -> None:
    run()
    for precision, expected in (("bf16", Done), ("bf16", Skipped)):
        engine = Engine(weights_file, "cpu", precision)
        outcomes = list(Batch(plan([folder]), engine, Settings(Wishes("denoise"))).run())
        assert all(isinstance(outcome, expected) for outcome in outcomes)
    network = random_model(IRAEConfig("photo", channels=(12,)))
    outcomes = list(Batch(plan([folder]), Engine(network, "cpu", "bf16"), Settings()).run())
    assert [outcome.tasks for outcome in outcomes if isinstance(outcome, Done)] == [("photo",)] * 8


def test_other_weights_are_a_reason(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr(Engine, "weights_digest", lambda self, task: "other")
    assert all(isinstance(outcome, Done) for outcome in run())
    assert all(isinstance(outcome, Skipped) for outcome in run())


def test_a_run_cuts_images_as_the_run_before(run: Run, tmp_path: Path, weights_file: Path, folder: Path) -> None:
    run()
    lines = (tmp_path / "in.restored" / NAME).read_text().splitlines()
    assert json.loads(lines[0]) == {"device": "cpu", "shape": {"tile": 48, "batch": 3, "window": 0}}
    with Workers([torch.device("cpu")]) as workers:
        list(Batch(plan([folder]), Engine(weights_file, "cpu", runner=workers), Settings()).run())
        assert workers.shape == Shape(48, 3)


@pytest.mark.parametrize("when", ["before the journal", "before the file is in place", "in the journal's line"])
def test_a_run_goes_on_after_any_end(run: Run, tmp_path: Path, when: str) -> None:
    run()
    results = tmp_path / "in.restored"
    before, journal = contents(results), results / NAME
    lines = journal.read_bytes().splitlines(keepends=True)
    name = json.loads(lines[-1])["output"]
    (results / name).unlink()
    (results / ".0123456789abcdef.tmp").write_bytes(b"half")
    if when == "before the journal":
        journal.write_bytes(b"".join(lines[:-1]))
    if when == "in the journal's line":
        journal.write_bytes(b"".join(lines)[:-20])
    outcomes = run()
    assert [outcome.job.target.name for outcome in outcomes if isinstance(outcome, Done)] == [name]
    assert contents(results) == before and not list(results.glob(".*.tmp"))
    assert all(isinstance(outcome, Skipped) for outcome in run())


def test_failures_are_listed_and_tried_again(run: Run, folder: Path, tmp_path: Path, photo: NDArray[Any]) -> None:
    (folder / "2.png").write_bytes(b"")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:500])
    failed = [outcome for outcome in run() if isinstance(outcome, Failed)]
    assert [outcome.job.source.name for outcome in failed] == ["2.png", "5.png"]
    listed = (tmp_path / "in.restored" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["error"] for line in listed] == [outcome.sentence for outcome in failed]
    write_image(folder / "2.png", Picture(photo), overwrite=True)
    again = run()
    assert [type(outcome).__name__ for outcome in again].count("Done") == 1
    assert len((tmp_path / "in.restored" / "failures.jsonl").read_text().splitlines()) == 1


def test_a_full_disk_ends_the_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        outcomes = run()
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert failed and all(outcome.disk_full and "disk is full" in outcome.sentence for outcome in failed)
    assert not list((tmp_path / "in.restored").glob(".*.tmp"))
    done = sum(isinstance(outcome, Done) for outcome in outcomes)
    assert sum(isinstance(outcome, Done) for outcome in run()) == 8 - done > 0


def test_stopping_finishes_what_is_in_flight(folder: Path, tmp_path: Path, weights_file: Path) -> None:
    batch = Batch(plan([folder]), Engine(weights_file, "cpu"), Settings(Wishes("denoise")), threads=1)
    outcomes = []
    for outcome in batch.run():
        outcomes.append(outcome)
        batch.stop()
    assert 1 <= len(outcomes) < 8 and len(contents(tmp_path / "in.restored")) == len(outcomes)
    assert not (tmp_path / "in.restored" / LOCK).exists()


def test_links_out_and_the_output_inside_are_left_out(
    run: Run, folder: Path, tmp_path: Path, photo: NDArray[Any]
) -> None:
    write_image(tmp_path / "secret.png", Picture(photo))
    (folder / "9.png").symlink_to(tmp_path / "secret.png")
    (folder / "8.png").symlink_to(folder / "1.png")
    for _ in range(2):
        outcomes = run(folder, folder / "results")
        assert len(outcomes) == 10 and isinstance(outcomes[-1], Skipped) and "link" in outcomes[-1].why
    assert set(contents(folder / "results")) == {f"{number}.png" for number in range(9)}


def test_what_is_no_input_is_left_out(folder: Path, photo: NDArray[Any]) -> None:
    """Hidden files, and the results of other runs, which lie inside or beside."""
    results = ("0.restored.png", "0.restored.png.compare.png", "0.recovered.png", "old.restored/a.png")
    for name in ("._0.png", ".hidden/a.png", *results, "sub/a.png", "other.restored.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        write_image(folder / name, Picture(photo))
    Journal(folder / "old.restored").record(Entry("a.png", "", {}, {}, {"a.png": ""}))
    found = {job.source.relative_to(folder).as_posix() for job in plan([folder], recursive=True)}
    assert found == {*(f"{number}.png" for number in range(8)), "sub/a.png", "other.restored.png"}


def test_output_may_lie_above_the_input(folder: Path) -> None:
    jobs = plan([folder], folder.parent)
    assert {job.target for job in jobs} == {folder.parent / f"{number}.png" for number in range(8)}


def test_a_name_that_keeps_results_apart_may_be_taken(tmp_path: Path, photo: NDArray[Any]) -> None:
    for name in ("a.jpg", "a.png", "a.jpg.png"):
        write_image(tmp_path / name, Picture(photo))
    jobs = plan([tmp_path])
    check_outputs(jobs, Settings())
    assert {job.source.name: job.target.name for job in jobs} == {
        "a.jpg": "a.jpg.jpg.png",
        "a.png": "a.png",
        "a.jpg.png": "a.jpg.png",
    }


def test_names_that_differ_in_case_alone_keep_apart(tmp_path: Path, photo: NDArray[Any]) -> None:
    for name in ("a.png", "A.png"):
        write_image(tmp_path / name, Picture(photo))
    if len(list(tmp_path.iterdir())) == 2:  # else this file system cannot hold both
        jobs = plan([tmp_path])
        check_outputs(jobs, Settings())
        assert len({job.target for job in jobs}) == 2


def test_a_folder_that_cannot_be_read_stops_no_other(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sub").mkdir()
    scandir, stat = os.scandir, os.stat

    def closed(path: Any) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    def closed_inside(path: Any, **options: Any) -> Any:
        if str(path).endswith(f"sub/{NAME}"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(os, "stat", closed_inside)
    *done, failed = run()
    assert len(done) == 8 and all(isinstance(outcome, Done) for outcome in done)
    assert isinstance(failed, Failed) and "sub cannot be read" in failed.sentence
    with pytest.raises(OptionError, match="sub cannot be read"):
        plan([folder / "sub"])


def test_a_file_named_twice_is_restored_once(folder: Path) -> None:
    check_outputs(plan([folder / "0.png", folder / ".." / "in" / "1.png", folder / "0.png"]), Settings())
    assert len(plan([folder / "0.png", folder / "0.png"])) == 1


def test_a_rest_goes_with_the_image_that_it_belongs_to(run: Run, folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "in.restored"
    run(keep_rest=True, compare=True)
    (results / "1.png.rest").write_bytes(b"somebody else's")
    assert run()[1].job.source.name == "1.png"
    assert not (results / "0.png.rest").exists() and not (results / "0.png.compare.png").exists()
    assert (results / "1.png.rest").read_bytes() == b"somebody else's"


def test_a_foreign_list_of_failures_stays(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "in.restored" / "failures.jsonl"
    mine.parent.mkdir()
    mine.write_text("mine")
    for _ in range(2):  # the second one finds a journal
        run()
        assert mine.read_text() == "mine"


def test_a_file_system_without_locks_will_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert all(isinstance(outcome, Done) for outcome in run())


def test_two_runs_refuse_each_other(run: Run, tmp_path: Path) -> None:
    results = tmp_path / "in.restored"
    hold = (
        "import sys; from pathlib import Path; from irae.journal import FolderLock\n"
        f"with FolderLock(Path({str(results)!r})): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline()
    with pytest.raises(JournalError, match=f"process {other.pid}"):
        run()
    other.kill()
    other.wait()
    assert (results / LOCK).exists()  # stale: it holds nobody
    assert len(run()) == 8 and not (results / LOCK).exists()
    other.communicate()


def test_locks_are_free_again(tmp_path: Path) -> None:
    for _ in range(2):
        with FolderLock(tmp_path), pytest.raises(JournalError), FolderLock(tmp_path):
            pass


def test_a_damaged_journal_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(200):
        (tmp_path / NAME).write_bytes(rng.randbytes(rng.randrange(200)) + b'\n{"a": 1}\n[]\n3\n{"shape": 3}\n')
        assert Journal(tmp_path).shape == {}


def test_the_gate_lets_large_images_in_alone() -> None:
    gate = Gate(100)
    with gate.admit(500):
        assert gate.inside == 500
    with gate.admit(60), gate.admit(40):
        assert gate.inside == 100
    assert gate.inside == 0


def test_a_closed_gate_lets_nobody_in() -> None:
    gate, met = Gate(100), list[str]()

    def wait() -> None:
        try:
            with gate.admit(80):
                met.append("in")
        except GateClosed:
            met.append("closed")

    with gate.admit(80):
        thread = threading.Thread(target=wait)
        thread.start()
        gate.close()
        thread.join()
    assert met == ["closed"]
