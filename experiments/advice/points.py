"""What was simulated, as a table: a row a setting, and which of them no other one dominates."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from experiments.advice.runs import AdviceRuns, attainment
from experiments.advice.setting import Setting
from harness.measure.ledger import CLASSES

SHARES = [f"{name}_share" for name in CLASSES]

METRICS = (
    "e2e_ms",
    "last_arrival_s",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "tpot_p50_ms",
    "tpot_p99_ms",
    "backlog_growth",
    "queue_grows",
    "preemptions",
    "prefix_hit_rate",
    "num_refused",
    "saturated_share",
    *SHARES,
)


def points(settings: Iterable[Setting], runs: AdviceRuns) -> pd.DataFrame:
    """One row a setting that has a complete run: its knobs, pool_tokens, pool_gib, attainment,
    goodput_per_s, METRICS and run_id.

    goodput_per_s: requests answered within the SLO, over the time in which they arrived. The time
    that the last of them take beyond it, which only a stretch of a trace has, is left out.
    """
    lines = []
    for setting in settings:
        row = runs.row(setting)
        if row is not None:
            lines.append(
                {
                    **setting.knobs(),
                    "memory_fraction": setting.memory_fraction,
                    "host_us": setting.host_us,
                    "load": setting.load,
                    "whole": setting.whole,
                    "pool_tokens": row["pool_tokens"],
                    "pool_gib": row["pool_bytes"] / 2**30,
                    "attainment": attainment(row),
                    "goodput_per_s": attainment(row) * row["num_requests"] / row["last_arrival_s"],
                    **{metric: row[metric] for metric in METRICS},
                    "run_id": runs.job(setting).run_id,
                }
            )
    return pd.DataFrame(lines)


def pareto(table: pd.DataFrame) -> pd.DataFrame:
    """The rows than which no other has as small a pool and more goodput, by pool: each serves
    more than every smaller one."""
    ordered = table.sort_values(["pool_gib", "goodput_per_s"], ascending=[True, False])
    best_below = ordered["goodput_per_s"].cummax().shift(fill_value=-1.0)
    return ordered[ordered["goodput_per_s"] > best_below]
