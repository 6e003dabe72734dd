"""Which of several variants differ from a baseline, by the rows of stored runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from harness.measure.statistics import compare, paired_differences


def verdicts(
    rows: pd.DataFrame, by: str, baseline: str | float, metric: str, *, higher_is_better: bool
) -> pd.DataFrame:
    """A row for each value of column `by` but `baseline`, as one family (docs/statistics.md).

    rows: as from `collect_rows`, of one cell for each value of `by`; those without the metric are
    left out. Columns: `by`, pairs, difference (mean over pairs of the same seed), half_width (NaN
    below 5 pairs), p_value (corrected; NaN below 6), verdict, is_exact. Where both sides are the
    same at every seed, that is one observation repeated: is_exact, neither interval nor p value,
    and no member of the family. ValueError where `baseline` has no row.
    """
    complete = rows[rows["status"] == "complete"]
    values = {
        value: dict(zip(group["seed"], group[metric], strict=True))
        for value, group in complete.groupby(by, sort=False)
    }
    if baseline not in values:
        raise ValueError(f"no complete run has {by}={baseline}: choose one of {list(values)}")
    others = [value for value in values if value != baseline]
    family = {value: paired_differences(values[value], values[baseline]) for value in others}
    exact = {value for value in others if are_exact(values[value], values[baseline])}
    tested = [value for value in others if value not in exact]
    compared = compare([family[value] for value in tested], higher_is_better)
    by_value = dict(zip(tested, compared, strict=True))
    lines = []
    for value in others:
        if value in exact:
            n, mean = len(family[value]), float(family[value][0])
            figures = (n, mean, math.nan, math.nan, exact_verdict(mean, higher_is_better))
        else:
            difference, p_value, verdict = by_value[value]
            figures = (difference.n, difference.mean, difference.half_width, p_value, verdict)
        lines.append((value, *figures, value in exact))
    heads = [by, "pairs", "difference", "half_width", "p_value", "verdict", "is_exact"]
    return pd.DataFrame(lines, columns=heads)


def is_same_at_every_seed(values: Iterable[float]) -> bool:
    """There are two or more, all finite and equal: one observation, however often repeated."""
    found = list(values)
    return len(found) > 1 and all(math.isfinite(each) and each == found[0] for each in found)


def are_exact(values: Mapping[int, float], baseline: Mapping[int, float]) -> bool:
    """Both sides are the same at all seeds that they have in common."""
    seeds = values.keys() & baseline.keys()
    return all(is_same_at_every_seed(side[seed] for seed in seeds) for side in (values, baseline))


def exact_verdict(difference: float, higher_is_better: bool) -> str:
    """What a difference that no chance is in comes to."""
    if difference == 0:
        return "the same"
    return "better" if (difference > 0) == higher_is_better else "worse"
