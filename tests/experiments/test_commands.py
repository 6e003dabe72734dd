"""python -m experiments: commands are found, listed and told when mistyped."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from experiments import commands
from experiments.__main__ import main
from harness.compose import compose_study, hydra_session, parse_command


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


class TakenError(Exception):
    """Arguments that a command has understood, and does not act on."""


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is parsed, by argparse or by `advise`, is not acted on."""

    def stop_after(function: Any) -> Any:
        def wrapped(*given: Any, **named: Any) -> Any:
            function(*given, **named)
            raise TakenError

        return wrapped

    for name in ("parse_args", "parse_known_args"):
        stopped = stop_after(getattr(argparse.ArgumentParser, name))
        monkeypatch.setattr(argparse.ArgumentParser, name, stopped)
    advise = commands.load("advise")
    monkeypatch.setattr(advise, "parse_question", stop_after(advise.parse_question))


def examples_of(page: str) -> list[str]:
    """The command lines that a help page gives."""
    assert page.count("\nexamples:\n") == 1, page
    section = page.split("\nexamples:\n")[1].split("\n\n")[0].replace("\\\n", " ")
    return [line.strip() for line in section.splitlines()]


def help_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        assert main([*arguments, "--help"]) == 0
    except SystemExit as end:
        assert end.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["", *commands.available()])
def test_the_examples_of_a_command_s_help_are_understood(
    name: str,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = examples_of(help_of([name] if name else [], capsys))
    assert 2 <= len(examples) <= 10
    assert any(f"experiments {name}" in example for example in examples)
    request.getfixturevalue("taken")
    for example in examples:
        program, *arguments = _words(example)
        for trace in re.findall(r"trace=(\S+)", example):  # of which only `advise` wants to know
            Path(trace).touch()
        if program == "harness":
            with hydra_session():
                compose_study(parse_command(arguments))
        else:
            with pytest.raises(TakenError):
                main(arguments)


def _words(example: str) -> list[str]:
    """`harness` or `experiments`, and what follows it."""
    words = shlex.split(re.split(r" [|>] ", example)[0], comments=True)
    assert words[:2] == ["python", "-m"], example
    return words[2:]
