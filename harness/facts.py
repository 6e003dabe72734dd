"""What is known of a strategy or a router without executing its code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """Stored with a run, so that nothing of it is executed to show it.

    name: to be shown. defaults: of its options, plain values. labelled: options that its label
    always says.
    """

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    labelled: Sequence[str] = ()


def one_line(text: str) -> str:
    """`text` as a label can have it: one line that is not endless."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


_LONGEST = 100
