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
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or handler is not signal.default_int_handler:
        yield  # ignored, or somebody else's
        return
    terminate = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, _first)
    if terminate is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _first)
    try:
        yield
    except _Terminated:
        raise Interrupted(message(), 128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        raise Interrupted(message()) from None
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.signal(signal.SIGTERM, terminate)


def _first(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _second)
    signal.signal(signal.SIGTERM, _second)
    raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _second(number: int, frame: FrameType | None) -> None:
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(128 + number)
