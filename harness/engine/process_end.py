"""How a process ended, in words, and the last words of one that knows why it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path

EXIT_RANK_LOST = 75
"""Of a rank that waited in vain for one that is gone."""


def leave_last_words(words: str) -> None:
    """Say why this process is about to end; whoever started it reads it."""
    with contextlib.suppress(OSError):
        _file_of(os.getpid()).write_text(words)


def last_words(pid: int) -> str | None:
    """What a process said that is gone, if it said anything. It is told once."""
    file = _file_of(pid)
    try:
        words = file.read_text()
        file.unlink()
    except OSError:
        return None
    return words


def how_it_ended(exit_code: int | None) -> str:
    """What follows the name of a process that is gone; None where nobody knows."""
    if exit_code is None:
        return "is gone"
    if exit_code < 0:
        return f"was killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"ended with exit code {exit_code}"


def _file_of(pid: int) -> Path:
    return Path(tempfile.gettempdir()) / f"kvarena-{os.getuid()}-last-words-{pid}"
