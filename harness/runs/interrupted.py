"""Ctrl-C, or a batch system's SIGTERM: the first ends a command in good order, a second at once."""

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
    """A command that was ended by a signal; the text says what is stored and how to go on.
    status: to exit with, as a shell counts it."""

    def __init__(self, message: str, status: int = EXIT_STATUS) -> None:
        super().__init__(message)
        self.status = status


class _Terminated(KeyboardInterrupt):
    """By SIGTERM."""


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
    """Ctrl-C or SIGTERM within it is raised as Interrupted with `message()`, once what was at work
    has been ended; where another comes before that, this process and all below it end at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = {each: how for each, how in _UNTOUCHED.items() if signal.getsignal(each) is how}
    for each in taken:
        signal.signal(each, _first)
    try:
        yield
    except _Terminated:
        raise Interrupted(message(), 128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        raise Interrupted(message()) from None
    finally:
        for each, how in taken.items():
            signal.signal(each, how)


_UNTOUCHED = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""A signal that is handled otherwise is ignored on purpose, as Ctrl-C is by what a script has put
in the background, or somebody else's."""


def _first(number: int, frame: FrameType | None) -> None:
    for each in _UNTOUCHED:
        if signal.getsignal(each) is _first:
            signal.signal(each, _second)
    raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _second(number: int, frame: FrameType | None) -> None:
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(128 + number)
