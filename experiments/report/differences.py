"""Strategies beside a baseline, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from experiments.report.cells import Cell
from experiments.report.headline import Headline, mean_of
from experiments.verdicts import verdicts
from harness.measure.statistics import (
    MIN_PAIRS_FOR_VERDICT,
    MIN_REPETITIONS_FOR_INTERVAL,
    SIGNIFICANCE,
)


class Difference(NamedTuple):
    """A strategy beside the baseline, paired by seed. half_width: NaN below 5 pairs. p_value:
    after Holm's correction over the group; NaN below 6 pairs. All in the unit shown. is_exact: both
    are the same at every seed, so that there is no chance to allow for; half_width and p_value are
    NaN then."""

    label: str
    mean: float
    difference: float
    half_width: float
    pairs: int
    p_value: float
    verdict: str
    is_exact: bool = False


def p_in_words(found: Difference) -> float | str | None:
    """A p value as it is reported: a tiny one as a bound; "exact" where none is needed."""
    value = found.p_value
    if found.is_exact:
        return "exact"
    if math.isnan(value):
        return None
    return f"< {SMALL_P:g}" if value < SMALL_P else round(value, 3)


SMALL_P = 0.001

FAMILY_NOTE = (
    f"Paired by seed; verdicts at {SIGNIFICANCE:.0%} after Holm's correction over the rows of this "
    "table, from six pairs on (docs/statistics.md)."
)


def notes_on(differences: Sequence[Difference]) -> list[str]:
    """What a table of `differences` does, and does not, allow for."""
    choice = (
        "Each interval is a plain 95 % interval of one difference, not corrected like the verdicts"
    )
    if len(differences) > 1:
        choice += f", and is not adjusted for choosing the best of {len(differences) + 1}"
    has_interval = any(math.isfinite(each.half_width) for each in differences)
    return [FAMILY_NOTE, *([f"{choice}."] if has_interval else [])]


def differences_of(
    cells: Sequence[Cell], baseline: Cell, headline: Headline, labels: dict[int, str]
) -> tuple[Difference, ...]:
    """Each of `cells` but the baseline beside it. labels: by id of a cell."""
    metric, scale = headline.column.metric, headline.column.scale
    family = pd.concat([cell.rows.assign(cell=labels[id(cell)]) for cell in cells])
    found = verdicts(
        family,
        "cell",
        labels[id(baseline)],
        metric,
        higher_is_better=headline.higher_is_better,
    )
    means = {labels[id(cell)]: mean_of(cell, headline) for cell in cells}
    return tuple(
        Difference(
            str(row.cell),
            scale * means[str(row.cell)],
            scale * float(row.difference),
            scale * float(row.half_width),
            int(row.pairs),
            float(row.p_value),
            str(row.verdict),
            bool(row.is_exact),
        )
        for row in found.itertuples()
    )


def difference_in_words(found: Difference, headline: Headline, family: int) -> str:
    """`51.7 ± 4.2 percentage points more (95 % interval, n = 10 seeds): better`. family: that it
    was corrected over."""
    digits = headline.column.digits
    more = "more" if found.difference >= 0 else "less"
    shown = f"{abs(found.difference):,.{digits}f}"
    if found.pairs == 0:
        return "no seed is common to both, so that they can't be compared"
    if found.is_exact:
        return f"{shown} {headline.unit} {more} (the same at every seed: exact): {found.verdict}"
    if math.isfinite(found.half_width):
        shown += f" ± {found.half_width:,.{digits}f}"
        how = f"95 % interval, {repetitions(found.pairs)}"
    else:
        how = repetitions(found.pairs)
    return f"{shown} {headline.unit} {more} ({how}): {_verdict(found, family)}"


def _verdict(found: Difference, family: int) -> str:
    """The verdict, with why it is not what the numbers beside it seem to say."""
    if found.pairs < MIN_PAIRS_FOR_VERDICT:
        return f"{found.verdict} ({MIN_PAIRS_FOR_VERDICT} are needed)"
    excludes_zero = abs(found.difference) > found.half_width
    if found.verdict == "no difference seen" and excludes_zero:
        return f"{found.verdict} (corrected for {family} comparisons)"
    return found.verdict


def repetitions(n: int) -> str:
    """`n = 10 seeds`, with what so few do not allow."""
    seeds = "seed" if n == 1 else "seeds"
    few = f", no interval below {MIN_REPETITIONS_FOR_INTERVAL}"
    return f"n = {n} {seeds}{few if n < MIN_REPETITIONS_FOR_INTERVAL else ''}"
