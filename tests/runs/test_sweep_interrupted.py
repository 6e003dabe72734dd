"""A sweep that is killed, interrupted or edited goes on where it stopped, and repeats nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

from experiments.stored import find_study
from harness.runs.interrupted import go_on
from harness.runs.store import RunStore

NUM_RUNS = 12
SWEEP = (
    "executor=simulated",
    "model=tiny",
    "workload.num_requests=60",
    "repetitions=3",
    "kv.page_size=" + ",".join(str(k) for k in range(1, NUM_RUNS + 1)),
)
LIMIT_S = 120


def start(
    folder: Path, *arguments: str, ctrl_c: signal.Handlers = signal.SIG_DFL
) -> subprocess.Popen[str]:
    """ctrl_c: as the shell hands it down; ignored by what a script puts in the background, which
    this suite may be itself."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, ctrl_c),
    )


def finish(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for a condition, not for a time."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended early: {process.communicate()}")
        time.sleep(0.005)


def stored(folder: Path) -> dict[str, int]:
    """Complete runs and when they were written."""
    root = folder / "results" / "single"
    found = {}
    for path in root.glob("[0-9a-f]*"):
        if path.is_dir() and RunStore(root).find(path.name) is not None:
            found[path.name] = (path / "status.json").stat().st_mtime_ns
    return found


