"""Every block of the documents that is generated has been."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_generated_block_is_empty_and_every_picture_is_there(page: Path) -> None:
    text = page.read_text()
    for name, content in re.findall(
        r"<!-- generated: (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL
    ):
        assert content.strip(), name
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (page.parent / target).is_file(), target
