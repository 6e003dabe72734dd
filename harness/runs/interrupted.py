"""Ctrl-C: the first one ends a command in good order, a second one at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

EXIT_STATUS = 130


class Interrupted(KeyboardInterrupt):
    """A command that was ended by Ctrl-C; the text says what is stored and how to go on."""


def go_on(module: str, arguments: Sequence[str]) -> str:
    """The command line that is at work here, as a shell takes it. module: what `python -m` runs."""
    script = Path(sys.argv[0]).name if sys.argv else ""
    program = script if script == "kvarena" else f"python -m {module}"
    return f"{program} {shlex.join(arguments)}".rstrip()


def what_is_left(
    num_stored: int, num_left: int, command: str, *, unit: str = "runs", at_least: bool = False
) -> str:
    """The end of an interrupted command, in words. num_left: with those that failed. at_least:
    more may follow from them."""
    left = f"at least {num_left}" if at_least else f"{num_left}"
    return f"interrupted: {num_stored} {unit} stored, {left} left; to go on:\n  {command}"


@contextmanager
def resumable(message: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C within it is raised as Interrupted with `message()`, once what was at work has been
    ended; where another Ctrl-C comes before that, this process and all below it end at once.
    """
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or handler is not signal.default_int_handler:
        yield  # ignored, or somebody else's
        return
    signal.signal(signal.SIGINT, _first)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(message()) from None
    finally:
        signal.signal(signal.SIGINT, handler)


def _first(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _second)
    raise KeyboardInterrupt


def _second(number: int, frame: FrameType | None) -> None:
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(EXIT_STATUS)
