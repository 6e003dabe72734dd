"""ServeGen's parametric clients (arXiv 2505.09999): sampled with a seed, then superposed.

A client is chunk-N-trace.csv (window start in s, requests/s, CV of the gaps, family, shape,
scale) with chunk-N-dataset.json (per 6 h: distributions of input and output tokens). Clients
without the second file have no lengths and are left out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.numbers import integer, parse_json, real, shown
from harness.workloads.streams import Floats, Ints, Stream, rng
from harness.workloads.trace_row import (
    MOST_SECONDS,
    MOST_TOKENS,
    Line,
    ReadContext,
    TraceRow,
    text_lines,
)

NOTE = "(synthetic: sampled from fitted clients)"
FAMILIES = ("Gamma", "Weibull", "")
_WINDOWS = 100_000
_HIGHEST_RATE = 1e6
_SMALLEST_SHAPE, _LARGEST_SHAPE = 1e-6, 1e6
"""Of the gamma and Weibull distributions: beyond it all gaps are one, or there is one gap."""

_MOST_ROWS = 10_000_000
_KEY = re.compile(r"([-+.\w]+)\s*:")


class Window(NamedTuple):
    """One client's arrivals in one stretch of time."""

    start_s: float
    rate: float
    family: str
    shape: float


class Distribution(NamedTuple):
    """Token counts and their cumulated probabilities."""

    values: Ints
    cumulated: Floats


class Client(NamedTuple):
    """Windows, and from which second on which (input, output) lengths hold."""

    number: int
    windows: tuple[Window, ...]
    lengths: tuple[tuple[float, Distribution, Distribution], ...]


def read(path: Path, context: ReadContext) -> Iterator[TraceRow]:
    """Sampled rows in order of arrival, over all windows of the folder `path`."""
    clients = [client for client in _clients(path) if client.lengths]
    if not clients:
        raise ValueError(f"{path}: no chunk-N-trace.csv with a chunk-N-dataset.json beside it")
    starts = sorted({window.start_s for client in clients for window in client.windows})
    if len(starts) < 2:
        raise ValueError(f"{path}: the length of a window needs two window starts, found {starts}")
    by_start = [{window.start_s: window for window in client.windows} for client in clients]
    ends = [*starts[1:], 2 * starts[-1] - starts[-2]]
    lengths_s = dict(
        zip(starts, (end - start for start, end in zip(starts, ends, strict=True)), strict=True)
    )
    promised = sum(w.rate * lengths_s[w.start_s] for client in clients for w in client.windows)
    if promised > _MOST_ROWS:
        raise ValueError(
            f"{path}: the rates of its windows make {promised:.3g} requests: at most "
            f"{_MOST_ROWS:,} can be sampled"
        )
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        parts = [
            sample_window(client, windows[start], end - start, context.seed, index)
            for client, windows in zip(clients, by_start, strict=True)
            if start in windows
        ]
        columns = np.concatenate(parts)
        for arrival, prompt, output in columns[np.argsort(columns[:, 0], kind="stable")].tolist():
            yield TraceRow(int(prompt), int(output), arrival)


def sample_window(client: Client, window: Window, length_s: float, seed: int, index: int) -> Floats:
    """Rows of (arrival, prompt, output): as many as the window's rate says.

    The count is rate x length, its fraction a coin toss; gaps of the family and shape are
    stretched to fill the window, because the fitted scale follows bursts and misses the rate.
    """
    draw = rng(seed, Stream.CLIENTS, client.number * _WINDOWS + index)
    count = int(window.rate * length_s + draw.random())
    if window.family == "Gamma":
        gaps = draw.gamma(window.shape, size=count + 1)
    elif window.family == "Weibull":
        gaps = draw.weibull(window.shape, size=count + 1)
    else:
        gaps = draw.exponential(size=count + 1)
    if gaps.sum() <= 0:  # a tiny shape underflows
        gaps = np.ones(count + 1)
    times = window.start_s + np.cumsum(gaps)[:-1] * (length_s / gaps.sum())
    _, prompts, outputs = min(
        client.lengths,
        key=lambda entry: (entry[0] > window.start_s, abs(entry[0] - window.start_s)),
    )
    return np.column_stack([times, _draw(prompts, draw, count), _draw(outputs, draw, count)])


