"""The answer of a study in sentences: the best strategy beside a baseline, from rows alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.report.cells import Cell, Group, common_settings, in_words, labels_of
from experiments.report.differences import (
    Difference,
    difference_in_words,
    differences_of,
    notes_on,
    p_in_words,
    repetitions,
)
from experiments.report.headline import LATENCY, USED, Headline, headline_of, mean_of
from experiments.report.table_view import TableView, plain_view
from experiments.tables import RELIEVED
from experiments.verdicts import is_same_at_every_seed

MAX_VALUES = 6
"""More values than these are said as their range."""


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
            [d.label, d.mean, d.difference, d.half_width, d.pairs, p_in_words(d), d.verdict]
            for d in self.differences
        ]
        heads = ["strategy", head, f"difference, {self.headline.unit}", "± (95 %)", "pairs"]
        caption = f"{head}: each beside {self.baseline}"
        return plain_view(
            caption, [*heads, "p (Holm)", "verdict"], lines, notes_on(self.differences)
        )


def answer_of(group: Group) -> Answer | None:
    """The best beside the baseline; None where no run of the group went well."""
    if not group.complete:
        return None
    headline = headline_of(group)
    cells, where = _comparable(group)
    if len(cells) == 1:
        return _single(group, cells[0], headline)
    if len({cell.conditions for cell in cells}) > 1:
        return _values(group, cells, headline)
    baseline = baseline_of(cells)
    labels = dict(zip(map(id, cells), labels_of(cells), strict=True))
    found = differences_of(cells, baseline, headline, labels)
    best = _best(cells, headline)
    sentence = _sentence(group, headline, where, cells, baseline, best, found, labels)
    is_ahead = bool(best) and not any(cell is baseline for cell in best)
    overall = _best_alike(group, best[0], headline) if is_ahead else []
    if overall and not any(cell is best[0] for cell in overall):
        names = zip(map(id, group.complete), labels_of(group.complete), strict=True)
        labels = dict(names) | labels
        best = [*best, *overall[:1]]
    sentence += _of_own(cells, [baseline, *best], found, headline, labels)
    sentence += _unbound([baseline, *best], best, labels)
    remarks = _remarks(headline, [baseline, *best], best, labels)
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


def _best(cells: Sequence[Cell], headline: Headline) -> list[Cell]:
    """The cells with the best mean as it is shown; more than one where they tie."""
    known = [cell for cell in cells if math.isfinite(mean_of(cell, headline))]
    if not known:
        return []
    shown = [headline.column.shown(mean_of(cell, headline)) for cell in known]
    top = max(shown) if headline.higher_is_better else min(shown)
    return [cell for cell, value in zip(known, shown, strict=True) if value == top]


def _single(group: Group, cell: Cell, headline: Headline) -> Answer:
    value = cell.row.cells[headline.column.metric]
    how = repetitions(value.n)
    if is_same_at_every_seed(cell.rows[headline.column.metric]):
        how = f"the same at all {value.n} seeds"
    elif math.isfinite(value.half_width):
        how = f"± {headline.number(value.half_width)}, 95 % interval, {how}"
    sentence = (
        f"On {_setting(group, '')}, {headline.number(value.mean)} {headline.says} under "
        f"{cell.strategy} ({how}); there is nothing to compare it with."
    )
    labels = {id(cell): cell.strategy}
    sentence += _unbound([cell], [cell], labels)
    remarks = _remarks(headline, [cell], [cell], labels)
    return Answer(group.table.title, sentence, remarks, headline, cell.strategy, ())


def _values(group: Group, cells: Sequence[Cell], headline: Headline) -> Answer:
    """What was measured under each load or machine, none of which is ahead of another."""
    known = sorted(
        (cell for cell in cells if math.isfinite(mean_of(cell, headline))),
        key=lambda cell: mean_of(cell, headline),
    )
    labels = dict(zip(map(id, cells), labels_of(cells), strict=True))
    is_range = len(known) > MAX_VALUES
    named = (
        [known[0], known[-1]]
        if is_range
        else [cell for cell in cells if math.isfinite(mean_of(cell, headline))]
    )
    said = [
        f"{headline.number(mean_of(cell, headline))} {'' if i else headline.says + ' '}under "
        f"{labels[id(cell)]}"
        for i, cell in enumerate(named)
    ]
    shown = f"from {said[0]} to {said[1]}" if is_range else _enumerated(said)
    sentence = (
        f"On {_setting(group, '')}, {shown or 'no run has ' + headline.column.title}. No two "
        "strategies were run under the same conditions, so there is no best."
    )
    sentence += _unbound(named, named, labels)
    remarks = _remarks(headline, named or cells, named, labels)
    return Answer(group.table.title, sentence, remarks, headline, "", ())


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
    base = f"{headline.number(mean_of(baseline, headline))} under {labels[id(baseline)]}"
    if not best:
        return f"On {setting}, no run has the metric {headline.column.title!r}."
    if any(cell is baseline for cell in best):
        others = [labels[id(cell)] for cell in best if cell is not baseline]
        same = f" ({_enumerated(others)}: the same)" if others else ""
        n = baseline.row.cells[headline.column.metric].n
        return (
            f"On {setting}, no mean is ahead of the baseline's, {labels[id(baseline)]}{same}: "
            f"{headline.number(mean_of(baseline, headline))} {headline.says} ({repetitions(n)})."
        )
    first, *ties = [labels[id(cell)] for cell in best]
    same = f" ({_enumerated(ties)}: the same)" if ties else ""
    found = next(each for each in differences if each.label == first)
    return (
        f"On {setting}, {headline.number(mean_of(best[0], headline))} {headline.says} under "
        f"{first}{same}, against {base}: {difference_in_words(found, headline, len(differences))}."
        f"{_best_of_all(group, best[0], headline)}"
    )


def _best_of_all(group: Group, best: Cell, headline: Headline) -> str:
    """A sentence about the best row under the same conditions, where that is none of those
    compared."""
    alike = [cell for cell in group.complete if cell.conditions == best.conditions]
    overall = _best_alike(group, best, headline)
    if any(cell is best for cell in overall):
        return ""
    label = dict(zip(map(id, group.complete), labels_of(group.complete), strict=True))
    value = headline.number(mean_of(overall[0], headline))
    which = "all" if len(alike) == len(group.complete) else "the comparable"
    return f" The best mean of {which} {len(alike)} rows is {value}, of {label[id(overall[0])]}."


def _best_alike(group: Group, best: Cell, headline: Headline) -> list[Cell]:
    alike = [cell for cell in group.complete if cell.conditions == best.conditions]
    return _best(alike, headline)


def _setting(group: Group, where: str) -> str:
    _, *rest = group.table.title.split(" · ")
    return f"{rest[0]} ({', '.join([*rest[1:], *([where] if where else [])])})"


def _enumerated(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _of_own(
    cells: Sequence[Cell],
    named: Sequence[Cell],
    differences: Sequence[Difference],
    headline: Headline,
    labels: dict[int, str],
) -> str:
    """A sentence about each allocator of the reader's own that is not `named` already."""
    said = ""
    for cell in cells:
        is_own = ".py" in str(cell.rows["allocator"].iloc[0])
        found = next((each for each in differences if each.label == labels[id(cell)]), None)
        if is_own and found is not None and not any(cell is each for each in named):
            value = headline.number(mean_of(cell, headline))
            how = difference_in_words(found, headline, len(differences))
            said += f" Under {found.label}, {value}: {how}."
    return said


