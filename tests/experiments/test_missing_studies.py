"""Commands about finished runs where there are none: what is missing, and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.__main__ import main

WAY_OUT = "run one (python -m harness experiment=NAME), or --results-dir"

Captured = pytest.CaptureFixture[str]


def told(capsys: Captured, *arguments: str) -> str:
    """What the command is refused with."""
    assert main(arguments) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    (line,) = answer.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("command", ["report", "figures", "table"])
@pytest.mark.parametrize("kind", ["is no folder", "has no study"])
def test_without_a_name_the_folder_is_told(
    command: str, kind: str, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "nowhere" if kind == "is no folder" else tmp_path
    line = told(capsys, command, "--results-dir", str(folder))
    assert line == f"error: {folder}/ {kind}: {WAY_OUT}"


@pytest.mark.parametrize(
    "command",
    [["report", "single"], ["table", "single"], ["export", "single"], ["compare", "single", "b"]],
    ids=lambda command: command[0],
)
def test_a_name_is_told_with_the_folder_that_lacks_it(
    command: list[str], tmp_path: Path, capsys: Captured
) -> None:
    line = told(capsys, *command, "--results-dir", str(tmp_path / "nowhere"))
    assert "unknown study 'single'" in line
    assert line.endswith(f"{tmp_path}/nowhere/ is no folder: {WAY_OUT}")


def test_a_folder_without_a_study_is_called_one(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert "empty/ is a folder without a study" in told(capsys, "report", "empty")
    Path("results/known/studies").mkdir(parents=True)
    line = told(capsys, "report", "knwon")
    assert line == "error: unknown study in results/ 'knwon': did you mean known?"
    line = told(capsys, "report", "empty")
    assert "empty/ is a folder without a study: " in line and "choose one of known" in line


def test_a_distant_name_of_a_command_gets_them_all(capsys: Captured) -> None:
    assert "did you mean report?" in told(capsys, "reprot")
    line = told(capsys, "nope")
    assert "choose one of advise, " in line and "did you mean" not in line