def logged(folder: Path) -> Counter[str]:
    lines = (folder / "results" / "single" / "runs.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["run_id"] for line in lines)


@pytest.fixture
def running(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A sweep that has stored at least two runs and has more to do."""
    process = start(tmp_path, *SWEEP, ctrl_c=getattr(request, "param", signal.SIG_DFL))
    until(lambda: len(stored(tmp_path)) >= 2, process)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_after_kill_9_the_same_command_completes_and_repeats_nothing(running, tmp_path):
    children = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    running.wait()
    until(lambda: not any(c.is_running() and c.status() != "zombie" for c in children))
    before = stored(tmp_path)
    assert 2 <= len(before) < NUM_RUNS
    status, out, err = finish(tmp_path, *SWEEP)
    assert status == 0, err
    assert f"{NUM_RUNS} runs (quick), {len(before)} already stored" in out
    after = stored(tmp_path)
    assert len(after) == NUM_RUNS
    assert {run_id: after[run_id] for run_id in before} == before
    assert max(logged(tmp_path).values()) == 1
    assert not list((tmp_path / "results" / "single").glob(".*"))


@pytest.mark.parametrize(
    ("running", "number"),
    [
        (signal.SIG_DFL, signal.SIGINT),
        (signal.SIG_DFL, signal.SIGTERM),
        (signal.SIG_IGN, signal.SIGTERM),
    ],
    ids=["ctrl_c", "sigterm", "sigterm_in_the_background"],
    indirect=["running"],
)
def test_a_signal_ends_it_in_good_order_and_it_says_how_to_go_on(running, tmp_path, number):
    children = psutil.Process(running.pid).children(recursive=True)
    if number == signal.SIGINT:
        os.killpg(running.pid, number)  # as a terminal does: to parent and children
    else:
        running.send_signal(number)
    _, err = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 128 + number, err
    until(lambda: not any(c.is_running() and c.status() != "zombie" for c in children))
    assert not list((tmp_path / "results" / "single").glob(".*")), "a half-written run is left"
    before = stored(tmp_path)
    said = re.fullmatch(
        r"interrupted: (\d+) runs stored, (\d+) left; to go on:\n  python -m (\S+) (.*)",
        err.strip(),
    )
    assert said, err
    assert (int(said[1]), int(said[2])) == (len(before), NUM_RUNS - len(before))
    assert said[3] == "harness"
    assert find_study("single", tmp_path / "results").missing == NUM_RUNS - len(before)
    status, _, _ = finish(tmp_path, *shlex.split(said[4]))
    after = stored(tmp_path)
    assert (status, len(after)) == (0, NUM_RUNS)
    assert {run_id: after[run_id] for run_id in before} == before


STUBBORN = """
import signal
from pathlib import Path
from allocators.paged import Paged

if Path("ready").exists():  # in the worker, not in the command that plans it
    signal.signal(signal.SIGTERM, lambda *_: Path("told").touch())


class Mine(Paged):
    name = "mine"

    def append(self, *arguments, **keywords):
        Path("at work").touch()
        while Path("ready").exists():
            pass
"""


def test_a_second_ctrl_c_ends_at_once_and_leaves_no_process(tmp_path):
    """The worker hears that it shall end, and does not; its parent waits for it meanwhile."""
    (tmp_path / "my mine.py").write_text(STUBBORN)
    (tmp_path / "ready").touch()
    process = start(tmp_path, *SWEEP[:4], "allocator=./my mine.py:Mine", "kv.page_size=8,16")
    until((tmp_path / "at work").exists, process)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    until((tmp_path / "told").exists, process)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (130, ""), out
    until(lambda: not any(c.is_running() and c.status() != "zombie" for c in children))


def test_the_command_to_go_on_is_quoted_for_a_shell():
    arguments = ["allocator=./my mine.py:Mine", "kv.page_size=8,16", "workload.path='a b'"]
    text = go_on("harness", arguments)
    assert shlex.split(text)[-len(arguments) :] == arguments


def is_importing(child: psutil.Process) -> bool:
    """A worker is there and has begun to import."""
    try:
        return any("numpy" in mapped.path for mapped in child.memory_maps())
    except psutil.Error:
        return False


def test_ctrl_c_while_workers_start_is_as_quiet(tmp_path):
    process = start(tmp_path, *SWEEP)
    parent = psutil.Process(process.pid)
    until(lambda: any(is_importing(child) for child in parent.children()), process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert err.strip().startswith("interrupted: 0 runs stored, 12 left; to go on:")
    assert "Traceback" not in err


DEADLY = """
import os, signal
from allocators.paged import Paged


class Mine(Paged):
    name = "mine"

    def allocate(self, *arguments, **keywords):
        if self.page_size == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.page_size == 5:
            os._exit(3)
        if self.page_size == 6:
            raise RuntimeError("no such luck")
        if self.page_size == 7:
            raise MemoryError("too much")
        return super().allocate(*arguments, **keywords)
"""


def test_a_run_that_dies_is_a_row_and_the_sweep_goes_on(tmp_path):
    (tmp_path / "mine.py").write_text(DEADLY)
    arguments = (*SWEEP[:2], "workload.num_requests=5", "kv.page_size=4,5,6,7,8,16")
    arguments = (*arguments, "allocator=./mine.py:Mine")
    status, out, _ = finish(tmp_path, *arguments)
    assert status == 1
    assert "4 of 6 runs failed" in out
    root = tmp_path / "results" / "single"
    before = stored(tmp_path)
    runs = {run.config["kv"]["page_size"]: run for run in map(RunStore(root).find, before)}
    assert {size: run.status for size, run in runs.items()} == {
        **dict.fromkeys((4, 5, 6), "failed"),
        7: "out_of_memory",
        **dict.fromkeys((8, 16), "complete"),
    }
    assert runs[4].error == "the worker process was killed by signal 9 (SIGKILL)"
    assert runs[5].error == "the worker process ended with exit code 3"
    assert runs[6].error.endswith("raised RuntimeError: no such luck (mine.py, line 15)")
    assert runs[7].error.startswith("out of memory: more memory was asked for (too much); the pool")
    rows = pd.read_csv(root / "summary.csv").set_index("page_size")
    assert {size: rows.status[size] for size in runs} == {s: r.status for s, r in runs.items()}
    assert finish(tmp_path, *arguments)[0] == 1
    after = stored(tmp_path)
    kept = {run_id for run_id in after if after[run_id] == before[run_id]}
    assert kept == {runs[8].run_id, runs[16].run_id}


def test_a_full_disk_ends_the_sweep_and_room_lets_it_go_on(tmp_path):
    """A limit on the size of files stands in for a disk that is full."""
    arguments = (*SWEEP[:4], "kv.page_size=8,16,32")
    command = f"ulimit -f 8; exec {sys.executable} -m harness {' '.join(arguments)}"
    process = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.returncode == 1
    (line,) = process.stderr.strip().splitlines()
    assert line.startswith("error: run ")
    assert "was not saved (" in line
    assert "free space under results or choose another results_dir, then repeat" in line
    assert stored(tmp_path) == {}
    status, out, _ = finish(tmp_path, *arguments)
    assert status == 0
    assert "3 runs (quick); about" in out
    assert len(stored(tmp_path)) == 3


def test_an_edited_allocator_runs_anew_and_others_do_not(tmp_path):
    path = tmp_path / "mine.py"
    text = "from allocators.paged import Paged\nclass Mine(Paged):\n    name = 'mine'\n"
    path.write_text(text)
    arguments = (*SWEEP[:2], "workload.num_requests=5", "kv.page_size=8,16")
    arguments = (*arguments, "allocator=paged,./mine.py:Mine")
    assert finish(tmp_path, *arguments)[0] == 0
    first = stored(tmp_path)
    assert len(first) == 4
    status, out, _ = finish(tmp_path, *arguments)
    assert status == 0
    assert "4 runs (quick), 4 already stored" in out
    assert stored(tmp_path) == first
    path.write_text(text + "    # a remark\n")
    status, out, _ = finish(tmp_path, *arguments)
    assert "4 runs (quick), 2 already stored" in out
    second = stored(tmp_path)
    assert {run_id: second[run_id] for run_id in first} == first
    new = [RunStore(tmp_path / "results" / "single").find(r) for r in second.keys() - first.keys()]
    assert [run.config["allocator"]["name"] for run in new] == ["./mine.py:Mine"] * 2


def test_an_allocator_edited_while_its_sweep_runs_is_not_mistaken_for_the_planned_one(tmp_path):
    """The file changes itself when it is first used, as an editor might meanwhile."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from pathlib import Path\nfrom allocators.paged import Paged\n"
        "class Mine(Paged):\n    name = 'mine'\n    def usage(self):\n"
        "        Path('mine.py').write_text(Path('mine.py').read_text() + '# edited\\n')\n"
        "        return super().usage()\n"
    )
    # one core, so that the runs follow each other
    arguments = (*SWEEP[:2], "workload.num_requests=2", "kv.page_size=8,16")
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    script += "from harness.__main__ import main\nif __name__ == '__main__': main()\n"
    (tmp_path / "one_core.py").write_text(script)
    process = subprocess.run(
        [sys.executable, "one_core.py", *arguments, "allocator=./mine.py:Mine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.returncode == 1
    assert "was edited while the sweep ran: repeat the command" in process.stdout


def test_two_sweeps_at_once_share_their_runs_without_harm(tmp_path):
    arguments = (*SWEEP[:2], "workload.num_requests=20", "kv.page_size=1,2,4,8,16,32")
    both = [start(tmp_path, *arguments) for _ in range(2)]
    ended = [(process.communicate(timeout=LIMIT_S), process.returncode) for process in both]
    assert [status for _, status in ended] == [0, 0], ended
    assert len(stored(tmp_path)) == 6
    assert not list((tmp_path / "results" / "single").glob(".*"))