def _unbound(named: Sequence[Cell], best: Sequence[Cell], labels: dict[int, str]) -> str:
    """What ends the answer where one of `best` is not memory-bound: all of `named` that are not."""
    if all(cell.row.is_memory_bound for cell in best):
        return ""
    return f" Not memory-bound: {_not_bound(named, labels)}"


def _not_bound(cells: Sequence[Cell], labels: dict[int, str]) -> str:
    unbound = [cell for cell in cells if not cell.row.is_memory_bound]
    if not unbound:
        return ""
    names = dict.fromkeys(labels[id(cell)] for cell in unbound)
    head = (
        f"{_enumerated(list(names))}. The queue waited for memory less than half of the time "
        "there, the drain left aside"
    )
    if all(cell.row.is_relieved for cell in unbound):
        return f"{head}, while it does under another strategy: {RELIEVED}."
    return f"{head}, so the figure says little about allocation."


def _remarks(
    headline: Headline, cells: Sequence[Cell], best: Sequence[Cell], labels: dict[int, str]
) -> tuple[str, ...]:
    """Of `cells`, less what the answer itself says of `best`."""
    remarks = []
    unique = list({id(cell): cell for cell in cells}.values())
    if all(cell.row.is_memory_bound for cell in best) and (said := _not_bound(cells, labels)):
        remarks.append(f"not memory-bound: {said}")
    growing = [labels[id(cell)] for cell in unique if cell.row.queue_grows]
    if growing and headline is LATENCY:
        remarks.append(
            f"the queue grows: {_enumerated(growing)}. Requests come faster than they are "
            "served, so the latency is that of a run of this length."
        )
    if headline is not USED and (cells[0].rows["executor"] == "simulated").all():
        remarks.append("Simulated times: see the notes below the table.")
    return tuple(remarks)
