"""The answer of a study in sentences: the best strategy beside a baseline, from rows alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from experiments.report.cells import Cell, Group, common_settings, in_words, labels_of
from experiments.report.table_view import TableView, plain_view
from experiments.table_columns import TIMES, UTILISATION, Column
from experiments.verdicts import verdicts
from harness.measure.statistics import (
    MIN_PAIRS_FOR_VERDICT,
    MIN_REPETITIONS_FOR_INTERVAL,
    SIGNIFICANCE,
)


@dataclass(frozen=True, slots=True)
class Headline:
    """The one metric that a group is judged by. unit: of a difference. sign: behind a
    value. says: what a value with its sign is, in a sentence."""

    column: Column
    unit: str
    sign: str
    says: str

    @property
    def higher_is_better(self) -> bool:
        return self.column.best == "max"

    def number(self, value: float) -> str:
        """`value` of the metric as it is shown."""
        return f"{value * self.column.scale:,.{self.column.digits}f}{self.sign}"


class Difference(NamedTuple):
    """A strategy beside the baseline, paired by seed. half_width: NaN below 5 pairs. p_value:
    after Holm's correction over the group; NaN below 6 pairs. All in the unit shown."""

    label: str
    mean: float
    difference: float
    half_width: float
    pairs: int
    p_value: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Answer:
    """sentence: names the best, the baseline, their difference, its interval and n. remarks: what
    a reader has to know beside it. differences: of all that were compared with the baseline."""

    title: str
    sentence: str
    remarks: tuple[str, ...]
    headline: Headline
    baseline: str
    differences: tuple[Difference, ...]

    @property
    def view(self) -> TableView:
        """The differences as a table."""
        head = self.headline.column.title
        lines = [
            [d.label, d.mean, d.difference, d.half_width, d.pairs, _p(d.p_value), d.verdict]
            for d in self.differences
        ]
        heads = ["strategy", head, f"difference, {self.headline.unit}", "± (95 %)", "pairs"]
        caption = f"{head}: each beside {self.baseline}"
        return plain_view(caption, [*heads, "p (Holm)", "verdict"], lines, [FAMILY_NOTE])


def _p(value: float) -> float | str | None:
    """A p value as it is reported: a tiny one as a bound."""
    if math.isnan(value):
        return None
    return f"< {SMALL_P:g}" if value < SMALL_P else round(value, 3)


SMALL_P = 0.001

FAMILY_NOTE = (
    f"Paired by seed; verdicts at {SIGNIFICANCE:.0%} after Holm's correction over the rows of this "
    "table, from six pairs on (docs/statistics.md)."
)

_TIMES = {column.metric: column for column in TIMES}

USED = Headline(UTILISATION, "percentage points", " %", "of the pool holds tokens")
THROUGHPUT = Headline(_TIMES["output_tokens_per_s"], "tokens/s", "", "output tokens/s")
LATENCY = Headline(
    _TIMES["normalised_latency_ms"], "ms/token", " ms/token", "of mean normalised latency"
)


def headline_of(group: Group) -> Headline:
    """Used memory where times mean nothing; throughput where all requests are there at once or as
    many at a time as are served; latency where they arrive at a rate of their own."""
    if not group.has_times:
        return USED
    return LATENCY if group.is_open_loop else THROUGHPUT


def answer_of(group: Group) -> Answer | None:
    """The best beside the baseline; None where no run of the group went well."""
    if not group.complete:
        return None
    headline = headline_of(group)
    cells, where = _comparable(group)
    if len(cells) == 1:
        return _single(group, cells[0], headline)
    baseline = baseline_of(cells)
    labels = dict(zip(map(id, cells), labels_of(cells), strict=True))
    found = _differences(cells, baseline, headline, labels)
    best = _best(cells, headline)
    sentence = _sentence(group, headline, where, cells, baseline, best, found, labels)
    remarks = _remarks(headline, [baseline, *best[:1]], labels)
    return Answer(group.table.title, sentence, remarks, headline, labels[id(baseline)], found)


def baseline_of(cells: Sequence[Cell]) -> Cell:
    """What the others are held against: the first that reserves the bound in one piece, else the
    first that is contiguous, else the first."""
    contiguous = [cell for cell in cells if cell.rows["allocator"].iloc[0] == "contiguous"]
    bound = [cell for cell in contiguous if cell.rows["expected"].iloc[0] == "max"]
    return (bound or contiguous or list(cells))[0]


def _comparable(group: Group) -> tuple[list[Cell], str]:
    """Cells that differ in the strategy alone, where two of them do; else all cells."""
    settings = common_settings(group.complete)
    if settings is None:
        return list(group.complete), ""
    chosen = [cell for cell in group.complete if cell.settings == settings]
    return chosen, in_words(settings, group.varied)


def _mean(cell: Cell, headline: Headline) -> float:
    return cell.row.cells[headline.column.metric].mean


def _best(cells: Sequence[Cell], headline: Headline) -> list[Cell]:
    """The cells with the best mean as it is shown; more than one where they tie."""
    known = [cell for cell in cells if math.isfinite(_mean(cell, headline))]
    if not known:
        return []
    shown = [headline.column.shown(_mean(cell, headline)) for cell in known]
    top = max(shown) if headline.higher_is_better else min(shown)
    return [cell for cell, value in zip(known, shown, strict=True) if value == top]


