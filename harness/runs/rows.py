"""Stored runs as one table: a row a repetition, with the settings that tell runs apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from allocators.contract_record import has_passed
from harness.config import RunConfig
from harness.conversion import from_mapping
from harness.own_code import file_of, is_file
from harness.runs.half_written import replacing
from harness.runs.jobs import Job, strategy_label
from harness.runs.store import RunStore, StoredRun
from harness.runs.stored_text import for_spreadsheets

_OF_FLEETS = ("replicas", "router", "balance_abs_threshold")


def collect_rows(jobs: Sequence[Job]) -> pd.DataFrame:
    """Rows of all of `jobs` that were stored, in order; a failed run is a row with its error.

    Settings are columns named like their keys' last part where that is clear (`page_size`,
    `workload`, `fit`), metrics are columns under their own names.
    """
    rows: list[dict[str, Any]] = []
    for job in jobs:
        run = RunStore(job.root).find(job.run_id)
        if run is not None:
            rows.extend(_rows_of(run, job))
    return pd.DataFrame(rows)


def write_rows(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """`summary.csv` and `summary.parquet` in `folder`, each replaced in one rename."""
    csv, parquet = folder / "summary.csv", folder / "summary.parquet"
    with replacing(csv) as as_text, replacing(parquet) as as_columns:
        for_spreadsheets(rows).to_csv(as_text, index=False)
        rows.to_parquet(as_columns, index=False)
    return [csv, parquet]


def settings(config: RunConfig) -> dict[str, Any]:
    """The settings of a run that comparisons are made over; those of a fleet where it is one."""
    cluster = config.cluster
    allocator, workload, engine = config.allocator, config.workload, config.engine
    return {
        "strategy": strategy_label(allocator),
        "allocator": allocator.name,
        "expected": allocator.expected,
        "expected_bias": allocator.expected_bias,
        "expected_spread": allocator.expected_spread,
        "fit": allocator.options.get("fit"),
        "eviction": allocator.options.get("eviction"),
        "page_size": config.kv.page_size,
        "memory_fraction": config.kv.memory_fraction,
        "workload": workload.name,
        "sharing": workload.sharing,
        "shared_len": workload.shared_len,
        "rate": workload.rate,
        "concurrency": workload.concurrency,
        "length_scale": workload.length_scale,
        "schedule": engine.schedule,
        "token_budget": engine.token_budget,
        "watermark": engine.watermark,
        "preemption": engine.preemption,
        "victim": engine.victim,
        "speculation": engine.speculation.method,
        "num_drafts": engine.speculation.num_tokens,
        "acceptance": engine.speculation.acceptance,
        "draft": engine.speculation.draft,
        "samples": workload.samples,
        "beam_width": workload.beam_width,
        "model": config.model.name,
        "executor": config.executor.kind,
        "cost": config.executor.cost,
        "attention": config.attention.kind,
        **({key: getattr(cluster, key) for key in _OF_FLEETS} if cluster.replicas > 1 else {}),
    }


def stored_settings(run: StoredRun) -> dict[str, Any]:
    """`settings` of a run as found on disk. Raises ConfigError for one of another version."""
    return settings(from_mapping(RunConfig, run.config))


def _is_tested(run: StoredRun, job: Job) -> bool:
    """Whether the allocator's code, as it was measured, has passed the contract test here; what
    comes with kvarena has."""
    spec = job.config.allocator.name
    if not is_file(spec):
        return True
    class_name = spec.rpartition(".py")[2].removeprefix(":")
    return has_passed(run.path / "allocator" / file_of(spec).name, class_name)


def _rows_of(run: StoredRun, job: Job) -> list[dict[str, Any]]:
    head = {
        "run_id": run.run_id,
        "part": job.part,
        "status": run.status,
        "error": run.error,
        **settings(job.config),
        "contract_tested": _is_tested(run, job),
    }
    if run.status != "complete":
        return [{**head, "repetition": 0, "seed": run.config["seed"], "wall_s": run.wall_s}]
    return [{**head, "wall_s": run.wall_s, **metrics} for metrics in run.summary]
