"""Where a figure's or a table's numbers come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.exported import exported_environment, is_exported
from harness.conversion import to_mapping
from harness.runs.jobs import Job
from harness.runs.stored_text import read_json


def with_device(rows: pd.DataFrame, jobs: Sequence[Job]) -> pd.DataFrame:
    """`rows` with the device each ran on, and the memory imagined for it where it is imagined."""
    devices, imagined = {}, {}
    for job in jobs:
        device = "simulated" if not job.is_timed else environment(job).get("device", "")
        devices[job.run_id] = device
        if device != "cuda":
            imagined[job.run_id] = job.config.device.imagined_memory_gib
    return rows.assign(
        device=rows["run_id"].map(devices),
        imagined_memory_gib=rows["run_id"].map(imagined).astype(float),
    )


def environment(job: Job) -> dict[str, Any]:
    """The stored environment of a run; empty if it was never stored."""
    if is_exported(job.root):
        return exported_environment(job.root, job.run_id)
    path = job.root / job.run_id / "environment.json"
    try:
        values: dict[str, Any] = read_json(path)
    except (OSError, ValueError):
        return {}
    return values


def provenance(jobs: Sequence[Job]) -> Mapping[str, Any]:
    """Run ids, a hash of their configs, and the revisions and devices they were made with."""
    configs = json.dumps([to_mapping(job.config) for job in jobs], sort_keys=True, default=str)
    environments = [environment(job) for job in jobs]
    return {
        "config_hash": hashlib.sha256(configs.encode()).hexdigest()[:16],
        "git_revisions": sorted({str(e["git_revision"]) for e in environments if e}),
        "devices": sorted({f"{e['device']} ({e['cpu']})" for e in environments if e}),
        "run_ids": [job.run_id for job in jobs],
    }
