"""What the documentation names exists, and what must be documented is."""

from __future__ import annotations

import re

import pytest
from page_commands import DOCS, PageFile, pages, read_page

from allocators.base import KVCacheAllocator
from allocators.discovery import available

ROOT = DOCS.parent
FOLDERS = ("allocators", "kernels", "harness", "experiments", "conf", "tests", "benchmarks", "docs")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_files_of_the_project_that_a_page_names_exist(page):
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", page.read_text())
    names = [name for name in named if not re.search(r"[A-Z]{4}", name)]  # NAME.py stands for any
    own = {step.name for step in read_page(page) if isinstance(step, PageFile)}
    assert [name for name in names if name not in own and not (ROOT / name).exists()] == []


def test_every_method_of_the_contract_is_documented():
    text = (DOCS / "allocators.md").read_text()
    named = set(re.findall(r"`(\w+)(?=[(`])", text))
    public = {name for name in vars(KVCacheAllocator) if not name.startswith("_")}
    public |= set(KVCacheAllocator.__annotations__)
    assert public - named == set()


def test_every_strategy_is_on_the_ladder():
    text = (DOCS / "allocators.md").read_text()
    assert [name for name in available() if f"| `{name}` | [" not in text] == []
