"""Which settings tell the runs of a comparison apart, beside strategy and page size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.config import RunConfig
from harness.conversion import to_mapping
from harness.runs.jobs import Job, strategy_label
from harness.runs.key_effects import NEEDS

_KNOWN_ELSEWHERE = (
    "seed",
    "repetitions",
    "kv.page_size",
    "allocator.name",
    "allocator.expected",
    "workload.name",
    "executor.kind",
)
_NAMED = ("model",)
"""Groups whose name stands for all of their keys."""


def varied_settings(jobs: Sequence[Job]) -> dict[str, dict[str, str]]:
    """For each key that differs between `jobs`, its value as text by run id, `-` for none.

    Left out are keys that a table shows anyway, and what a strategy's label says.
    """
    flat = {job.run_id: effective_settings(job.config) for job in jobs}
    labels = {job.run_id: strategy_label(job.config.allocator) for job in jobs}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    return {
        key: {run_id: as_text(values.get(key)) for run_id, values in flat.items()}
        for key in keys
        if not _is_shown(key) and _differs(key, flat, labels)
    }


def short_name(key: str) -> str:
    """A key as a heading: its last part, or its group where that says more."""
    group, _, last = key.rpartition(".")
    return (group if last in ("kind", "name") else last).replace("_", " ")


def _is_shown(key: str) -> bool:
    group = key.split(".", 1)[0]
    return key in _KNOWN_ELSEWHERE or (group in _NAMED and key != f"{group}.name")


def _differs(key: str, flat: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]) -> bool:
    """Whether runs differ in `key`; an allocator's option must differ within one label, a fleet's
    setting among those that read it."""
    if key.startswith("cluster."):
        read = [values[key] for values in flat.values() if values.get(key) is not None]
        return len(set(map(as_text, read))) > 1
    if not key.startswith("allocator."):
        return len({as_text(values.get(key)) for values in flat.values()}) > 1
    by_label: dict[str, set[str]] = {}
    for run_id, values in flat.items():
        by_label.setdefault(labels[run_id], set()).add(as_text(values.get(key)))
    return any(len(found) > 1 for found in by_label.values())


def effective_settings(config: RunConfig) -> dict[str, Any]:
    """All settings by dotted key; None for one that nothing reads."""
    values = dict(_flatten(to_mapping(config)))
    return values | {key: None for key, need in NEEDS.items() if not need.holds(config)}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def as_text(value: Any) -> str:
    """A setting as tables show it, `-` for None."""
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
