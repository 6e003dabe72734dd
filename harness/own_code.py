"""Code of a user's own: a file named on the command line as `./FILE.py:NAME`."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from allocators.discovery import import_file, nearest


def is_file(spec: str) -> bool:
    """Whether `spec` is FILE.py:NAME, or FILE.py, and no name of what comes with kvarena."""
    return spec.endswith(".py") or ".py:" in spec


def file_of(spec: str) -> Path:
    """The file of a spec that is one."""
    return Path(spec[: spec.rindex(".py") + 3]).expanduser()


def load_function(spec: str, key: str, default: str) -> Any:
    """The function that FILE.py:NAME names; NAME may be left out where it is `default`. ValueError,
    which names `key`, where there is none, or its file cannot be imported."""
    path = file_of(spec)
    with blaming(f"{key}={spec}", spec):
        module = import_file(path, default)
    name = spec.rpartition(".py")[2].removeprefix(":") or default
    found = getattr(module, name, None)
    if not callable(found):
        functions = [each for each in vars(module) if callable(getattr(module, each))]
        raise ValueError(f"{key}={spec}: {path} defines no {name!r}{nearest(name, functions)}")
    return found


@contextmanager
def blaming(what: str, spec: str) -> Iterator[None]:
    """Whatever a user's code raises within becomes a ValueError of one line, which begins with
    `what` and names the line of its file."""
    try:
        yield
    except Exception as error:  # it is the user's code
        raise ValueError(f"{what}: {blame(error, spec)}") from error


def blame(error: BaseException, spec: str) -> str:
    """What a user's code raised, in one line that names the line of its file."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    if isinstance(error, ValueError) or not is_file(spec):
        return text
    file = file_of(spec).resolve()
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == file]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {text}"
