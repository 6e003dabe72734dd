"""A call of the allocator contract, and the error of a strategy that breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class AllocatorError(ValueError):
    """A strategy broke the allocator contract: which one, in which call, with which value."""


class Call(NamedTuple):
    """A call of the allocator contract."""

    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(shown(value) for value in self.arguments)})"


def shown(value: object) -> str:
    """An argument, long sequences by their length."""
    if isinstance(value, Sequence) and len(value) > 8:
        return f"[{len(value)} values]"
    return repr(value)
