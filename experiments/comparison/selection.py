"""A part of a study, named on the command line: `NAME:key=value,key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.comparison.comparison import Side
from experiments.comparison.matching import settings_of
from experiments.stored import find_study
from harness.config import ConfigError
from harness.conversion import unknown_name

_NAMED = ("name", "kind")


def find_side(text: str, results_dir: Path) -> Side:
    """The study, or the runs of it with these settings. A group stands for its name, as on the
    command line of `python -m harness`: `allocator=paged`, `allocator.fit=buddy`.

    Raises ConfigError for a name, key or value that is not there.
    """
    name, _, selected = text.partition(":")
    study = find_study(name, results_dir)
    jobs = list(study.jobs)
    for word in filter(None, selected.split(",")):
        key, is_pair, value = word.partition("=")
        if not is_pair:
            raise ConfigError(f"{text}: {word!r} is no key=value")
        known = [settings_of(job) for job in jobs]
        key = _full_key(key, known)
        values = {settings.get(key, "-") for settings in known}
        if value not in values:
            raise ConfigError(
                f"{text}: no run has {key}={value}: it is {', '.join(sorted(values))}"
            )
        jobs = [j for j, own in zip(jobs, known, strict=True) if own.get(key, "-") == value]
    if not selected:
        return Side(text, study)
    rows = study.rows[study.rows["run_id"].isin({job.run_id for job in jobs})]
    return Side(text, study._replace(jobs=jobs, rows=rows.reset_index(drop=True)))


def _full_key(key: str, known: Sequence[dict[str, str]]) -> str:
    keys = {key: None for settings in known for key in settings}
    typed = key.replace("allocator.options.", "allocator.")
    for full in (typed, *(f"{typed}.{name}" for name in _NAMED)):
        if full in keys:
            return full
    raise ConfigError(unknown_name(key, keys, "key"))
