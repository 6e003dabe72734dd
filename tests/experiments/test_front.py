"""`kvarena` takes runs and commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experiments.front import main


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["modes", "--help"], "usage: python -m experiments modes"),
        (["executor=simulated", "kv.page_size=8,16", "dry_run=true"], "2 runs"),
        (["--help"], "usage: python -m harness"),
        (["mode"], "did you mean modes"),
    ],
)
def test_a_first_word_without_equals_is_a_command(
    arguments: list[str],
    printed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kvarena", *arguments])
    with pytest.raises(SystemExit):
        main()
    captured = capsys.readouterr()
    assert printed in captured.out + captured.err
    assert list(tmp_path.iterdir()) == []
