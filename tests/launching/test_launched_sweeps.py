"""A sweep that a launcher's jobs do: the same rows, each run once, whatever is killed."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pandas as pd
import psutil
import pytest
from launched import (
    JOBLIB,
    SIZES,
    SWEEP,
    are_gone,
    below,
    done,
    finish,
    hidden,
    logged,
    start,
    statuses,
    stored,
    until,
)

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
pytestmark = pytest.mark.slow

TIMES = ["wall_s", "allocator_us_per_step"]


def rows(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "results" / "single" / "summary.parquet").drop(columns=TIMES)


@pytest.fixture
def held(tmp_path):
    """A sweep by joblib with two runs under way that wait for the file `hold` to go."""
    (tmp_path / "hold").touch()
    process = start(tmp_path, *SWEEP, *JOBLIB)
    until(lambda: done(tmp_path).total() == 2, process)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_rows_are_those_of_the_local_sweep_in_its_order(tmp_path):
    for name, launcher in (("here", ()), ("joblib", JOBLIB)):
        (tmp_path / name).mkdir()
        status, out, err = finish(start(tmp_path / name, *SWEEP, *launcher))
        assert (status, err) == (0, ""), out
        assert done(tmp_path / name) == dict.fromkeys(SIZES, 1)
    pd.testing.assert_frame_equal(rows(tmp_path / "here"), rows(tmp_path / "joblib"))
    assert "launcher: joblib" in out
    assert len([line for line in out.splitlines() if line.startswith("[")]) == len(SIZES)
    assert set(logged(tmp_path / "joblib").values()) == {1}
    here, there = ({p.name for p in (tmp_path / n).rglob("*")} for n in ("here", "joblib"))
    assert here == there  # the same study, and nothing of Hydra's or joblib's


def test_ctrl_c_leaves_nothing_running_and_what_is_stored_is_not_done_again(held, tmp_path):
    children = below(held)
    assert len([child for child in children if "spawn" in " ".join(child.cmdline())]) >= 2
    os.killpg(held.pid, signal.SIGINT)  # as a terminal does: to the command and its jobs
    status, _, err = finish(held)
    assert (status, hidden(tmp_path)) == (130, []), err
    until(lambda: are_gone(children))
    said, command = err.strip().splitlines()  # and nothing of the launcher's own
    assert said == "interrupted: 0 runs stored, 6 left; to go on:"
    again = shlex.split(command)[3:]
    assert {*again} == {*SWEEP, *JOBLIB}
    (tmp_path / "hold").unlink()
    assert finish(start(tmp_path, *again))[0] == 0
    assert set(statuses(tmp_path).values()) == {"complete"}


def test_after_kill_9_of_the_command_its_jobs_end_and_the_next_goes_on(held, tmp_path):
    children = below(held)
    held.kill()
    held.wait()
    until(lambda: are_gone(children))
    assert stored(tmp_path) == {}
    (tmp_path / "hold").unlink()
    status, out, err = finish(start(tmp_path, *SWEEP, *JOBLIB))
    assert status == 0, err
    assert set(statuses(tmp_path).values()) == {"complete"}
    assert hidden(tmp_path) == []
    before = stored(tmp_path)
    status, out, _ = finish(start(tmp_path, *SWEEP, *JOBLIB))
    assert "6 runs (quick), 6 already stored" in out
    assert stored(tmp_path) == before


def is_doing_a_run(child: psutil.Process) -> bool:
    return "spawn_main" in " ".join(child.cmdline()) and not child.children()


def test_a_run_whose_process_is_killed_is_a_row_and_stops_no_other(held, tmp_path):
    for child in [child for child in below(held) if is_doing_a_run(child)][:1]:
        child.kill()
    until(lambda: len(stored(tmp_path)) == 1, held)
    (tmp_path / "hold").unlink()
    status, out, err = finish(held)
    assert status == 1, err
    assert "1 of 6 runs failed" in out
    assert "the worker process was killed by signal 9 (SIGKILL)" in out
    assert sorted(statuses(tmp_path).values()) == ["complete"] * 5 + ["failed"]


def test_a_job_that_is_killed_is_launched_again(held, tmp_path):
    """joblib ends all its workers where one is killed: their runs are nobody's fault."""
    workers = [child for child in below(held) if "loky" in " ".join(child.cmdline())]
    jobs = [child for child in workers if child.children()]
    assert len(jobs) == 2
    jobs[0].kill()
    until(lambda: are_gone(jobs))
    (tmp_path / "hold").unlink()
    status, out, err = finish(held)
    assert status == 0, (out, err)
    assert set(statuses(tmp_path).values()) == {"complete"}
    assert hidden(tmp_path) == []


DEADLY = '''
import multiprocessing, os, signal, time
from pathlib import Path
import psutil
from allocators.paged import Paged


class Mine(Paged):
    """With pages of 4 it kills its job, beside another run if there is one; with others it waits
    while that is about to happen."""

    name = "mine"

    def allocate(self, *arguments, **keywords):
        if not hasattr(self, "noted") and multiprocessing.parent_process() is not None:
            self.noted = True
            {4: self.kill, 8: self.wait}[self.page_size]()
        return super().allocate(*arguments, **keywords)

    def kill(self):
        Path("deadly").write_text(str(os.getpid()))
        begun = time.monotonic()
        while not Path("waits").exists() and time.monotonic() < begun + 2:
            time.sleep(0.01)
        Path("waits").unlink(missing_ok=True)
        os.kill(os.getppid(), signal.SIGKILL)  # the job; the kernel ends this process, too

    def wait(self):
        time.sleep(0.2)  # for the other to begin, too
        while Path("deadly").exists() and psutil.pid_exists(int(Path("deadly").read_text() or 0)):
            Path("waits").touch()
            time.sleep(0.01)
'''


def test_a_run_that_kills_its_job_twice_is_a_failed_row_and_none_beside_it(tmp_path):
    (tmp_path / "mine.py").write_text(DEADLY)
    process = start(tmp_path, *SWEEP[:4], "kv.page_size=4,8", *JOBLIB)
    status, out, err = finish(process)
    assert status == 1, (out, err)
    assert statuses(tmp_path) == {4: "failed", 8: "complete"}
    assert "ended before the run did, 2 times; logs: this terminal" in out


@pytest.mark.parametrize("launchers", [((), ()), (JOBLIB, ())], ids=["basic", "joblib"])
def test_two_commands_at_once_do_each_run_once(tmp_path, launchers):
    (tmp_path / "hold").touch()
    both = [start(tmp_path, *SWEEP, *launcher) for launcher in launchers]
    until(lambda: done(tmp_path).total() >= 2)
    (tmp_path / "hold").unlink()
    ended = [finish(process) for process in both]
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert done(tmp_path) == dict.fromkeys(SIZES, 1)
    assert all(f"[{len(SIZES)}/{len(SIZES)}]" in out for _, out, _ in ended)
    assert hidden(tmp_path) == []
