"""What tells runs apart beside what a figure shows: its points must not be means of unlike runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from experiments.plotting import jobs_of
from harness.runs.jobs import Job
from harness.runs.key_effects import NEEDS
from harness.runs.varied_settings import short_name, varied_settings

_COLUMNS = ("workload", "executor", "page_size")
"""Of rows; `varied_settings` leaves them to tables, which always show them."""


def other_settings(
    rows: pd.DataFrame, jobs: Sequence[Job], is_wanted: Callable[[str], bool]
) -> list[str]:
    """For each of `rows`, in words, the wanted settings in which `rows` differ beside strategy and
    seed: `page size 8, pool tokens 512`; empty where they do not. is_wanted: of a dotted key, or of
    one of the columns `workload`, `executor` and `page_size`."""
    varied = {
        short_name(key): rows["run_id"].map(values)
        for key, values in varied_settings(jobs_of(rows, jobs)).items()
        if is_wanted(key) and _differs(key, values)
    }
    columns = [name for name in _COLUMNS if is_wanted(name) and rows[name].nunique() > 1]
    words = {name.replace("_", " "): rows[name].astype(str) for name in columns} | varied
    said = [
        [f"{name} {value}" for name, value in zip(words, values, strict=True) if value != "-"]
        for values in zip(*words.values(), strict=True)
    ]
    return [", ".join(each) for each in said] if words else [""] * len(rows)


def _differs(key: str, values: Mapping[str, str]) -> bool:
    """Whether the runs that read a key differ in it: that others do not is told by another key."""
    return len(set(values.values()) - ({"-"} if key in NEEDS else set())) > 1
