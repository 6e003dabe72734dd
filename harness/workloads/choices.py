"""Errors that name the nearest valid choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(key: str, value: object, choices: Iterable[str]) -> ValueError:
    """An error for a value that is none of `choices`, nearest names first."""
    names = sorted(choices)
    near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ValueError(f"{key}={value}: unknown; {hint}choices: {', '.join(names)}")
