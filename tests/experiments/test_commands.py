"""python -m experiments: commands are found, listed and told when mistyped."""

from __future__ import annotations

import pytest

from experiments import commands
from experiments.__main__ import main


def test_every_command_stands_in_the_list_with_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line]
    listed = {line[0]: line[1] for line in lines if len(line) == 2}
    for name in commands.available():
        assert len(listed[name].split()) > 3
        assert callable(commands.load(name).main)


def test_a_mistyped_command_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mode"]) == 2
    assert "modes" in capsys.readouterr().err
