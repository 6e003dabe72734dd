"""What `python -m harness --help` promises holds."""

from __future__ import annotations

import io
import shlex
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from harness.command_help import COMMON_KEYS, EXAMPLES, help_text
from harness.compose import compose_study, hydra_session, parse_command
from harness.runs.study import run_study

MINE = Path(__file__).parents[1] / "docs" / "examples" / "mine.py"


@pytest.fixture(scope="module")
def page() -> str:
    with hydra_session():
        return help_text(["kv.page_size=48"])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.words)
def test_an_example_is_a_command_that_works(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(MINE, "mine.py")
    screen = io.StringIO()
    command = parse_command([*shlex.split(example.arguments), "dry_run=true"])
    with hydra_session():
        assert run_study(command, Console(file=screen, width=100)) == 0
    assert "to go" in screen.getvalue()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize("entry", COMMON_KEYS)
def test_a_common_key_exists_and_its_values_are_taken(entry):
    key, _, values = entry.partition("=")
    for value in values.split("|"):
        if value not in ("N", "X", "DIR", "KIND", "NAME", "FILE.py:CLASS"):
            with hydra_session():
                compose_study(parse_command([f"{key}={value}"]))
    with hydra_session():
        text = help_text([])
    found = text.split("all keys and their values:")[1]
    indent = ""
    for name in key.split("."):
        assert f"\n  {indent}{name}:" in found or name in ("experiment", "hydra/launcher"), key
        indent += "  "


def test_the_page_has_examples_and_the_values_that_were_given(page):
    assert page.index("examples:") < page.index("common keys:") < page.index("all keys")
    assert "page_size: 48" in page
    assert "How much memory do beams share" in page
    assert "???" not in page