def _differences(
    cells: Sequence[Cell], baseline: Cell, headline: Headline, labels: dict[int, str]
) -> tuple[Difference, ...]:
    metric, scale = headline.column.metric, headline.column.scale
    family = pd.concat([cell.rows.assign(cell=labels[id(cell)]) for cell in cells])
    found = verdicts(
        family,
        "cell",
        labels[id(baseline)],
        metric,
        higher_is_better=headline.higher_is_better,
    )
    means = {labels[id(cell)]: _mean(cell, headline) for cell in cells}
    return tuple(
        Difference(
            str(row.cell),
            scale * means[str(row.cell)],
            scale * float(row.difference),
            scale * float(row.half_width),
            int(row.pairs),
            float(row.p_value),
            str(row.verdict),
        )
        for row in found.itertuples()
    )


def _single(group: Group, cell: Cell, headline: Headline) -> Answer:
    value = cell.row.cells[headline.column.metric]
    how = _repetitions(value.n)
    if math.isfinite(value.half_width):
        how = f"± {headline.number(value.half_width)}, 95 % interval, {how}"
    sentence = (
        f"On {_setting(group, '')}, {headline.number(value.mean)} {headline.says} under "
        f"{cell.strategy} ({how}); there is nothing to compare it with."
    )
    remarks = _remarks(headline, [cell], {id(cell): cell.strategy})
    return Answer(group.table.title, sentence, remarks, headline, cell.strategy, ())


def _sentence(
    group: Group,
    headline: Headline,
    where: str,
    cells: Sequence[Cell],
    baseline: Cell,
    best: Sequence[Cell],
    differences: Sequence[Difference],
    labels: dict[int, str],
) -> str:
    setting = _setting(group, where)
    base = f"{headline.number(_mean(baseline, headline))} under {labels[id(baseline)]}"
    if not best:
        return f"On {setting}, no run has the metric {headline.column.title!r}."
    if any(cell is baseline for cell in best):
        others = [labels[id(cell)] for cell in best if cell is not baseline]
        same = f" ({_enumerated(others)}: the same)" if others else ""
        n = baseline.row.cells[headline.column.metric].n
        return (
            f"On {setting}, none is ahead of the baseline {labels[id(baseline)]}{same}: "
            f"{headline.number(_mean(baseline, headline))} {headline.says} ({_repetitions(n)})."
        )
    first, *ties = [labels[id(cell)] for cell in best]
    same = f" ({_enumerated(ties)}: the same)" if ties else ""
    found = next(each for each in differences if each.label == first)
    return (
        f"On {setting}, {headline.number(_mean(best[0], headline))} {headline.says} under "
        f"{first}{same}, against {base}: {difference_in_words(found, headline, len(differences))}."
        f"{_best_of_all(group, best[0], headline)}"
    )


def _best_of_all(group: Group, best: Cell, headline: Headline) -> str:
    """A sentence about the best of all rows, where that is none of those compared."""
    overall = _best(group.complete, headline)
    if any(cell is best for cell in overall):
        return ""
    label = dict(zip(map(id, group.complete), labels_of(group.complete), strict=True))
    value = headline.number(_mean(overall[0], headline))
    return f" The best of all {len(group.complete)} rows is {label[id(overall[0])]}, with {value}."


def difference_in_words(found: Difference, headline: Headline, family: int) -> str:
    """`51.7 ± 4.2 percentage points more (95 % interval, n = 10 seeds): better`. family: that it
    was corrected over."""
    digits = headline.column.digits
    more = "more" if found.difference >= 0 else "less"
    shown = f"{abs(found.difference):,.{digits}f}"
    if found.pairs == 0:
        return "no seed is common to both, so that they can't be compared"
    if math.isfinite(found.half_width):
        shown += f" ± {found.half_width:,.{digits}f}"
        how = f"95 % interval, {_repetitions(found.pairs)}"
    else:
        how = _repetitions(found.pairs)
    return f"{shown} {headline.unit} {more} ({how}): {_verdict(found, family)}"


def _verdict(found: Difference, family: int) -> str:
    """The verdict, with why it is not what the numbers beside it seem to say."""
    if found.pairs < MIN_PAIRS_FOR_VERDICT:
        return f"{found.verdict} ({MIN_PAIRS_FOR_VERDICT} are needed)"
    excludes_zero = abs(found.difference) > found.half_width
    if found.verdict == "no difference seen" and excludes_zero:
        return f"{found.verdict} (corrected for {family} comparisons)"
    return found.verdict


def _repetitions(n: int) -> str:
    seeds = "seed" if n == 1 else "seeds"
    few = f", no interval below {MIN_REPETITIONS_FOR_INTERVAL}"
    return f"n = {n} {seeds}{few if n < MIN_REPETITIONS_FOR_INTERVAL else ''}"


def _setting(group: Group, where: str) -> str:
    _, *rest = group.table.title.split(" · ")
    return f"{rest[0]} ({', '.join([*rest[1:], *([where] if where else [])])})"


def _enumerated(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _remarks(headline: Headline, cells: Sequence[Cell], labels: dict[int, str]) -> tuple[str, ...]:
    remarks = []
    unique = list({id(cell): cell for cell in cells}.values())
    if unbound := [labels[id(cell)] for cell in unique if not cell.row.is_memory_bound]:
        remarks.append(
            f"not memory-bound: {_enumerated(unbound)}. The queue waited for memory less than "
            "half of the time there, so the figure says little about allocation."
        )
    growing = [labels[id(cell)] for cell in unique if cell.row.queue_grows]
    if growing and headline is LATENCY:
        remarks.append(
            f"the queue grows: {_enumerated(growing)}. Requests come faster than they are "
            "served, so the latency is that of a run of this length."
        )
    if headline is not USED and (cells[0].rows["executor"] == "simulated").all():
        remarks.append("Simulated times: see the notes below the table.")
    return tuple(remarks)
