"""Which of several variants differ from a baseline, by the rows of stored runs."""

from __future__ import annotations

import pandas as pd

from harness.measure.statistics import compare, paired_differences


def verdicts(
    rows: pd.DataFrame, by: str, baseline: str | float, metric: str, *, higher_is_better: bool
) -> pd.DataFrame:
    """A row for each value of column `by` but `baseline`, as one family (docs/statistics.md).

    rows: as from `collect_rows`, of one cell for each value of `by`; those without the metric are
    left out. Columns: `by`, pairs, difference (mean over pairs of the same seed), half_width (NaN
    below 5 pairs), p_value (corrected; NaN below 6), verdict. ValueError where `baseline` has no
    row.
    """
    complete = rows[rows["status"] == "complete"]
    values = {
        value: dict(zip(group["seed"], group[metric], strict=True))
        for value, group in complete.groupby(by, sort=False)
    }
    if baseline not in values:
        raise ValueError(f"no complete run has {by}={baseline}: choose one of {list(values)}")
    others = [value for value in values if value != baseline]
    family = [paired_differences(values[value], values[baseline]) for value in others]
    return pd.DataFrame(
        [
            {
                by: value,
                "pairs": found.difference.n,
                "difference": found.difference.mean,
                "half_width": found.difference.half_width,
                "p_value": found.p_value,
                "verdict": found.verdict,
            }
            for value, found in zip(others, compare(family, higher_is_better), strict=True)
        ]
    )
