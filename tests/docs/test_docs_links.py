"""Every page of the documentation can be reached, and every link leads somewhere."""

from __future__ import annotations

import pytest
from page_commands import DOCS, pages
from page_links import anchors, broken, reachable

ROOT = DOCS.parent
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")]


def test_links_and_anchors_resolve():
    assert broken([*pages(), *TOP]) == []


def test_every_page_is_reached_from_the_index():
    assert set(pages()) - reachable(DOCS / "README.md") == set()


def test_the_index_is_reached_from_the_readme():
    assert (DOCS / "README.md") in reachable(ROOT / "README.md")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[a](b.md)", []),
        ("[a](b.md#two-words)", []),
        ("[a](#here-it-is)\n# Here `it` is!\n", []),
        ("[a](c.md)", ["a.md: c.md"]),
        ("[a](b.md#three)", ["a.md: b.md#three"]),
        ("`[a](c.md)`\n```\n[a](c.md)\n```\n[x](https://example.org)", []),
    ],
)
def test_broken_links_are_found_in_prose_alone(tmp_path, text, wrong):
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "b.md").write_text("## Two words\n")
    assert broken([tmp_path / "a.md"]) == wrong


def test_repeated_headings_are_numbered(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("# Same\n## Same\n```console\n# no heading\n```\n")
    assert anchors(page) == {"same", "same-1"}
