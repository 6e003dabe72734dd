"""The settings that advice is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

KNOBS: Mapping[str, tuple[str, Sequence[Any]]] = {
    "token_budget": ("engine.token_budget", (128, 256, 512, 1024, 2048, 4096, 8192)),
    "page_size": ("kv.page_size", (8, 16, 32, 64, 128)),
    "allocator": ("allocator", ("paged", "paged_prefix")),
    "preemption": ("engine.preemption", ("recompute", "swap")),
}
"""Of each knob its key and its values, neighbours side by side."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the search: the knobs, the share of the GPU's memory, and what is assumed of
    the host and the load. whole: all of the trace is served, not its busiest stretch alone."""

    allocator: str
    page_size: int
    token_budget: int
    preemption: str
    memory_fraction: float
    host_us: float
    load: float
    whole: bool = False

    def knobs(self) -> dict[str, Any]:
        """Values by knob."""
        return {name: getattr(self, name) for name in KNOBS}

    def at(self, memory_fraction: float) -> Setting:
        """The same with another share of the memory."""
        return replace(self, memory_fraction=memory_fraction)


def moves(setting: Setting, fixed: Sequence[str], steps: int | None = None) -> list[Setting]:
    """The settings that differ in one knob, of those not `fixed`; `steps`: by at most so many
    places, None for any."""
    found = []
    for name, (_, values) in KNOBS.items():
        own = getattr(setting, name)
        if name in fixed or own not in values:
            continue
        place = values.index(own)
        for other, value in enumerate(values):
            if other != place and (steps is None or abs(other - place) <= steps):
                found.append(replace(setting, **{name: value}))
    return found
