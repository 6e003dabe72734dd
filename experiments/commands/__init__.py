"""What `python -m experiments NAME` does: a module with `main` is a command, found by its name.

`main(arguments) -> int` takes what follows the name and returns the exit status; the first
sentence of the module's docstring stands in the list of commands. `--help` ends with `examples:`,
whole command lines with what they do behind a `#`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def available() -> tuple[str, ...]:
    """Names of the commands."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The command `name`, one of `available`."""
    return importlib.import_module(f"{__name__}.{name}")
