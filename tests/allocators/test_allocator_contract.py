"""The contract test finds what is broken and passes what is right."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from allocators.contract import main, verify
from allocators.discovery import available, load

BROKEN_FILE = Path(__file__).with_name("broken.py")
BROKEN = [
    node.name for node in ast.parse(BROKEN_FILE.read_text()).body if isinstance(node, ast.ClassDef)
]


@pytest.mark.parametrize("class_name", BROKEN)
def test_broken_allocator_is_found(class_name: str) -> None:
    verdict = verify(load(f"{BROKEN_FILE}:{class_name}"))
    assert verdict.failure is not None
    assert len(verdict.failure.operations) <= 15, "the story is not cut down"


@pytest.mark.parametrize("name", available())
def test_allocator_keeps_the_contract(name: str) -> None:
    verdict = verify(available()[name], num_seeds=4, limit_s=60)
    assert verdict.failure is None, verdict
    assert verdict.num_operations > 1000


def test_defaults_of_the_base_keep_the_contract(allocator_files: Path) -> None:
    verdict = verify(load(f"{allocator_files / 'minimal.py'}:Minimal"), num_seeds=10, limit_s=60)
    assert verdict.failure is None, verdict


def test_verdict_on_a_users_file_outside_the_repository(
    tmp_path: Path, allocator_files: Path
) -> None:
    shutil.copy(allocator_files / "minimal.py", tmp_path / "mine.py")
    script = f"import sys; sys.path.insert(0, {str(allocator_files.parents[1])!r})\n"
    script += "from allocators.contract import main\nsys.exit(main())"
    command = [sys.executable, "-c", script, "./mine.py:Minimal", "--seeds", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    assert done.stdout.startswith("./mine.py:Minimal: keeps the contract")


def test_verdict_tells_a_story(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{BROKEN_FILE}:ForgetsToCopyOnWrite"]) == 1
    told = capsys.readouterr().out
    assert "BREAKS the contract" in told
    assert "allocate(" in told and ("fork(" in told or "rebranch(" in told)
    assert "\n  => " in told


def test_unknown_allocator_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pagedd"]) == 2
    assert "did you mean paged" in capsys.readouterr().err
