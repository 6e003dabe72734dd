"""`python -m harness` as a person types it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from allocators.discovery import available

ROOT = Path(__file__).parents[1]


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _entry(text: str) -> list[str]:
    return text.strip().split(maxsplit=1)


def choices(group: str) -> set[str]:
    return {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


def test_help_lists_strategies_workloads_and_experiments(tmp_path):
    answer = harness(tmp_path, "--help")
    assert answer.returncode == 0
    section = answer.stdout.split("\nchoices (GROUP=NAME):\n")[1].split("\n\n")[0]
    entries = re.split(r"\n  (?=\w)", "\n" + section)[1:]
    shown = {group: set(re.split(r",\s+", names)) for group, names in map(_entry, entries)}
    assert shown["allocator"] == set(available())
    for group in ("workload", "model", "engine", "tracking", "device", "executor"):
        assert shown[group] == choices(group), group
    for name in choices("experiment"):
        assert f"\n  {name} " in answer.stdout
    assert "page_size: 16" in answer.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", [1, -1])
def test_cfg_job_shows_the_config_with_an_own_allocator(tmp_path, order):
    (tmp_path / "mine.py").write_text(
        "from allocators.paged import Paged\nclass Mine(Paged):\n    name = 'mine'\n"
    )
    parts = [["allocator=./mine.py:Mine", "kv.page_size=4"], ["--cfg", "job"]][::order]
    answer = harness(tmp_path, *parts[0], *parts[1])
    assert answer.returncode == 0, answer.stderr
    assert "name: ./mine.py:Mine" in answer.stdout
    assert "page_size: 4" in answer.stdout
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["mine.py"]


def test_a_mistake_beside_a_flag_is_told_in_one_line(tmp_path):
    answer = harness(tmp_path, "--cfg", "job", "kv.pagesize=3")
    assert answer.returncode == 2
    assert answer.stderr.strip() == (
        "error: unknown key 'kv.pagesize': did you mean kv.page_size or kv.dtype?"
    )


def test_hydras_multirun_flag_is_a_sweep(tmp_path):
    arguments = ("-m", "executor=simulated", "model=tiny", "kv.page_size=1,2", "dry_run=true")
    answer = harness(tmp_path, *arguments)
    assert answer.returncode == 0, answer.stderr
    assert "2 runs" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_says_how_many_and_how_long_and_runs_nothing(tmp_path):
    answer = harness(
        tmp_path, "experiment=compare_allocators", "executor=simulated", "dry_run=true"
    )
    assert answer.returncode == 0, answer.stderr
    first, second, *runs = answer.stdout.splitlines()
    assert first.startswith("compare_allocators: ")
    count = int(second.split()[0])
    assert len(runs) == count > 5
    assert "to go" in second
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_one_run_has_one_summary(tmp_path):
    answer = harness(tmp_path, "model=tiny")
    assert answer.returncode == 0, answer.stderr
    assert "device: c" in answer.stdout
    assert "1 run (" in answer.stdout
    assert "paged" in answer.stdout
    assert (tmp_path / "results" / "single" / "summary.csv").is_file()
