"""Running `python -m harness` within the test's process, in a folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.__main__ import main

QUICK = ("executor=simulated", "model=tiny", "workload.num_requests=4", "tracking=none")


class Answer(NamedTuple):
    """What a command left on the screen."""

    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command line, by default one of quick simulated runs, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, quick: bool = True) -> Answer:
        given = {argument.split("=", 1)[0] for argument in arguments}
        defaults = [a for a in QUICK if quick and a.split("=", 1)[0] not in given]
        monkeypatch.setattr(sys, "argv", ["harness", *defaults, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Answer(int(ended.value.code or 0), *capsys.readouterr())

    return run


OWN_ALLOCATOR = '''
from allocators.paged import Paged


class Mine(Paged):
    """{note}"""

    name = "mine"
'''


@pytest.fixture
def own_allocator(tmp_path: Path) -> Path:
    """`mine.py` in the current folder, with a class Mine that works."""
    path = tmp_path / "mine.py"
    path.write_text(OWN_ALLOCATOR.format(note="As paged."))
    return path
