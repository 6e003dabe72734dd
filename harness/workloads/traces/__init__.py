"""Trace formats: every module here with a `read` is one, under the module's name.

A module may set NOTE, words for the description, where its rows were not recorded as they are.
"""

from __future__ import annotations

import importlib
import pkgutil

from harness.workloads.trace_row import Reader


def readers() -> dict[str, Reader]:
    """`read` of each format."""
    modules = (
        (info.name, importlib.import_module(f"{__name__}.{info.name}"))
        for info in pkgutil.iter_modules(__path__)
    )
    return {name: module.read for name, module in modules if hasattr(module, "read")}


def note(name: str) -> str:
    """What a format says about its rows, empty for recorded ones."""
    return str(getattr(importlib.import_module(f"{__name__}.{name}"), "NOTE", ""))
