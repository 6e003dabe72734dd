"""Options of a strategy or a router, whose types only its constructor says."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

from harness.conversion import convert


def as_annotated(
    cls: type, known: Mapping[str, inspect.Parameter], given: Mapping[str, Any], group: str
) -> dict[str, Any]:
    """`given` options of `cls`, of which it has the `known` ones, in the types that its constructor
    is annotated with. Raises ConfigError, naming GROUP.KEY, where one is of another, and NameError
    for an annotation that means nothing."""
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    return {
        key: convert(hints[key], value, f"{group}.{key}")
        if key in hints and key in known and value != known[key].default
        else value
        for key, value in given.items()
    }
