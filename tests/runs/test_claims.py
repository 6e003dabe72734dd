"""A run is one process's at a time, whoever else wants it, and nobody's for ever."""

from __future__ import annotations

import io
import multiprocessing as mp
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from harness.runs import claims as module
from harness.runs.claims import GONE_AFTER_S, Claims, holder_of, is_claimed, remove_abandoned
from harness.runs.display import SweepDisplay
from harness.runs.job_queue import JobQueue
from harness.runs.processes import ProcessName, this_process
from harness.runs.store import RunStore

RUN = "0123456789abcdef"


def claim_elsewhere(root: Path, monkeypatch: pytest.MonkeyPatch, silent_s: float) -> Path:
    """A claim of another machine that was last heard of so long ago."""
    with monkeypatch.context() as patch:
        other = ProcessName("another", os.getpid(), this_process().started_s)
        patch.setattr(module, "this_process", lambda: other)
        assert Claims().take(root, RUN)
    path = holder_of(root, RUN).path
    os.utime(path, (time.time() - silent_s,) * 2)
    return path


def test_a_run_has_one_holder_and_is_free_again_when_released(tmp_path):
    with Claims() as mine, Claims() as theirs:
        assert mine.take(tmp_path, RUN)
        assert not theirs.take(tmp_path, RUN)
        assert theirs.take(tmp_path, "another")
        holder = holder_of(tmp_path, RUN)
        assert (holder.process.pid, abs(holder.since_s - time.time()) < 60) == (os.getpid(), True)
        mine.release(tmp_path, RUN)
        assert holder_of(tmp_path, RUN) is None
        assert theirs.take(tmp_path, RUN)
    assert list(tmp_path.iterdir()) == []


def _take_and_die(root: Path) -> None:
    assert Claims().take(root, RUN)
    os._exit(0)


