"""Completion in a real shell, and what it is answered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import commands
from experiments.commands.completion import SCRIPTS, main
from experiments.completion import candidates, choices
from harness.compose import compose_study, hydra_session, parse_command
from harness.config import RunConfig
from harness.conversion import to_mapping

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The script for bash, as a person keeps it."""
    assert main(["bash"]) == 0
    path = tmp_path / "kvarena.bash"
    path.write_text(capsys.readouterr().out)
    return path


def completed(script: Path, line: str) -> list[str]:
    """What bash puts in the place of the last word of `line`, as it does after a tab: words are
    broken at COMP_WORDBREAKS, and replaced from the last break on."""
    ask = f"""
        source {script}
        COMP_LINE=$1; COMP_POINT=${{#1}}
        $(complete -p "${{1%% *}}" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", ask, "bash", line],
        cwd=script.parent,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [answer for answer in done.stdout.splitlines() if answer]


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("python -m harness experiment=sweep_p", ["sweep_page_size "]),
        ("kvarena experiment=sweep_p", ["sweep_page_size "]),
        ("python -m experiments calib", ["calibrate "]),
        ("kvarena calib", ["calibrate "]),
        ("kvarena calibrate --val", ["--validate "]),
        ("python3 -m harness dry_run=true kv.pag", ["kv.page_size="]),
        ("python other.py experiment=sweep_p", []),
    ],
)
def test_bash_completes_the_line(script: Path, line: str, answers: list[str]) -> None:
    assert completed(script, line) == answers


def test_bash_completes_experiments_and_commands(script: Path) -> None:
    assert "sweep_page_size " in completed(script, "python -m harness experiment=swe")
    shown = completed(script, "python -m experiments ")
    assert shown == [f"{name} " for name in commands.available()]


def test_stored_studies_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sweep_page_size/studies", "other/figures"):
        (tmp_path / "results" / name).mkdir(parents=True)
    assert candidates(["kvarena", "replay", ""]) == ["sweep_page_size"]


def test_values_go_on_after_a_comma() -> None:
    words = candidates(["kvarena", "kv.page_size=8", "allocator=paged,paged_"])
    assert words == ["allocator=paged,paged_cow", "allocator=paged,paged_prefix"]
    assert candidates(["kvarena", "kv.dtype=float32,float"]) == ["kv.dtype=float32,float16"]


def test_keys_are_offered_up_to_their_next_dot() -> None:
    assert candidates(["kvarena", "kv."]) == [f"kv.{key}=" for key in to_mapping(RunConfig())["kv"]]
    assert "engine.speculation." in candidates(["kvarena", "engine.s"])


def test_every_key_that_is_offered_is_known() -> None:
    with hydra_session():
        for key, values in choices().items():
            if key.startswith("allocator.") or "." not in key or not values:
                continue
            try:
                compose_study(parse_command([f"{key}={values[0]}"]))
            except ValueError as error:
                assert "unknown key" not in str(error), error


def test_every_key_of_a_run_is_offered() -> None:
    def leaves(values: dict[str, object], prefix: str = "") -> set[str]:
        found = set()
        for key, value in values.items():
            found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
        return found

    missing = leaves(to_mapping(RunConfig())) - choices().keys()
    group_s_own = {key for key in missing if key.endswith((".name", ".kind"))}
    assert missing == group_s_own


@pytest.mark.parametrize("shell", [shell for shell in SCRIPTS if shutil.which(shell)])
def test_a_script_is_read_by_its_shell(shell: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(SCRIPTS[shell].replace("PYTHON", sys.executable))
    subprocess.run([shell, "-n", str(path)], check=True, timeout=20)


def test_nothing_heavy_is_imported_for_it() -> None:
    ask = "import sys, experiments.completion as c; c.choices(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", ask], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "pandas", "hydra", "matplotlib"} & set(done.stdout.split())
