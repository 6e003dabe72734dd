"""What all figures share: colours, labels, and files with their data and provenance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.checks import SHARES
from experiments.interference import count_disturbed
from experiments.provenance import provenance
from harness.measure.ledger import CLASSES
from harness.measure.statistics import t_interval
from harness.runs.half_written import replacing, write_whole
from harness.runs.jobs import Job
from harness.runs.stored_text import for_spreadsheets

CLASS_COLOURS = {
    "token": "#0072B2",
    "reserved": "#56B4E9",
    "over_reserved": "#E69F00",
    "size_class": "#D55E00",
    "tail": "#F0E442",
    "cached": "#009E73",
    "withheld": "#CC79A7",
    "stranded": "#4D4D4D",
    "refused": "#999999",
    "free": "#EDEDED",
}

CLASS_LABELS = {
    "token": "token",
    "reserved": "reserved (used later)",
    "over_reserved": "over-reserved (never used)",
    "size_class": "size-class round-up",
    "tail": "rest of last page",
    "cached": "cached",
    "withheld": "withheld (watermark)",
    "stranded": "stranded (fragmented)",
    "refused": "refused (policy, alignment)",
    "free": "free",
}

STRATEGY_COLOURS = {
    "contiguous": "#D55E00",
    "paged": "#0072B2",
    "paged_cow": "#009E73",
    "paged_prefix": "#CC79A7",
}

EXPECTED_COLOURS = {"max": "#D55E00", "pow2": "#E69F00", "oracle": "#666666"}

FIT_DASHES = {"buddy": (4, 1.5), "first_fit": (1.2, 1.2), "best_fit": (6, 1.5, 1.2, 1.5)}

MARKERS = {"paged": "o", "paged_cow": "^", "paged_prefix": "s"}

WIDTHS = {"paged": 1.9, "paged_cow": 1.25, "paged_prefix": 0.7}
"""Strategies that often coincide are drawn thinner one after the other, so that all show."""


def line_width(allocator: str = "", otherwise: float = 1.0) -> float:
    """Points of an allocator's line in the style at hand. otherwise: times an ordinary line, of
    what is not in `WIDTHS`."""
    return float(plt.rcParams["lines.linewidth"]) * WIDTHS.get(allocator, otherwise)


def save(
    figure: Figure, name: str, folder: Path, points: pd.DataFrame, jobs: Sequence[Job]
) -> list[Path]:
    """NAME.pdf, NAME.png, NAME.svg, NAME.csv (the plotted points), NAME.json (their provenance);
    they replace earlier ones together, once all are written.

    The same data give the same bytes, on other machines too.
    """
    csv, origin = folder / f"{name}.csv", folder / f"{name}.json"
    with replacing(csv) as new_points, replacing(origin) as new_origin:
        new_points.write_text(_as_csv(points))
        new_origin.write_text(json.dumps(provenance(jobs), indent=1) + "\n")
        paths = save_pictures(figure, name, folder)
    return [*paths, csv, origin]


def write_points(points: pd.DataFrame, path: Path) -> None:
    """As CSV, numbers to twelve digits: in those beyond, processors differ in their sums."""
    write_whole(path, _as_csv(points))


def _as_csv(points: pd.DataFrame) -> str:
    return str(for_spreadsheets(points).to_csv(index=False, float_format="%.12g"))


def save_pictures(figure: Figure, name: str, folder: Path) -> list[Path]:
    """NAME.pdf, NAME.png and NAME.svg, without a date or the version of what wrote them."""
    return write_pictures(figure, [folder / f"{name}.{end}" for end in _UNDATED])


_UNDATED: Mapping[str, Mapping[str, None]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}
"""Metadata that is left out, by format."""


def write_pictures(figure: Figure, paths: Sequence[Path]) -> list[Path]:
    """`figure` in the formats of `paths`, which replace earlier ones together; it is closed."""
    with ExitStack() as stack:
        for path in paths:
            kind = path.suffix.removeprefix(".")
            partial = stack.enter_context(replacing(path))
            figure.savefig(partial, format=kind, metadata=_UNDATED[kind])
    plt.close(figure)
    return list(paths)


def thin_line() -> float:
    """Points of a reference's line in the style at hand."""
    return line_width(otherwise=0.75)


def shade_interval(
    axes: Axes, point: pd.Series, metric: str, colour: str, scale: float = 1.0
) -> None:
    """The 95 % interval of a reference that is drawn as a line across, where it has one."""
    half_width = point[f"{metric}_ci"]
    if math.isfinite(half_width):
        low, high = point[metric] - half_width, point[metric] + half_width
        axes.axhspan(scale * low, scale * high, color=colour, alpha=0.12, linewidth=0, zorder=0)


def means(rows: pd.DataFrame, keys: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Mean of each metric by `keys`, in order of appearance, with `METRIC_ci` half-widths."""
    lines = []
    for values, group in rows.groupby(list(keys), sort=False, dropna=False):
        line = dict(zip(keys, values, strict=True))
        for metric in metrics:
            interval = t_interval(group[metric].to_numpy(dtype=float))
            line[metric] = interval.mean
            line[f"{metric}_ci"] = interval.half_width
        line["repetitions"] = len(group)
        if "others_share" in group:
            line["disturbed"] = count_disturbed(group)
        lines.append(line)
    return pd.DataFrame(lines)


def preferred(rows: pd.DataFrame, *, simulated: bool) -> pd.DataFrame:
    """Rows of each workload's simulated runs, or of its timed ones; the others where none is."""
    chosen = []
    for _, group in rows.groupby("workload", sort=False):
        of_kind = group[(group["executor"] == "simulated") == simulated]
        chosen.append(of_kind if len(of_kind) else group)
    return pd.concat(chosen)


def of_first_part(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of each workload's first part: another part's have another pool, model or load."""
    first = rows.groupby("workload", sort=False)["part"].transform("first")
    return rows[rows["part"] == first]


def jobs_of(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that `rows` came from."""
    ids = set(rows["run_id"])
    return [job for job in jobs if job.run_id in ids]


def stack_classes(axes: Axes, x: Sequence[float], shares: pd.DataFrame, width: float = 0.8) -> None:
    """Bars of the pool by ledger class in %, token at the bottom; `shares` has SHARES columns."""
    bottom = np.zeros(len(x))
    for name, column in zip(CLASSES, SHARES, strict=True):
        heights = 100 * shares[column].to_numpy(dtype=float)
        axes.bar(x, heights, width, bottom=bottom, color=CLASS_COLOURS[name], linewidth=0, zorder=2)
        bottom += heights
    axes.set_ylim(0, 100)


def class_handles(shares: pd.DataFrame, threshold: float = 5e-4) -> list[Patch]:
    """Legend entries of the classes that reach `threshold` anywhere."""
    return class_patches(
        name
        for name, column in zip(CLASSES, SHARES, strict=True)
        if shares[column].max() > threshold
    )


def class_patches(names: Iterable[str]) -> list[Patch]:
    """Legend entries of these classes."""
    return [
        Patch(
            facecolor=CLASS_COLOURS[name],
            edgecolor="#999999",
            linewidth=0.3,
            label=CLASS_LABELS[name],
        )
        for name in names
    ]


def short_label(strategy: str) -> str:
    """A strategy's label over two lines: what it is, and what it is told."""
    words = strategy.replace("_", " ").split(" ")
    if strategy.startswith("contiguous") and len(words) > 2:
        return f"{' '.join(words[1:-1])}\n{words[-1]}"
    return "\n".join(strategy.split("_", 1))
