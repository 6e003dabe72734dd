"""The page: sections put into the template, with style and script written into it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments.plotting import CLASS_COLOURS, CLASS_LABELS
from experiments.report.latency import TABLED
from experiments.report.numbers import compact
from experiments.report.origin import studies_diff_view
from experiments.report.section import make_section
from experiments.report.timeline import NUM_MOMENTS, TimelineView, palette
from experiments.stored import StoredStudy
from harness.measure.ledger import CLASSES

ASSETS = Path(__file__).parent / "assets"

SCRIPTS = ("theme.js", "tips.js", "sort.js", "curves.js", "timeline.js")

LINE_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "currentColor", "#9467BD",
    "#8C6D31",
)  # fmt: skip
DASHES = ("none", "7 3", "3 2", "9 3 2 3", "5 4", "12 3", "none", "2 3", "10 2 2 2 2 2")


def make_page(studies: Sequence[StoredStudy]) -> str:
    """One HTML document about all `studies`, which refers to nothing outside of it.

    The same studies on disk give the same text.
    """
    sections = [make_section(study, f"s{index}") for index, study in enumerate(studies, 1)]
    diff = studies_diff_view(studies) if len(studies) > 1 else None
    template = _environment().get_template("report.html.j2")
    return template.render(
        sections=sections,
        diff=diff,
        title=", ".join(dict.fromkeys(section.title for section in sections)),
        style=(ASSETS / "report.css").read_text(),
        scripts=[(ASSETS / name).read_text() for name in SCRIPTS],
        classes=[(name, CLASS_LABELS[name], CLASS_COLOURS[name]) for name in CLASSES],
        legend=_legend(),
    )


def timeline_data(view: TimelineView) -> str:
    """What the slider of a timeline needs, as JSON."""
    panels = [
        {
            "slots": panel.num_slots,
            "map": panel.is_map,
            "per_row": panel.slots_per_row,
            "width": panel.width,
            "height": panel.height,
            "counts": panel.counts,
        }
        for panel in view.panels
    ]
    return _json({"moments": NUM_MOMENTS, "until": view.until_s, "panels": panels})


def curve_points(values: Sequence[float], height: Any) -> str:
    """A polyline's points in a box of 1000 by 1000."""
    last = len(values) - 1
    return " ".join(
        f"{1000 * index / last:.4g},{1000 * (1 - height(value)):.4g}"
        for index, value in enumerate(values)
    )


def curve_data(curves: Sequence[Any]) -> str:
    """What each curve reads at each percentile, as JSON of texts."""
    return _json([[compact(value) for value in curve.values] for curve in curves])


def _legend() -> str:
    return _json(
        {
            "order": list(CLASSES),
            "labels": CLASS_LABELS,
            "palette": palette(),
        }
    )


def _json(value: object) -> str:
    """JSON that can stand within a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"compact": compact, "tick": lambda value: f"{value:,g}"}
    environment.globals |= {
        "timeline_data": timeline_data,
        "curve_points": curve_points,
        "curve_data": curve_data,
        "line_colours": LINE_COLOURS,
        "dashes": DASHES,
        "tabled": TABLED,
        "num_moments": NUM_MOMENTS,
    }
    return environment
