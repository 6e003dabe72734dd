"""docs/wandb.md says what is logged."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from harness.config import TrackingConfig
from harness.tracking import keys

PAGE = Path(__file__).parents[2] / "docs" / "wandb.md"


def table(name: str) -> dict[str, str]:
    """A table of the page: what by key."""
    after = PAGE.read_text().split(f"<!-- table: {name} -->\n")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", after, flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["OF_RUNS", "OF_SWEEPS"])
def test_the_page_lists_what_is_logged(name: str) -> None:
    assert table(name) == {row.key: row.what for row in getattr(keys, name)}


def test_every_constant_is_documented() -> None:
    documented = {row.key for row in (*keys.OF_RUNS, *keys.OF_SWEEPS)}
    patterns = {re.sub(r"(?<=_share/|_slots/)\w+", "CLASS", key) for key in keys.SERIES}
    assert patterns | set(keys.HISTOGRAMS.values()) <= documented
    assert {*keys.RUN_FACTS, *keys.AGGREGATE_FACTS, keys.REQUESTS, keys.MEMORY} <= documented


def test_the_page_lists_every_key_of_the_config() -> None:
    rows = dict(
        re.findall(r"^\| `tracking\.(\w+)` \| `?([^`|]+?)`? \|", PAGE.read_text(), re.MULTILINE)
    )
    fields = {field.name: field.default for field in dataclasses.fields(TrackingConfig)}
    assert rows.keys() == fields.keys() - {"kind"}
    for name, shown in rows.items():
        default = fields[name]
        text = "your own" if default is None else f"{default:g}" if name == "timeout_s" else default
        assert shown == str(text).replace("False", "false")
    assert f"{keys.MAX_STEPS:,} points" in PAGE.read_text()
    assert f"{keys.MAX_REQUESTS:,} rows" in PAGE.read_text()