def _draw(distribution: Distribution, draw: np.random.Generator, count: int) -> Ints:
    cumulated = distribution.cumulated
    picks = np.searchsorted(cumulated, draw.random(count) * cumulated[-1], side="right")
    values: Ints = distribution.values[np.minimum(picks, len(cumulated) - 1)]
    return values


def _clients(path: Path) -> Iterator[Client]:
    if not path.is_dir():
        raise ValueError(f"{path}: servegen needs a folder of chunk-N-trace.csv and -dataset.json")
    datasets = {}
    for dataset in sorted(
        [*path.glob("chunk-*-dataset.json"), *path.glob("chunk-*-dataset.json.gz")]
    ):
        if found := re.fullmatch(r"chunk-([0-9]{1,9})-dataset\.json(\.gz)?", dataset.name):
            datasets[int(found.group(1))] = dataset, found.group(1)
    for number, (dataset, digits) in sorted(datasets.items()):
        for name in (f"chunk-{digits}-trace.csv", f"chunk-{digits}-trace.csv.gz"):
            if (path / name).is_file():
                yield Client(number, tuple(_windows(path / name)), tuple(_lengths(dataset)))
                break


def _windows(path: Path) -> Iterator[Window]:
    lines = csv.reader(text_lines(path))
    for cells in lines:
        line = Line(path, lines.line_num)
        if not cells:
            continue
        if len(cells) != 6:
            raise line.malformed(f"{len(cells)} fields instead of 6")
        family = cells[3]
        if family not in FAMILIES:
            raise line.malformed(f"family {shown(family)} is none of Gamma, Weibull")
        start_s = line.seconds(cells[0], "window start")
        rate = line.real(cells[1], "rate", 0.0, _HIGHEST_RATE)
        lowest = _SMALLEST_SHAPE if rate > 0 and family else 0.0
        shape = line.real(cells[4] or 0, "shape", lowest, _LARGEST_SHAPE)
        yield Window(start_s, rate, family, shape)


def _lengths(path: Path) -> Iterator[tuple[float, Distribution, Distribution]]:
    try:
        entries = parse_json("".join(text_lines(path)))
        if not isinstance(entries, dict):
            raise ValueError(
                f"an object of second: distributions was expected, not {shown(entries)}"
            )
        for start, entry in entries.items():
            lengths = _entry(start, entry)
            if lengths is not None:
                yield lengths
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def _entry(start: str, entry: object) -> tuple[float, Distribution, Distribution] | None:
    """From which second on which lengths hold; None where there are none."""
    where = f"entry {shown(start)}"
    if not isinstance(entry, dict) or not {"input_tokens", "output_tokens"} <= set(entry):
        raise ValueError(f"{where}: is no object with input_tokens and output_tokens")
    start_s = real(start, f"{where}: second", -MOST_SECONDS, MOST_SECONDS)
    prompts = _distribution(entry["input_tokens"], f"{where}: input_tokens")
    outputs = _distribution(entry["output_tokens"], f"{where}: output_tokens")
    return (start_s, prompts, outputs) if prompts and outputs else None


def _distribution(text: object, name: str) -> Distribution | None:
    """A string-encoded {tokens: probability}; None for the empty one."""
    if not isinstance(text, str):
        raise ValueError(f"{name}={shown(text)} is not a text")
    try:
        table = parse_json(_KEY.sub(r'"\1":', text))
    except ValueError as error:
        raise ValueError(f"{name}={shown(text)}: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{name}={shown(text)}: an object of tokens: probability was expected")
    if not table:
        return None
    values = [integer(key, f"{name}: tokens", 0, MOST_TOKENS) for key in table]
    shares = [real(share, f"{name}: probability", 0.0, 1e9) for share in table.values()]
    cumulated = np.cumsum(np.array(shares, dtype=np.float64))
    if not cumulated[-1] > 0:
        raise ValueError(f"{name}: probabilities sum to nothing")
    return Distribution(np.array(values, dtype=np.int64), cumulated)
