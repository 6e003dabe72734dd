"""ServeGen's parametric clients (arXiv 2505.09999): sampled with a seed, then superposed.

A client is chunk-N-trace.csv (window start in s, requests/s, CV of the gaps, family, shape,
scale) with chunk-N-dataset.json (per 6 h: distributions of input and output tokens). Clients
without the second file have no lengths and are left out.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.workloads.streams import Floats, Ints, Stream, rng
from harness.workloads.trace_row import ReadContext, TraceRow, malformed

NOTE = "(synthetic: sampled from fitted clients)"
FAMILIES = ("Gamma", "Weibull", "")
_WINDOWS = 100_000
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
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        parts = [
            sample_window(client, windows[start], end - start, context.seed, index)
            for client, windows in zip(clients, by_start, strict=True)
            if start in windows
        ]
        columns = np.concatenate(parts)
        for arrival, prompt, output in columns[np.argsort(columns[:, 0], kind="stable")].tolist():
            yield TraceRow(max(1, int(prompt)), max(1, int(output)), arrival)


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
    numbered = []
    for dataset in path.glob("chunk-*-dataset.json"):
        middle = dataset.name.removeprefix("chunk-").removesuffix("-dataset.json")
        if middle.isdigit() and (path / f"chunk-{middle}-trace.csv").is_file():
            numbered.append((int(middle), dataset))
    for number, dataset in sorted(numbered):
        windows = tuple(_windows(path / f"chunk-{number}-trace.csv"))
        yield Client(number, windows, tuple(_lengths(dataset)))


def _windows(path: Path) -> Iterator[Window]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        for cells in lines:
            number = lines.line_num
            if len(cells) != 6:
                raise malformed(path, number, f"{len(cells)} fields instead of 6")
            if cells[3] not in FAMILIES:
                raise malformed(path, number, f"family {cells[3]!r} is none of Gamma, Weibull")
            try:
                start_s, rate, shape = float(cells[0]), float(cells[1]), float(cells[4])
            except ValueError as error:
                raise malformed(path, number, str(error)) from None
            if rate < 0 or (rate > 0 and cells[3] and shape <= 0):
                raise malformed(path, number, f"rate {rate:g} or shape {shape:g} is out of range")
            yield Window(start_s, rate, cells[3], shape)


def _lengths(path: Path) -> Iterator[tuple[float, Distribution, Distribution]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise malformed(path, error.lineno, f"not JSON: {error.msg}") from None
    for start, entry in entries.items():
        try:
            prompts = _distribution(entry["input_tokens"])
            outputs = _distribution(entry["output_tokens"])
            start_s = float(start)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: entry {start!r}: {type(error).__name__}: {error}") from None
        if prompts and outputs:
            yield start_s, prompts, outputs


def _distribution(text: str) -> Distribution | None:
    """A string-encoded {value: probability}; None for the empty one."""
    table = json.loads(_KEY.sub(r'"\1":', text))
    if not table:
        return None
    values = np.array([int(float(key)) for key in table], dtype=np.int64)
    cumulated = np.cumsum(np.array(list(table.values()), dtype=np.float64))
    if not cumulated[-1] > 0:
        raise ValueError("probabilities sum to nothing")
    return Distribution(values, cumulated)
