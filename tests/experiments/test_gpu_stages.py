"""Stages of `python -m experiments gpu`: resumed, cut short, ended at their limit, and told apart
by code, device and way of running."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.commands import gpu
from experiments.gpu import running
from experiments.gpu.device import Found
from experiments.gpu.rows import Budget, DryRowsError, RowLog, read_rows, refuse_dry
from experiments.gpu.running import key_of, read_status, run_stage
from experiments.gpu.stages import STAGES, Stage
from harness.config import ConfigError

FOUND = Found("a device", False, ("torch 1",))
SCRIPT = """
import sys
from experiments.gpu.child import conclude, guarded, parser, task
given = task(parser("A stage.\\n\\nmore"))
log = given.log()
assert given.dry
for case in ("one", "two"):
    if log.is_done(case):
        print("had", case)
        continue
    log.add(case, value=1)
    {more}
sys.exit(conclude(log))
"""


def stage(tmp_path: Path, more: str = "", limit_s: float = 20.0) -> Stage:
    """A stage of a few lines."""
    script = tmp_path / "stage.py"
    script.write_text(SCRIPT.replace("{more}", more))
    return Stage("mine", "a stage", (str(script),), limit_s, limit_s, ())


def run(the_stage: Stage, folder: Path, **options: bool) -> tuple[running.StageStatus, list[str]]:
    said: list[str] = []
    return run_stage(the_stage, folder, FOUND, dry=True, say=said.append, **options), said


def test_a_complete_stage_is_not_run_again_unless_told_to(tmp_path: Path) -> None:
    status, _ = run(stage(tmp_path), tmp_path / "out")
    assert (status.status, status.num_ok, status.reused) == ("complete", 2, False)
    again, said = run(stage(tmp_path), tmp_path / "out")
    assert again == replace(status, reused=True)
    assert "complete already" in said[0]
    _, said = run(stage(tmp_path), tmp_path / "out", again=True)
    assert not any("had" in line for line in said)


def test_again_forgets_what_parts_of_a_stage_left(tmp_path: Path) -> None:
    """A log in a folder below, as of shards, and a stored run."""
    nested = (
        'from experiments.gpu.rows import RowLog; part = RowLog(given.folder / "part", given.key, '
        'dry=True); print("part had" if part.is_done(case) else "part new"); part.add(case)'
    )
    out = tmp_path / "out"
    _, said = run(stage(tmp_path, nested), out)
    assert said.count("  part new") == 2
    (out / "rows.jsonl").unlink()
    (out / "status.json").unlink()
    (out / "runs").mkdir()
    _, said = run(stage(tmp_path, nested), out)
    assert said.count("  part had") == 2
    _, said = run(stage(tmp_path, nested), out, again=True)
    assert said.count("  part new") == 2 and not (out / "runs").exists()


def test_a_stage_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    """The first process dies after one case; the second one does the other only."""
    status, _ = run(stage(tmp_path, "import os; os._exit(9)"), tmp_path / "out")
    assert (status.status, status.num_ok) == ("failed", 1)
    status, said = run(stage(tmp_path), tmp_path / "out")
    assert (status.status, status.num_ok) == ("complete", 2)
    assert "  had one" in said


def test_a_stage_is_ended_at_its_limit_with_its_rows_kept(tmp_path: Path) -> None:
    endless = stage(tmp_path, "import threading; threading.Event().wait()", limit_s=4.0)
    status, _ = run(endless, tmp_path / "out")
    assert status.status == "timed out"
    assert [row["case"] for row in read_rows(tmp_path / "out")] == ["one"]
    stored = read_status(tmp_path / "out")
    assert stored is not None and not stored.is_complete


def test_what_a_case_dies_of_is_its_row_and_the_stage_failed(tmp_path: Path) -> None:
    status, _ = run(stage(tmp_path, "guarded(log, case, lambda: 1 / 0)"), tmp_path / "out")
    assert (status.status, status.num_failed) == ("failed", 2)
    assert "ZeroDivisionError" in status.error
    status, said = run(stage(tmp_path), tmp_path / "out")
    assert status.status == "complete"  # what failed is tried again
    assert not any("had" in line for line in said)


def test_rows_of_other_code_device_or_way_are_not_taken_over(tmp_path: Path) -> None:
    first = STAGES[0]
    keys = {
        key_of(first, FOUND, dry=True),
        key_of(first, FOUND, dry=False),
        key_of(first, FOUND._replace(name="another"), dry=True),
        key_of(first, FOUND._replace(versions=("torch 2",)), dry=True),
        key_of(replace(first, code=("kernels",)), FOUND, dry=True),
        key_of(replace(first, command=(*first.command, "--option")), FOUND, dry=True),
    }
    assert len(keys) == 6
    RowLog(tmp_path, "old", dry=True).add("one", value=1)
    assert not RowLog(tmp_path, "new", dry=True).is_done("one")
    assert read_rows(tmp_path) == []


def test_cut_cases_are_tried_again_and_torn_lines_left_out(tmp_path: Path) -> None:
    log = RowLog(tmp_path, "key", dry=False)
    log.add("measured")
    log.add("cut", "cut")
    log.add("not here", "absent")
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"case": "torn", "sta')
    assert [row["case"] for row in read_rows(tmp_path)] == ["measured", "cut", "not here"]
    again = RowLog(tmp_path, "key", dry=False)
    assert [again.is_done(case) for case in ("measured", "cut", "not here")] == [True, False, True]


def test_dry_rows_are_refused() -> None:
    refuse_dry([{"dry": False}])
    for rows in ([{"dry": False}, {"dry": True}], [{}]):
        with pytest.raises(DryRowsError, match="dry run"):
            refuse_dry(rows)


def test_every_stage_names_code_that_is_there_and_fits_the_time() -> None:
    for each in STAGES:
        assert each.files()
        assert each.command[0] == "-m"
    limits = {each.name: each.limit_s for each in STAGES}
    on_request = {each.name for each in STAGES if each.on_request}
    assert on_request == {"tuning", "sanitizer"}
    assert sum(limits[name] for name in limits.keys() - on_request) <= 24 * 60


def test_a_budget_runs_out() -> None:
    assert Budget(100.0).left_s > 90
    assert Budget(0.0).left_s <= 0


def test_the_status_on_disk_is_what_was_returned(tmp_path: Path) -> None:
    status, _ = run(stage(tmp_path), tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "status.json").read_text())
    assert stored["stage"] == "mine" and stored["dry"] is True
    assert read_status(tmp_path / "out") == status


def test_all_is_no_stage_to_choose_but_may_be_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is chosen is run, or refused: nothing chosen is no success."""
    asked: list[tuple[str, bool]] = []

    def note(stage: Stage, *_: object, again: bool, **__: object) -> running.StageStatus:
        asked.append((stage.name, again))
        return running.StageStatus(stage.name, "key", "complete", 0.0)

    monkeypatch.setattr(gpu, "run_stage", note)
    monkeypatch.setattr(gpu.device, "find", lambda: FOUND)
    where = ["--dry", "--results-dir", str(tmp_path)]
    with pytest.raises(ConfigError, match="all"):
        gpu.main([*where, "--only", "all"])
    assert asked == []
    assert gpu.main([*where, "--only", "kernels", "--again", "all"]) == 0
    assert asked == [("kernels", True)]
    with pytest.raises(ConfigError, match="kernel"):
        gpu.main([*where, "--again", "kernells"])
