"""A comparison on a terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.comparison.comparison import CANNOT_TELL, Comparison, Side
from experiments.comparison.sections import Section, change_in_words, sections, where
from experiments.table_output import markdown_cell

_STYLES = {
    "noise": "dim",
    "no difference": "dim",
    "within the noise": "dim",
    "better": "green",
    "worse": "bold red",
    "too few runs to tell": "dim",
}
_MOST_NAMED = 5


def print_comparison(
    found: Comparison, console: Console, *, every_cell: bool = False, exact: bool = False
) -> None:
    """Tables that fit the console, and the answer in one sentence."""
    for letter, side in (("A", found.before), ("B", found.after)):
        console.print(Text(f"{letter}  {describe(side)}"))
    for section in sections(found, every_cell=every_cell):
        console.print()
        console.print(Text(section.title, style="bold"))
        if section.rows:
            console.print(_rich_table(section))
        for note in section.notes:
            console.print(Text(note))
    console.print()
    console.print(Text(answer(found, exact=exact), style="bold"))


def describe(side: Side) -> str:
    """A study with what it was asked."""
    record = side.study.record
    runs = len(side.study.jobs)
    count = "1 run" if runs == 1 else f"{runs} runs"
    return f"{side.name}: {count}, {record.updated_at[:16].replace('T', ' ')} UTC"


def answer(found: Comparison, *, exact: bool = False) -> str:
    """What it comes to, in one sentence."""
    worse = [_named(each.metric.column.title, each.cell, change_in_words(each.change))
             for each in found.worse]  # fmt: skip
    worse += [f"a run that failed in {each.cell}" for each in found.outcomes if each.is_worse]
    better = [_named(each.metric.column.title, each.cell, change_in_words(each.change))
              for each in found.better]  # fmt: skip
    parts = [
        f"{word}: {_listed(names)}"
        for word, names in (("worse", worse), ("better", better))
        if names
    ]
    if not parts:
        cannot = found.exit_status(exact=False) == CANNOT_TELL
        parts = ["too little to tell" if cannot else "no difference that counts"]
    if found.too_noisy:
        titles = _listed(found.too_noisy)
        parts.append(f"noise above 100 %, where a doubling could not be seen: {titles}")
    if found.lacking:
        parts.append(f"B lacks {_listed(found.lacking)}")
    if found.other_requests:
        parts.append(f"other requests were served in {_listed(found.other_requests)}")
    if not found.are_counts_equal:
        parts.append("ledger counts differ" + (", which counts (--exact)" if exact else ""))
    return "B is " + "; ".join(parts) if worse or better else _sentence("; ".join(parts))


def to_markdown(found: Comparison, *, exact: bool = False) -> str:
    """Every cell, in tables."""
    lines = [
        f"# {found.before.name} and {found.after.name}",
        "",
        answer(found, exact=exact) + ".",
        "",
    ]
    lines += [
        f"- {letter}: {describe(side)}"
        for letter, side in (("A", found.before), ("B", found.after))
    ]
    for section in sections(found, every_cell=True):
        lines += ["", f"## {section.title}", ""]
        if section.rows:
            lines.append("| " + " | ".join(section.heads) + " |")
            bars = [
                "---" if index in section.text else "---:" for index in range(len(section.heads))
            ]
            lines.append("| " + " | ".join(bars) + " |")
            lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in section.rows]
            lines += [""] if section.notes else []
        lines += [f"{note}  " for note in section.notes[:-1]] + list(section.notes[-1:])
    return "\n".join(lines) + "\n"


def to_csv(found: Comparison) -> str:
    """A row a metric and cell, in the metrics' own units; shares and changes are fractions."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_metric_values(found)[0]) if found.findings else ["metric"])
    writer.writeheader()
    writer.writerows(_metric_values(found))
    return text.getvalue()


def to_json(found: Comparison, *, exact: bool = False) -> str:
    """Everything; what is not known is null."""
    matching = found.matching
    values = {
        "before": _side(found.before),
        "after": _side(found.after),
        "answer": answer(found, exact=exact),
        "exit_status": found.exit_status(exact=exact),
        "settings": [each._asdict() for each in matching.changes],
        "sampling": [each._asdict() for each in matching.sampling],
        "environment": [each._asdict() for each in found.surroundings.changes],
        "only_before": matching.only_before,
        "only_after": matching.only_after,
        "unpaired_seeds": [each._asdict() for each in found.unpaired],
        "threshold": found.threshold,
        "is_timed": found.is_timed,
        "is_noisy": found.is_noisy,
        "same_run_ids": found.same_addresses,
        "metrics": _metric_values(found),
        "counts": [
            {
                **{k: v for k, v in each._asdict().items() if k != "counts"},
                "counts": [count._asdict() for count in each.counts],
            }
            for each in found.counts
        ],
        "outcomes": [each._asdict() for each in found.outcomes],
    }
    return json.dumps(_finite(values), indent=1) + "\n"


def _metric_values(found: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "metric": each.metric.name,
            "cell": where(each.cell),
            "higher_is_better": each.metric.higher_is_better,
            "before": each.before,
            "after": each.after,
            "change": each.change.mean,
            "low": each.change.low,
            "high": each.change.high,
            "pairs": each.change.num_pairs,
            "noise": each.noise,
            "p_value": each.p_value,
            "verdict": each.verdict,
            "counts": found.counts_against(each),
        }
        for each in found.findings
    ]


def _side(side: Side) -> dict[str, Any]:
    record = side.study.record
    return {
        "name": side.name,
        "study_id": record.study_id,
        "experiment": record.experiment,
        "arguments": record.arguments,
        "updated_at": record.updated_at,
        "run_ids": [job.run_id for job in side.study.jobs],
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _rich_table(section: Section) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")
    for index, head in enumerate(section.heads):
        is_text = index in section.text
        table.add_column(
            head, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold"
        )
    for row in section.rows:
        style = next((style for word, style in _STYLES.items() if row[-1].startswith(word)), None)
        table.add_row(*(Text(text) for text in row[:-1]), Text(row[-1], style=style or ""))
    return table


def _cell(text: str) -> str:
    indent = len(text) - len(text.lstrip())
    return "&nbsp;" * indent + markdown_cell(text.lstrip())


def _named(title: str, cell: str, change: str) -> str:
    return f"{title} in {where(cell)} ({change})"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _sentence(text: str) -> str:
    """With a capital first; names keep theirs."""
    return text[:1].upper() + text[1:]
