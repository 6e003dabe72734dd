"""A process at its limit takes along what it started, in whatever session that is."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import engine
from experiments.gpu import marked_tests
from experiments.gpu.child import Task
from experiments.gpu.processes import run_to_limit
from experiments.gpu.rows import Budget, RowLog, read_rows

PARENT = """
import subprocess, sys
held = int(sys.argv[1])
wait = [sys.executable, "-c", "import threading; threading.Event().wait()"]
for own_session in (False, True):
    child = subprocess.Popen(wait, start_new_session=own_session, pass_fds=(held,))
    print(child.pid, file=open(sys.argv[2], "a"), flush=True)
child.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc")
def test_children_and_theirs_do_not_outlive_the_limit(tmp_path: Path) -> None:
    """Each holds the end of a pipe, which is at its end when none of them is left."""
    reader, writer = os.pipe()
    pids = tmp_path / "pids"
    command = [sys.executable, "-c", PARENT, str(writer), str(pids)]
    assert run_to_limit(command, 5.0, pass_fds=(writer,)) is None
    os.close(writer)
    started = list(map(int, pids.read_text().split()))
    are_gone = bool(select.select([reader], [], [], 10)[0])
    os.close(reader)
    if not are_gone:
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert len(started) == 2 and are_gone


def test_what_ends_in_time_says_how() -> None:
    command = [sys.executable, "-c", "print(5); raise SystemExit(3)"]
    done = run_to_limit(command, 60.0, stdout=subprocess.PIPE)
    assert done is not None and (done.returncode, done.stdout) == (3, "5\n")


def test_a_peer_beyond_the_limit_is_cut_and_says_of_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run_to_limit", lambda *_, **__: None)
    given = Task(tmp_path, "key", Budget(100.0), True, Namespace())
    engine.beside(given, given.log(), engine.DRY, "vllm", 2, 12)
    (row,) = read_rows(tmp_path)
    assert (row["status"], row["contender"], row["batch"]) == ("cut", "vllm", 2)
    assert row["bench"] == "decode_steps"


class Pytest:
    """Stands in for pytest: what becomes of each file, by its name."""

    def __init__(self, report: Path, ends: dict[str, str]) -> None:
        self.report, self.ends, self.files = report, ends, list[str]()

    def __call__(
        self, command: list[str], limit_s: float, **_: object
    ) -> subprocess.CompletedProcess[str] | None:
        name = Path(command[3]).name
        self.files.append(name)
        ends = self.ends[name]
        if ends == "cut":
            return None
        if ends == "killed":
            return subprocess.CompletedProcess(command, -11)
        inner = {"failed": '<failure message="no"/>', "absent": "<skipped/>", "ok": ""}[ends]
        case = f'<testcase classname="{name}" name="t">{inner}</testcase>'
        self.report.write_text(f"<testsuite>{case}</testsuite>")
        return subprocess.CompletedProcess(command, int(ends == "failed"))


def test_a_file_that_is_cut_or_dies_keeps_no_other_from_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {"a": "ok", "b": "cut", "c": "failed", "d": "killed", "e": "absent", "f": "ok"}
    fake = Pytest(tmp_path / "tests.xml", ends)
    monkeypatch.setattr(marked_tests, "run_to_limit", fake)
    monkeypatch.setattr(marked_tests, "ROOT", tmp_path)
    monkeypatch.setattr(marked_tests, "marked_files", lambda: [tmp_path / name for name in ends])
    monkeypatch.setattr("sys.argv", ["tests", "--folder", str(tmp_path), "--key", "key"])
    assert marked_tests.main() == 1
    found = {row["case"]: row["status"] for row in read_rows(tmp_path)}
    expected = {
        **ends,
        "d": "failed",
        "a::t": "ok",
        "c::t": "failed",
        "e::t": "absent",
        "f::t": "ok",
    }
    assert found == expected
    ends.update(b="ok", c="ok", d="ok")
    fake.files.clear()
    assert marked_tests.main() == 0
    assert fake.files == ["b", "c", "d"]
    assert set(RowLog(tmp_path, "key", dry=False).cases("ok")) >= {"a", "b", "c", "d", "f", "b::t"}
    (tmp_path / "rows.jsonl").unlink()
    monkeypatch.setattr("sys.argv", [*marked_tests.sys.argv, "--budget", "0"])
    marked_tests.main()
    assert {row["status"] for row in read_rows(tmp_path)} == {"cut"} and len(fake.files) == 3
