"""The machines and software that two studies were made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.provenance import environment
from harness.runs.jobs import Job

_VARIES_BY_ITSELF = ("load_average",)


class EnvironmentChange(NamedTuple):
    """What of the environment is not the same; several values of one study are joined by " or "."""

    what: str
    before: str
    after: str


class Surroundings(NamedTuple):
    """changes: between the studies. load: the highest load average before a run of either, where
    it was above the number of cores and times are not to be trusted; else None."""

    changes: tuple[EnvironmentChange, ...]
    load: float | None


def surroundings(before: Sequence[Job], after: Sequence[Job]) -> Surroundings:
    """What the runs' environments say."""
    first, second = (_environments(jobs) for jobs in (before, after))
    left, right = _values(first), _values(second)
    changes = [
        EnvironmentChange(what, left.get(what, "-"), right.get(what, "-"))
        for what in dict.fromkeys([*left, *right])
        if left.get(what) != right.get(what)
    ]
    high = [e["load_average"] for e in first + second if e["load_average"] > e["num_cores"]]
    return Surroundings(tuple(changes), max(high, default=None))


def _environments(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    return [found for job in jobs if (found := environment(job))]


def _values(environments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, dict[str, None]] = {}
    for each in environments:
        for what, value in _flat(each):
            found.setdefault(what, {})[value] = None
    return {what: " or ".join(values) for what, values in found.items()}


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if name == "packages":
            yield from value.items()
        elif name == "git_revision":
            yield "git revision", _short(value)
        elif name not in _VARIES_BY_ITSELF:
            yield name.replace("_", " "), str(value)


def _short(revision: str) -> str:
    """Ten digits, and the + of a checkout with changes."""
    return revision[:10] + ("+" if revision.endswith("+") and len(revision) > 10 else "")
