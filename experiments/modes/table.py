"""The equality table: on a terminal, in Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.modes.cases import PAGE_SIZE
from experiments.modes.runs import Cell
from experiments.table_output import PIPE_WIDTH, markdown_cell
from harness.config import AllocatorConfig
from harness.runs.jobs import strategy_label

_EXEMPT = "†"
"""Beside a count: the tokens are right, but the strategy does not do what names the row."""

_FAILED = "!"
"""Beside a count that proves nothing, and before the line that says why."""


def print_cells(cells: Sequence[Cell], console: Console) -> None:
    """The table, in as many parts as the width asks for, its notes and what went wrong."""
    if not console.is_terminal:  # it would be taken for 80 columns
        console = Console(file=console.file, width=PIPE_WIDTH, markup=False)
    console.print(Text(_title(cells), style="bold"))
    for table in _tables(cells, console):
        console.print(table, soft_wrap=True)
    for note in _notes(cells):
        console.print(Text(f"{_EXEMPT} {note}", style="dim"))
    for failure in failures(cells):
        console.print(Text(f"{_FAILED} {failure}", style="bold red"), soft_wrap=True)


def to_markdown(cells: Sequence[Cell]) -> str:
    """The same as a Markdown page."""
    strategies = strategies_of(cells)
    lines = [
        ["decoding", *(markdown_cell(strategy_label(each)) for each in strategies), "in a run"],
        ["---", *("---:" for _ in strategies), "---"],
    ]
    for mode in _modes(cells):
        counts = [_count(_of(cells, mode, strategy)) for strategy in strategies]
        lines.append([mode, *counts, _happened(cells, mode)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    items = [f"{_EXEMPT} {note}" for note in _notes(cells)]
    items += [f"{_FAILED} {failure}" for failure in failures(cells)]
    listed = "".join(f"- {item}\n" for item in items)
    return f"## {_title(cells)}\n\n{table}\n\n{listed}\n{closing_line(cells)}\n"


def to_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """A row a cell: one mode of one model under one strategy."""
    lines = []
    for cell in cells:
        line: dict[str, object] = {
            "model": cell.family,
            "decoding": cell.mode.name,
            "strategy": strategy_label(cell.strategy),
            "equal": cell.num_equal,
            "requests": cell.num_requests,
            "happened": cell.num_happened,
            "unit": cell.mode.unit,
            "error": cell.error,
        }
        difference = cell.difference._asdict() if cell.difference else {}
        for field in ("request_id", "sequence", "position", "expected_id", "found_id", "margin"):
            line[f"first_difference_{field}"] = difference.get(field)
        lines.append(line)
    return pd.DataFrame(lines)


def failures(cells: Sequence[Cell]) -> list[str]:
    """A line for each cell that is no proof: the first difference, the error, or both."""
    lines = []
    for cell in cells:
        reasons = [str(reason) for reason in (cell.difference, cell.error) if reason]
        if reasons:
            where = f"{cell.family}, {cell.mode.name}, {strategy_label(cell.strategy)}"
            lines.append(f"{where}: {'; '.join(reasons)}")
    return lines


def closing_line(cells: Sequence[Cell]) -> str:
    """What all of it comes to."""
    num_requests = sum(cell.num_requests for cell in cells)
    shown = (
        f"{len(_modes(cells))} modes x {len(strategies_of(cells))} strategies on "
        f"{', '.join(_families(cells))}, {num_requests:,} requests"
    )
    failed = sum(not cell.is_proof for cell in cells)
    if not failed:
        return f"identical tokens: {shown}"
    unequal = num_requests - sum(cell.num_equal for cell in cells)
    return (
        f"FAILED: {failed} of {len(cells)} runs, {unequal:,} requests not as the reference; {shown}"
    )


def strategies_of(cells: Sequence[Cell]) -> list[AllocatorConfig]:
    """The columns, in order."""
    unique: list[AllocatorConfig] = []
    for cell in cells:
        if cell.strategy not in unique:
            unique.append(cell.strategy)
    return unique


def _title(cells: Sequence[Cell]) -> str:
    return (
        "requests equal to transformers' generate, token for token · "
        f"{', '.join(_families(cells))} · fp32 · page_size {PAGE_SIZE}"
    )


def _tables(cells: Sequence[Cell], console: Console) -> list[Table]:
    """One table, or those of both halves of the strategies where it is too wide."""
    strategies = strategies_of(cells)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("decoding", no_wrap=True)
    for strategy in strategies:
        table.add_column(_head(strategy), justify="right", no_wrap=True)
    table.add_column("in a run", no_wrap=True)
    for mode in _modes(cells):
        row = [_of(cells, mode, strategy) for strategy in strategies]
        texts = [Text(_count(some), style="" if _is_proof(some) else "bold red") for some in row]
        table.add_row(Text(mode), *texts, Text(_happened(cells, mode), style="dim"))
    unbounded = console.options.update(width=10_000)
    if len(strategies) == 1 or console.measure(table, options=unbounded).maximum <= console.width:
        return [table]
    half = strategies[: (len(strategies) + 1) // 2]
    left = [cell for cell in cells if cell.strategy in half]
    right = [cell for cell in cells if cell.strategy not in half]
    return _tables(left, console) + _tables(right, console)


def _notes(cells: Sequence[Cell]) -> list[str]:
    """What the marked cells did instead; with the models where it was not on all of them."""
    notes = []
    for mode in _modes(cells):
        names = []
        for strategy in strategies_of(cells):
            some = _of(cells, mode, strategy)
            without = [cell for cell in some if _is_exempt(cell)]
            where = ", ".join(cell.family for cell in without)
            if without:
                label = strategy_label(strategy)
                names.append(label if len(without) == len(some) else f"{label} ({where})")
                otherwise = without[0].mode.otherwise
        if names:
            notes.append(f"{mode}: {otherwise}: {', '.join(names)}")
    return notes


def _count(cells: Sequence[Cell]) -> str:
    text = f"{sum(c.num_equal for c in cells)}/{sum(c.num_requests for c in cells)}"
    mark = _EXEMPT if any(map(_is_exempt, cells)) else " "
    return text + (mark if _is_proof(cells) else _FAILED)


def _happened(cells: Sequence[Cell], mode: str) -> str:
    """How often the mode happened in a run, from the least to the most, where it did."""
    counts = [c.num_happened for c in cells if c.mode.name == mode and c.num_happened]
    unit = next(c.mode.unit for c in cells if c.mode.name == mode)
    if not counts:
        return f"0 {unit}"
    least, most = min(counts), max(counts)
    return f"{least if least == most else f'{least} to {most}'} {unit}"


def _is_proof(cells: Sequence[Cell]) -> bool:
    return all(cell.is_proof for cell in cells)


def _is_exempt(cell: Cell) -> bool:
    return cell.is_proof and not cell.num_happened


def _of(cells: Sequence[Cell], mode: str, strategy: AllocatorConfig) -> list[Cell]:
    return [cell for cell in cells if cell.mode.name == mode and cell.strategy == strategy]


def _modes(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.mode.name for cell in cells))


def _families(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.family for cell in cells))


def _head(strategy: AllocatorConfig) -> str:
    """The label, a word a line; of a file its name alone."""
    return Path(strategy_label(strategy)).name.replace(":", "\n").replace(" ", "\n")
