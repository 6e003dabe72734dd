"""docs/metrics.md names every metric and every ledger class, once, with its formula."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.measure.ledger import LedgerEntry
from harness.measure.metrics import METRIC_NAMES

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented() -> list[str]:
    """Names in the first column of the page's tables, of rows that say something."""
    names = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) > 1 and cells[1]:
            names += re.findall(r"`(\w+)`", cells[0])
    return names


@pytest.mark.parametrize("name", [*METRIC_NAMES, *LedgerEntry._fields])
def test_is_documented_once(name: str) -> None:
    assert documented().count(name) == 1


def test_nothing_is_documented_that_does_not_exist() -> None:
    assert set(documented()) == {*METRIC_NAMES, *LedgerEntry._fields}
