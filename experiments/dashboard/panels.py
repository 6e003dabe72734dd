"""The panels, by section. Every key that one shows is one of `harness.tracking.keys`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import wandb_workspaces.reports.v2 as wr

from experiments.plotting import CLASS_LABELS
from harness.measure.ledger import CLASSES
from harness.tracking import keys

STRATEGY, PAGE_SIZE = f"{keys.SETTING}.strategy", f"{keys.SETTING}.page_size"

CLASS_SHARES = tuple(f"{name}_share" for name in CLASSES)
"""Metrics: the classes' time-weighted means."""

PERCENTILES = ("p50", "p90", "p95", "p99")

_WIDE, _HALF, _THIRD = 24, 12, 8
_HEIGHT = 8


class PanelSection(NamedTuple):
    """Panels that stand together under a name."""

    name: str
    panels: list[wr.interface.PanelTypes]


def sections() -> list[PanelSection]:
    """All of them, in order."""
    return [
        PanelSection("Ledger classes over steps", _over_steps()),
        PanelSection("Waste by class", _waste()),
        PanelSection("Page size", _page_size()),
        PanelSection("Latency", _latency()),
        PanelSection("Pressure on memory", _pressure()),
        PanelSection("Runs beside each other", _runs()),
    ]


def figures(names: Sequence[str]) -> wr.MediaBrowser:
    """Figures of an aggregate run. names: without suffix."""
    return wr.MediaBrowser(
        title="Figures",
        media_keys=[keys.FIGURES + name for name in names],
        num_columns=min(2, max(1, len(names))),
        layout=wr.Layout(w=_WIDE, h=3 * _HEIGHT),
    )


def table(name: str) -> wr.WeavePanelSummaryTable:
    """A table of a run, over the whole width of a report."""
    return wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=_WIDE, h=2 * _HEIGHT))


def _over_steps() -> list[wr.interface.PanelTypes]:
    return [
        _line(CLASS_LABELS[name], keys.SHARES[name], "share of the pool", range_y=(0, 1))
        for name in CLASSES
    ]


def _waste() -> list[wr.interface.PanelTypes]:
    wasted = CLASS_SHARES[1:]
    return [
        _bars("Where the pool goes, mean share by class", wasted, _HALF),
        _bars("Utilisation: share of the pool that holds tokens", ("utilisation",), _HALF),
        _bars("Tokens in pages that are mapped", ("token_of_mapped",), _THIRD),
        _bars("Idle slot-seconds a token", ("idle_slot_s_per_token",), _THIRD),
        _bars("Pages saved by sharing", ("sharing_saved",), _THIRD),
    ]


def _page_size() -> list[wr.interface.PanelTypes]:
    shown = {
        "output_tokens_per_s": "Throughput against page size, output tokens/s",
        "utilisation": "Utilisation against page size",
        "output_tokens_per_s_per_gib": "Throughput a GiB of KV against page size",
    }
    return [
        wr.ScatterPlot(
            title=title,
            x=wr.Config(PAGE_SIZE),
            y=wr.SummaryMetric(metric),
            log_x=True,
            layout=wr.Layout(w=_THIRD, h=_HEIGHT),
        )
        for metric, title in shown.items()
    ]


def _latency() -> list[wr.interface.PanelTypes]:
    names = {"ttft": "TTFT", "tpot": "TPOT", "itl": "Gap between tokens (ITL)", "e2e": "E2E"}
    panels: list[wr.interface.PanelTypes] = [
        _bars(f"{title}, ms", [f"{name}_{p}_ms" for p in PERCENTILES], _HALF)
        for name, title in names.items()
    ]
    normalised = ["normalised_latency_ms", *(f"normalised_latency_{p}_ms" for p in ("p50", "p99"))]
    return [
        *panels,
        _bars("Normalised latency, ms a token: mean, median, p99", normalised, _HALF),
        _bars("Queue delay, ms: mean, p99", ("queue_delay_ms", "queue_delay_p99_ms"), _HALF),
    ]


def _pressure() -> list[wr.interface.PanelTypes]:
    return [
        _bars("Share of the time that the queue was refused memory", ("saturated_share",), _THIRD),
        _bars("Requests at a time", ("batched_requests",), _THIRD),
        _bars("Preemptions", ("preemptions",), _THIRD),
        _line("Refused memory (1 is yes)", keys.SATURATED, "", range_y=(0, 1)),
        _line("Running", keys.ENGINE["num_running"], "requests"),
        _line("Waiting", keys.ENGINE["num_waiting"], "requests"),
        _line("Tokens a step", keys.TOKENS, "tokens"),
    ]


def _runs() -> list[wr.interface.PanelTypes]:
    return [
        wr.RunComparer(diff_only="split", layout=wr.Layout(w=_WIDE, h=2 * _HEIGHT)),
        wr.MediaBrowser(
            title="Memory over time",
            media_keys=[keys.MEMORY],
            num_columns=2,
            layout=wr.Layout(w=_WIDE, h=2 * _HEIGHT),
        ),
        wr.WeavePanelSummaryTable(table_name=keys.REQUESTS),
    ]


def _line(
    title: str, key: str, unit: str, range_y: tuple[float | None, float | None] = (None, None)
) -> wr.LinePlot:
    """A line a strategy: the mean of its runs, and their range."""
    return wr.LinePlot(
        title=title,
        x=wr.Metric(keys.STEP),
        y=[wr.Metric(key)],
        title_x="engine step",
        title_y=unit,
        range_y=range_y,
        groupby=wr.Config(STRATEGY),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        smoothing_type="none",
        layout=wr.Layout(w=_THIRD, h=_HEIGHT),
    )


def _bars(title: str, metrics: Sequence[str], width: int) -> wr.BarPlot:
    """A bar a metric and strategy: the mean of its runs."""
    return wr.BarPlot(
        title=title,
        metrics=[wr.Metric(name) for name in metrics],
        groupby=wr.Config(STRATEGY),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=100,
        max_bars_to_show=100,
        layout=wr.Layout(w=width, h=_HEIGHT),
    )
