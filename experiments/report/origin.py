"""Where a study's numbers come from: its runs, their settings, machines and revisions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from experiments.provenance import environment, provenance
from experiments.report.table_view import TableView, plain_view
from experiments.stored import StoredStudy
from harness.conversion import to_mapping
from harness.runs.jobs import Job

MAX_VALUES = 6
"""Distinct values of a setting that one line of a comparison of studies names."""

ABSENT = "-"

FOLLOWING = "Left out are settings that follow from a name: of a model, a workload."


def command_of(study: StoredStudy) -> str:
    """What to type to repeat it; empty for a run that no stored command has."""
    arguments = study.record.arguments
    if not arguments and study.record.preset == "":
        return ""
    return " ".join(["python -m harness", *map(shlex.quote, arguments)])


def facts_of(study: StoredStudy) -> list[tuple[str, str]]:
    """Provenance as names and values."""
    record, origin = study.record, provenance(study.jobs)
    runs = f"{len(study.jobs)} stored"
    if study.missing:
        runs += f", {study.missing} still to be done: repeat the command"
    return [
        ("study", f"{record.experiment}@{record.study_id}"),
        ("preset", record.preset or ABSENT),
        ("last run of the command", record.updated_at[:19] + " UTC" if record.preset else ABSENT),
        ("runs", runs),
        ("hash of the configurations", str(origin["config_hash"])),
        ("git revisions (+: with changes)", ", ".join(origin["git_revisions"]) or ABSENT),
        ("devices", ", ".join(origin["devices"]) or ABSENT),
    ]


def environments_view(jobs: Sequence[Job]) -> TableView:
    """The environments that runs were made in: a column each, load averages as a range."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        flat = dict(_flat(environment(job)))
        load = flat.pop("load_average", None)
        groups.setdefault(json.dumps(flat, sort_keys=True), []).append({"load": load, **flat})
    keys = list(dict.fromkeys(key for runs in groups.values() for key in runs[0] if key != "load"))
    lines = [["runs", *(len(runs) for runs in groups.values())]]
    lines += [[key, *(_text(runs[0].get(key)) for runs in groups.values())] for key in keys]
    lines.append(["load_average", *(_range(runs) for runs in groups.values())])
    heads = ["", *(f"environment {index}" for index in range(1, len(groups) + 1))]
    texts = [[str(value) for value in line] for line in lines]
    return plain_view("environments of the runs", heads, texts)


def runs_view(study: StoredStudy) -> TableView:
    """A line a run: its state, and the value of every key of the config that differs."""
    keys, flats = differing(study.jobs)
    lines = []
    for job in study.jobs:
        stored = study.run(job.run_id)
        values = [_text(flats[job.run_id].get(key)) for key in keys]
        lines.append([job.run_id, job.part or ABSENT, *values, stored.status, stored.wall_s])
    heads = ["run", "part", *keys, "status", "wall s"]
    return plain_view("runs, and the settings that differ between them", heads, lines, [FOLLOWING])


def shared_settings_view(study: StoredStudy) -> TableView:
    """The settings that all runs share."""
    _, flats = differing(study.jobs)
    first = flats[study.jobs[0].run_id]
    lines = [
        [key, _text(value)]
        for key, value in first.items()
        if len({_text(flat.get(key)) for flat in flats.values()}) == 1
    ]
    return plain_view("settings that all runs share", ["key", "value"], lines)


def differing(jobs: Sequence[Job]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Dotted keys whose value is not the same in all jobs, without those that follow from another
    (`model.head_dim` from `model.name`), and all values by run id."""
    flats = {job.run_id: dict(_flat(to_mapping(job.config))) for job in jobs}
    keys = dict.fromkeys(key for flat in flats.values() for key in flat)
    found = [key for key in keys if len({_text(flat.get(key)) for flat in flats.values()}) > 1]
    return [key for key in found if not _follows(key, found, flats.values())], flats


def _follows(key: str, found: Sequence[str], flats: Collection[Mapping[str, Any]]) -> bool:
    """The name of the key's group differs too, and says what the key's value is."""
    name = key.rpartition(".")[0] + ".name"
    if key == name or name not in found:
        return False
    pairs = {(_text(flat.get(name)), _text(flat.get(key))) for flat in flats}
    return len(pairs) == len({of_name for of_name, _ in pairs})


def studies_diff_view(studies: Sequence[StoredStudy]) -> TableView:
    """The keys that differ between studies: a column each, with all values that its runs have."""
    values = [_values(study.jobs) for study in studies]
    keys = dict.fromkeys(key for each in values for key in each)
    lines = [
        [key, *(_enumerated(each.get(key, [])) for each in values)]
        for key in keys
        if len({tuple(each.get(key, [])) for each in values}) > 1
    ]
    heads = ["key", *(f"{s.record.experiment}@{s.record.study_id}" for s in studies)]
    return plain_view("settings that differ between the studies", heads, lines)


def _values(jobs: Sequence[Job]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for job in jobs:
        for key, value in _flat(to_mapping(job.config)):
            found.setdefault(key, {})[_text(value)] = None
    return {key: list(values) for key, values in found.items()}


def _enumerated(values: Sequence[str]) -> str:
    shown = ", ".join(values[:MAX_VALUES]) or ABSENT
    more = len(values) - MAX_VALUES
    return f"{shown} and {more} more" if more > 0 else shown


def _range(runs: Sequence[Mapping[str, Any]]) -> str:
    loads = [float(run["load"]) for run in runs if run["load"] is not None]
    if not loads:
        return ABSENT
    return f"{min(loads):g}" if min(loads) == max(loads) else f"{min(loads):g} to {max(loads):g}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:g}" if isinstance(value, float) else str(value)
