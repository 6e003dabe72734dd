"""What is written beside its place: by several at once, and by those that never finish."""

from __future__ import annotations

import ast
import json
import os
import platform
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.plotting import save
from harness.runs import half_written
from harness.runs.half_written import write_whole
from harness.runs.rows import write_rows
from harness.runs.store import RunStore


def test_only_abandoned_leftovers_are_removed(tmp_path):
    gone = tmp_path / f".abc.{platform.node()}.{2**22 + 1}.partial"
    living = tmp_path / f".abc.{platform.node()}.{os.getppid()}.partial"
    elsewhere = tmp_path / ".abc.another-machine.17.partial"
    old = tmp_path / ".abc.another-machine.18.partial"
    for folder in (gone, living, elsewhere, old):
        folder.mkdir()
        (folder / "status.json").write_text(json.dumps({"status": "complete"}))
    for path in (old / "status.json", old):
        os.utime(path, (0, 0))
    store = RunStore(tmp_path)
    assert store.find("abc") is None
    store.remove_partial()
    assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere])


def test_a_table_that_was_never_finished_is_removed_and_ends_no_command(tmp_path: Path) -> None:
    host = platform.node()
    gone = tmp_path / f".summary.csv.{host}.{2**22 + 1}.partial"
    living = tmp_path / f".summary.csv.{host}.{os.getppid()}.partial"
    elsewhere = tmp_path / ".summary.csv.another-machine.17.partial"
    nobodys = tmp_path / ".summary.csv.partial"
    for path in (gone, living, elsewhere, nobodys):
        path.write_text("run_id\n")
    os.utime(nobodys, (0, 0))
    RunStore(tmp_path).remove_partial()
    assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere])


def test_two_commands_may_write_the_table_of_a_folder_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait for the same last run, and are done at the same moment."""
    rows = pd.DataFrame({"run_id": ["a", "b"]})
    original, others = pd.DataFrame.to_csv, iter([4_000_001])

    def slowly(frame: pd.DataFrame, path: Path, **options: bool) -> None:
        original(frame, path, **options)
        if (other := next(others, None)) is not None:
            with monkeypatch.context() as patch:
                patch.setattr(half_written.os, "getpid", lambda: other)
                write_rows(rows, tmp_path)

    monkeypatch.setattr(pd.DataFrame, "to_csv", slowly)
    write_rows(rows, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["summary.csv", "summary.parquet"]
    assert list(pd.read_csv(tmp_path / "summary.csv")["run_id"]) == ["a", "b"]


KILLER = """
import os
from allocators.paged import Paged


class Killer(Paged):
    name = "killer"
    num_left = 20

    def append(self, seq_id, num_tokens=1):
        Killer.num_left -= 1
        if Killer.num_left < 0:
            os._exit(7)
        return super().append(seq_id, num_tokens)
"""


def test_nothing_is_left_of_a_run_that_killed_its_process(command, tmp_path: Path) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    answer = command("allocator=./killer.py:Killer", "results_dir=results")
    assert answer.status == 1
    assert "exit code 7" in answer.out
    assert not list(Path("results/single").glob(".*"))


WRITERS = ("write_text", "write_bytes", "to_csv", "to_parquet", "savefig", "open")
ROOT = Path(__file__).parents[2]
IN_PLACE = {
    "experiments/exporting.py": "a folder that is moved to its place whole",
    "harness/runs/store.py": "a folder that is moved to its place whole",
    "harness/engine/cost/calibrated.py": "does as write_whole, below harness.runs",
    "harness/engine/process_end.py": "a process's last words",
    "harness/launching/job.py": "handed to jobs of this command",
    "harness/tracking/jsonl_tracker.py": "a log: lines are added, and a torn one is dropped",
    "harness/tracking/wandb_records.py": "a log",
    "harness/tracking/wandb_process.py": "handed to the parent process",
    "harness/tracking/wandb_upload.py": "handed to a child process; a log",
    "harness/workloads/make_sharegpt_table.py": "run once by who maintains the table",
    "experiments/gpu/rows.py": "a log, read up to its last whole line",
    "experiments/gpu/running.py": "does as write_whole; a log",
    "experiments/gpu/sanitizer.py": "a log",
}


def torn_by_a_kill(source: str) -> list[str]:
    """Calls that write a file in its place, in functions that use no `replacing`."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        if any(getattr(call.func, "id", "") == "replacing" for call in calls):
            continue
        names = [call.func.attr if isinstance(call.func, ast.Attribute) else "" for call in calls]
        for call, name in zip(calls, names, strict=True):
            texts = [a.value for a in call.args if isinstance(a, ast.Constant)]
            if name == "to_csv" and not call.args:  # as text
                continue
            if name == "open" and not any(str(t)[:1] in ("w", "a", "x") for t in texts):
                continue
            if name in WRITERS:
                found.append(f"{function.name}: {ast.unparse(call)}")
    return found


def test_every_result_is_put_in_its_place_whole() -> None:
    planted = "def f(path):\n    path.write_text('')\n    frame.to_csv(path)\n    path.open('w')"
    assert len(torn_by_a_kill(planted)) == 3
    found = {
        path.relative_to(ROOT).as_posix(): calls
        for package in ("harness", "experiments")
        for path in (ROOT / package).rglob("*.py")
        if (calls := torn_by_a_kill(path.read_text()))
    }
    assert found.keys() == IN_PLACE.keys(), found


@pytest.mark.parametrize("when", ["while it is written", "when it is put in its place"])
def test_what_dies_while_it_writes_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "table.md"
    write_whole(path, "before")

    def dies(self: Path, *_: object) -> None:
        if self.exists():
            assert self.read_bytes() == b"after"
        else:
            with self.open("wb") as file:
                file.write(b"aft")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes" if "while" in when else "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, "after")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("table.md", "before")]


def test_a_link_and_a_pipe_stay_what_they_are(tmp_path: Path) -> None:
    link, target = tmp_path / "link.md", tmp_path / "target.md"
    link.symlink_to(target)
    write_whole(link, "text")
    assert link.is_symlink() and target.read_text() == "text"
    reading, writing = os.pipe()
    write_whole(Path(f"/dev/fd/{writing}"), "text")
    assert os.read(reading, 9) == b"text"
    os.close(reading)
    os.close(writing)


def test_a_figure_s_files_are_replaced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = pd.DataFrame({"x": [1.0]})
    earlier = {path: path.read_bytes() for path in save(plt.figure(), "f", tmp_path, points, [])}
    original = Figure.savefig

    def dies(self: Figure, target: Path, **options: object) -> None:
        original(self, target, **options)
        if options["format"] == "svg":
            raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", dies)
    figure = plt.figure()
    figure.text(0, 0, "another")
    with pytest.raises(KeyboardInterrupt):
        save(figure, "f", tmp_path, points + 1, [])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == earlier
