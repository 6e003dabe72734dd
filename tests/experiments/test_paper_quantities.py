"""What the closing table says of two numbers."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from experiments.paper.quantities import (
    Published,
    Quantity,
    as_frame,
    cells,
    published_numbers,
    reason,
    to_markdown,
    to_terminal,
)
from harness.measure.statistics import Interval


def quantity(unit: str, published: Published, ours: float, reason: str = "") -> Quantity:
    return Quantity("2", "of something", unit, published, Interval(ours, 0.5, 10), reason)


@pytest.mark.parametrize(
    ("unit", "published", "ours", "deviation"),
    [
        ("%", 20.0, 23.0, 3.0),
        ("x", 2.0, 1.0, -50.0),
        ("requests", 10.0, 11.0, 10.0),
        ("x", (1.7, 2.7), 2.0, 0.0),
        ("x", (1.7, 2.7), 5.4, 100.0),
        ("%", (20.0, 26.0), 5.0, -15.0),
        ("x", (-math.inf, 1.2), 0.3, 0.0),
        ("x", (-math.inf, 1.2), 1.8, 50.0),
    ],
)
def test_deviation_is_points_of_shares_and_percent_of_others(
    unit: str, published: Published, ours: float, deviation: float
) -> None:
    assert quantity(unit, published, ours).deviation == pytest.approx(deviation)


def test_words_of_a_row() -> None:
    assert cells(quantity("%", 20.4, 20.8), with_reason=True) == [
        "2", "of something", "20.4 %", "20.8 ±0.5 %", "+0.4 points", "comparable",
    ]  # fmt: skip
    apart = cells(quantity("x", (1.7, 2.7), 2.0, "other lengths"), with_reason=True)
    assert apart[2:] == ["1.70-2.70x", "2.00 ±0.50x", "within", "not comparable: other lengths"]
    at_most = cells(quantity("x", (-math.inf, 1.2), 1.8), with_reason=False)
    assert at_most[2:5] == ["at most 1.20x", "1.80 ±0.50x", "+50 %"]
    nothing = quantity("x", 2.0, 1.0)._replace(ours=Interval(math.nan, math.nan, 0))
    assert cells(nothing, with_reason=False)[3:5] == ["-", "-"]


def test_a_reason_stands_once_below_the_terminals_table() -> None:
    rows = [quantity("%", 20.0, 21.0), *[quantity("x", 2.0, 1.0, "other lengths")] * 2]
    out = io.StringIO()
    Console(file=out, width=110).print(to_terminal(rows))
    assert out.getvalue().count("other lengths") == 1
    assert out.getvalue().count("not comparable (1)") == 2


def test_files_have_a_line_a_quantity() -> None:
    rows = [quantity("%", 20.0, 21.0), quantity("x", (1.0, 3.0), 5.0, "other lengths")]
    assert to_markdown(rows).count("\n") == 4
    frame = as_frame(rows)
    assert frame["deviation"].tolist() == pytest.approx([1.0, 200 / 3])
    assert frame["verdict"].tolist() == ["comparable", "not comparable"]
    assert frame["published_high"].tolist() == [20.0, 3.0]


def test_reasons_are_those_of_the_data() -> None:
    assert all(reason(key) == text for key, text in published_numbers()["not_comparable"].items())
    assert reason("") == ""
