"""Text that has too little room: broken into lines, turned, or left out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryLocator
from matplotlib.collections import LineCollection
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, MaxNLocator
from matplotlib.transforms import Bbox

GAP_PX = 2.0
"""Between two labels, at least."""

NUMBER = re.compile(r"[-+−]?[\d.,]+ ?[kKM%]?")

LABEL_OVERHANG = 1.1
"""A title or a label may be so much longer than it."""


def fit(axes: Axes) -> None:
    """Break the title and the labels of `axes`, turn or thin its ticks and the numbers on its
    bars until none runs into another. The figure's layout must have been made."""
    box = axes.get_window_extent()
    axes.yaxis.label.set_multialignment("center")
    wrap(axes.title, LABEL_OVERHANG * box.width)
    wrap(axes.xaxis.label, LABEL_OVERHANG * box.width)
    _wrap_upright(axes.yaxis.label, LABEL_OVERHANG * box.height)
    _fit_ticks(axes)
    _turn_numbers(axes)


def wrap(text: Text, width_px: float) -> None:
    """Break `text` between words so that it is at most `width_px` wide, where words allow it."""
    given = text.get_text()
    if not given or text.get_window_extent().width <= width_px:
        return
    lines = [line for paragraph in given.split("\n") for line in _evenly(text, paragraph, width_px)]
    text.set_text("\n".join(lines))


def _evenly(text: Text, paragraph: str, width_px: float) -> list[str]:
    """As few lines as `width_px` allows, none much shorter than the others."""
    lines = _broken(text, paragraph, width_px)
    for tenths in range(1, 10):
        narrower = _broken(text, paragraph, width_px * tenths / 10)
        if len(narrower) == len(lines) and _widest(text, narrower) <= width_px:
            return narrower
    return lines


def _broken(text: Text, paragraph: str, width_px: float) -> list[str]:
    lines = [""]
    for word in re.split(r" (?!%)", paragraph):  # a number and its % stay together
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _widest(text, [longer]) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _widest(text: Text, lines: Sequence[str]) -> float:
    """Pixels of the longest of `lines` in the font of `text`, whose words are lost."""
    text.set_text("\n".join(lines))
    return float(text.get_window_extent().width)


def make_headroom(axes: Axes) -> None:
    """Raise the end of the y axis until the numbers on its bars, and a legend that begins at
    the axes' top, stand clear. The figure's layout must have been made."""
    scale = axes.get_yscale()
    if scale not in ("linear", "log") or axes.yaxis_inverted():
        return
    box = axes.get_window_extent()
    legend = axes.get_legend()
    covered = legend.get_window_extent() if legend is not None else None
    if covered is not None and covered.y1 < box.y0 + 0.9 * box.height:
        covered = None  # it is elsewhere
    share = 0.0
    if covered is not None:
        below = box.height - covered.height - 2 * GAP_PX
        share = _reach(axes, covered) / max(below, LEAST_DATA * box.height)
    for number in _numbers_on_bars(axes):
        foot = float(axes.transData.transform(number.xy)[1])
        extent = number.get_window_extent()
        below = box.height - (extent.y1 - foot)
        if covered is not None and extent.x0 < covered.x1 and covered.x0 < extent.x1:
            below -= covered.height + 2 * GAP_PX
        share = max(share, (foot - box.y0) / max(below, LEAST_DATA * box.height))
    if share > 1.0:
        low, high = axes.get_ylim()
        raised = low + (high - low) * share if scale == "linear" else low * (high / low) ** share
        axes.set_ylim(low, float(f"{raised:.4g}"))


_NAMES = (FixedLocator, StrCategoryLocator)


def height_of_names(axes: Axes) -> float:
    """Pixels that the names at the y axis take one below the other; 0 where it has numbers."""
    labels = axes.yaxis.get_ticklabels()
    if not labels or not isinstance(axes.yaxis.get_major_locator(), _NAMES):
        return 0.0
    return sum(label.get_window_extent().height + GAP_PX for label in labels)


LEAST_DATA = 0.3
"""Of the axes' height, for what is below the numbers and the legend."""


def _reach(axes: Axes, span: Bbox) -> float:
    """Pixels above the foot of `axes` up to which bars, lines and intervals reach within the
    width of `span`."""
    points = [line.get_transform().transform(line.get_xydata()) for line in axes.get_lines()]
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            to_pixels = collection.get_transform()
            points += [to_pixels.transform(segment) for segment in collection.get_segments()]
    for bar in (patch for each in axes.containers for patch in each if isinstance(patch, Patch)):
        extent = bar.get_window_extent()
        points.append(np.array([[extent.x0, extent.y1], [extent.x1, extent.y1]]))
    tops = [
        float(np.max(each[:, 1]))
        for each in points
        if len(each) and np.min(each[:, 0]) < span.x1 and span.x0 < np.max(each[:, 0])
    ]
    foot = float(axes.get_window_extent().y0)
    return max((top - foot for top in tops if np.isfinite(top)), default=0.0)


def _wrap_upright(label: Text, height_px: float) -> None:
    """As `wrap`, of text that runs upwards."""
    if label.get_window_extent().height > height_px:
        turned = label.get_rotation()
        label.set_rotation(0)
        wrap(label, height_px)
        label.set_rotation(turned)


def _fit_ticks(axes: Axes) -> None:
    axis = axes.xaxis
    if not _overlap(_shown_labels(axis)):
        return
    if all(NUMBER.fullmatch(label.get_text()) for label in _shown_labels(axis)):
        _thin(axes)
        return
    for joined in (False, True):
        ticks = axis.get_ticklocs()
        names = [label.get_text() for label in axis.get_ticklabels()]
        if joined:
            names = [name.replace("\n", " ") for name in names]
        axes.set_xticks(ticks, names, rotation=90)
        if not _overlap(_shown_labels(axis)):
            return


def _thin(axes: Axes) -> None:
    """Name every second, third ... of the ticks."""
    axis = axes.xaxis
    if not isinstance(axis.get_major_locator(), FixedLocator):
        for count in range(5, 1, -1):
            axis.set_major_locator(MaxNLocator(count))
            if not _overlap(_shown_labels(axis)):
                return
        return
    ticks = list(axis.get_ticklocs())
    names = [label.get_text() for label in axis.get_ticklabels()]
    for step in range(2, len(ticks) + 1):
        kept = [name if place % step == 0 else "" for place, name in enumerate(names)]
        axes.set_xticks(ticks, kept)
        if not _overlap(_shown_labels(axis)):
            return


def _shown_labels(axis: Axis) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    return [
        label
        for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
        if label.get_visible() and label.get_text() and low - slack <= at <= high + slack
    ]


def _turn_numbers(axes: Axes) -> None:
    """Turn the numbers on bars where one runs into the next."""
    numbers = _numbers_on_bars(axes)
    if _overlap(numbers):
        for number in numbers:
            number.set_rotation(90)


def _numbers_on_bars(axes: Axes) -> list[Annotation]:
    return [
        text
        for text in axes.texts
        if isinstance(text, Annotation) and (text.get_va(), text.get_ha()) == ("bottom", "center")
    ]


def _overlap(texts: Sequence[Text]) -> bool:
    boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: float(box.x0))
    return any(
        left.x1 + GAP_PX > right.x0 and left.y0 < right.y1 and right.y0 < left.y1
        for left, right in itertools.pairwise(boxes)
    )