def test_the_claim_of_a_process_that_is_gone_is_taken_over(tmp_path):
    child = mp.get_context("spawn").Process(target=_take_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert holder_of(tmp_path, RUN).process.pid == child.pid
    assert not is_claimed(tmp_path, RUN)
    with Claims() as claims:
        assert claims.take(tmp_path, RUN)
        assert is_claimed(tmp_path, RUN)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_by_now_is_not_its_holder(tmp_path, monkeypatch):
    process = this_process()
    with monkeypatch.context() as patch:
        earlier = process._replace(started_s=process.started_s - 3600)
        patch.setattr(module, "this_process", lambda: earlier)
        assert Claims().take(tmp_path, RUN)
    assert not is_claimed(tmp_path, RUN)


@pytest.mark.skipif(sys.platform != "linux", reason="others keep the time of day of a start")
def test_a_clock_that_is_set_ends_nobody(tmp_path, monkeypatch):
    with Claims() as claims:
        claims.take(tmp_path, RUN)
        later = psutil.boot_time() + 3600
        for place in ("psutil.boot_time", "psutil._pslinux.boot_time"):
            monkeypatch.setattr(place, lambda: later)
        monkeypatch.setattr("psutil._pslinux.BOOT_TIME", later, raising=False)  # of older ones
        assert is_claimed(tmp_path, RUN)


def test_another_machine_is_believed_while_its_heart_beats(tmp_path, monkeypatch):
    path = claim_elsewhere(tmp_path, monkeypatch, silent_s=GONE_AFTER_S / 2)
    assert is_claimed(tmp_path, RUN)
    assert not Claims().take(tmp_path, RUN)
    remove_abandoned(tmp_path)
    assert is_claimed(tmp_path, RUN)
    os.utime(path, (time.time() - 2 * GONE_AFTER_S,) * 2)
    assert not is_claimed(tmp_path, RUN)
    with Claims() as claims:
        assert claims.take(tmp_path, RUN)
        # from its first moment the new holder is one that was just heard of
        assert time.time() - holder_of(tmp_path, RUN).path.stat().st_mtime < 60


def test_a_sign_from_the_future_holds_a_run_no_longer_than_one_of_now(tmp_path, monkeypatch):
    claim_elsewhere(tmp_path, monkeypatch, silent_s=-2 * GONE_AFTER_S)
    assert not is_claimed(tmp_path, RUN)
    with Claims() as claims:
        assert claims.take(tmp_path, RUN)


@pytest.mark.parametrize("silent_s", [GONE_AFTER_S / 2, -GONE_AFTER_S / 2])
def test_a_command_that_waits_names_the_claim_and_goes_on_when_it_is_deleted(
    tmp_path, monkeypatch, silent_s
):
    path = claim_elsewhere(tmp_path, monkeypatch, silent_s)
    job = SimpleNamespace(root=tmp_path, run_id=RUN, label="paged", device="")
    out = io.StringIO()
    display = SweepDisplay(Console(file=out, soft_wrap=True), [])
    with Claims() as claims:
        queue = JobQueue(claims)
        queue.add([job])
        assert queue.take() is None and queue.elsewhere == (job,)
        for each in (*queue.elsewhere, *queue.elsewhere):
            display.waiting(each)
        (line,) = out.getvalue().splitlines()
        host = holder_of(tmp_path, RUN).host
        assert line.startswith(f"waiting for paged: under way in process {os.getpid()} on {host}")
        assert ("in the future" in line) == (silent_s < 0)
        assert line.endswith(f"delete {path.parent}/")
        shutil.rmtree(path.parent)
        queue.look()
        assert queue.take() is job


def test_a_holder_says_that_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    with Claims() as claims:
        claims.take(tmp_path, RUN)
        path = holder_of(tmp_path, RUN).path
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline


def test_who_comes_too_late_takes_nothing_from_the_new_holder(tmp_path, monkeypatch):
    """Two have seen the same holder gone; the second acts when the first has the run."""
    claim_elsewhere(tmp_path, monkeypatch, silent_s=2 * GONE_AFTER_S)
    gone = holder_of(tmp_path, RUN)
    with Claims() as first:
        assert first.take(tmp_path, RUN)
        assert not module._take_over(gone, "late")
        assert holder_of(tmp_path, RUN).process.is_of_this_machine


def test_the_holder_that_was_taken_for_gone_does_not_release_its_successor(tmp_path, monkeypatch):
    other = ProcessName("another", 1, 0.0)
    with Claims() as late:
        with monkeypatch.context() as patch:
            patch.setattr(module, "this_process", lambda: other)
            assert late.take(tmp_path, RUN)
        os.utime(holder_of(tmp_path, RUN).path, (0, 0))
        with Claims() as successor:
            assert successor.take(tmp_path, RUN)
            late.release(tmp_path, RUN)
            assert is_claimed(tmp_path, RUN)


@pytest.mark.parametrize("is_stale", [False, True], ids=["free", "left by one that is gone"])
def test_of_many_takers_at_once_one_gets_it(tmp_path, monkeypatch, is_stale):
    num_takers, num_rounds = 8, 20
    for number in range(num_rounds):
        root = tmp_path / str(number)
        root.mkdir()
        if is_stale:
            claim_elsewhere(root, monkeypatch, silent_s=2 * GONE_AFTER_S)
        barrier = threading.Barrier(num_takers)
        won: list[Claims] = []

        def take(root: Path = root, barrier: threading.Barrier = barrier, won: list = won) -> None:
            claims = Claims()
            barrier.wait()
            if claims.take(root, RUN):
                won.append(claims)

        threads = [threading.Thread(target=take) for _ in range(num_takers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].__exit__(None, None, None)
        assert list(root.iterdir()) == []


def test_a_half_written_run_stays_while_another_machine_has_it_claimed(tmp_path, monkeypatch):
    partial = tmp_path / f".{RUN}.rows.another-host.17.partial"
    partial.mkdir()
    os.utime(partial, (0, 0))
    path = claim_elsewhere(tmp_path, monkeypatch, silent_s=0)
    RunStore(tmp_path).remove_partial()
    assert partial.exists()
    assert path.exists()
    os.utime(path, (0, 0))
    RunStore(tmp_path).remove_partial()
    assert list(tmp_path.iterdir()) == []


def test_the_same_host_name_is_not_the_same_machine(tmp_path, monkeypatch):
    """Containers and clones share names: a process number of theirs says nothing here."""
    monkeypatch.setattr("harness.runs.half_written.platform.node", lambda: "node")
    partial = tmp_path / f".{RUN}.rows.node.{2**22 + 1}.partial"
    partial.mkdir()
    claim_elsewhere(tmp_path, monkeypatch, silent_s=0)
    RunStore(tmp_path).remove_partial()
    assert partial.exists()
