"""What was measured of an allocator or a router of one's own lies beside its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from allocators.contract_record import record_pass
from allocators.discovery import load
from harness.runs.code_hash import own_sources

ALLOCATOR = """
from words import WORD
from allocators.paged import Paged


class Mine(Paged):
    name = "mine"

    def append(self, seq_id, num_tokens=1):
        {fault}
        return super().append(seq_id, num_tokens)
"""
ROUTER = """
from harness.cluster.router import Router


class First(Router):
    def route(self, request, now_s):
        return 0
"""
RESULTS = Path("results/single")


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`mine.py` with a `words.py`, and `first.py`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(ALLOCATOR.format(fault="pass  # naïve"))
    (tmp_path / "words.py").write_text("WORD = 1\n")
    (tmp_path / "first.py").write_text(ROUTER)
    return tmp_path


def stored() -> dict[str, dict[str, bytes]]:
    """By run, the code in its folder by path."""
    return {
        status.parent.name: {
            str(path.relative_to(status.parent)): path.read_bytes()
            for path in status.parent.rglob("*.py")
        }
        for status in RESULTS.glob("*/status.json")
    }


def test_both_are_stored_with_what_they_import_and_can_be_run_again(
    command: Any, own_files: Path
) -> None:
    fleet = ("cluster.replicas=2", "cluster.router=./first.py")
    assert command("allocator=./mine.py:Mine", *fleet).status == 0
    ((run_id, files),) = stored().items()
    assert files == {
        "allocator/mine.py": (own_files / "mine.py").read_bytes(),
        "allocator/words.py": b"WORD = 1\n",
        "router/first.py": ROUTER.encode(),
    }
    again = RESULTS / run_id
    answer = command(
        f"allocator={again}/allocator/mine.py:Mine", "cluster.replicas=2",
        f"cluster.router={again}/router/first.py:First",
    )  # fmt: skip
    assert answer.status == 0
    assert all(each == files for each in stored().values())
    assert len(stored()) == 2


@pytest.mark.parametrize("fault", ["raise KeyError(seq_id)", "__import__('os')._exit(3)"])
def test_a_failed_run_has_them_too(command: Any, own_files: Path, fault: str) -> None:
    text = ALLOCATOR.format(fault=fault)
    (own_files / "mine.py").write_text(text)
    assert command("allocator=./mine.py").status == 1
    (files,) = stored().values()
    assert files == {"allocator/mine.py": text.encode(), "allocator/words.py": b"WORD = 1\n"}


def test_an_edit_leaves_the_earlier_run_its_own(command: Any, own_files: Path) -> None:
    for word in (1, 2):
        (own_files / "words.py").write_text(f"WORD = {word}\n")
        assert command("allocator=paged,./mine.py").status == 0
    words = sorted(files.get("allocator/words.py", b"") for files in stored().values())
    assert words == [b"", b"WORD = 1\n", b"WORD = 2\n"]
    assert {} in stored().values()  # of paged, which anybody has


def test_a_file_that_is_linked_from_elsewhere_keeps_the_name_that_is_imported(
    own_files: Path,
) -> None:
    elsewhere = own_files / "elsewhere"
    elsewhere.mkdir()
    (own_files / "words.py").rename(elsewhere / "common.py")
    (own_files / "words.py").symlink_to(elsewhere / "common.py")
    (own_files / "sub").mkdir()
    (own_files / "mine.py").rename(own_files / "sub" / "mine.py")
    (own_files / "sub" / "words.py").symlink_to(elsewhere / "common.py")
    assert set(own_sources({"allocator": "./sub/mine.py"})) == {
        "allocator/mine.py",
        "allocator/words.py",
    }


def test_rows_say_whether_the_code_that_ran_has_passed_the_contract_test(
    command: Any, own_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_files / "cache"))
    note = "Not put through the contract test: mine."
    own = ("allocator=paged,mine.py:Mine",)

    def tested() -> list[bool]:
        answer = command(*own)
        rows = pd.read_csv("results/single/summary.csv").set_index("strategy")
        assert (note in answer.out) == (not rows.loc["mine", "contract_tested"])
        return rows.loc[["paged", "mine"], "contract_tested"].tolist()

    assert tested() == [True, False]
    record_pass(load("mine.py:Mine"))
    assert tested() == [True, True]
    (own_files / "words.py").write_text("WORD = 2\n")  # it imports that
    assert tested() == [True, False]
