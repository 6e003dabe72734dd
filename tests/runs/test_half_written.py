"""What is written beside its place: by several at once, and by those that never finish."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pandas as pd
import pytest

from harness.runs import half_written
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
