"""The report in a real browser: what a reader sees, clicks and types."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, Keys, installed
from stored_study import edit_record, edit_run, run_folders

from experiments.report.page import make_page
from experiments.stored import find_study

pytestmark = pytest.mark.skipif(
    installed() is None, reason="needs chromium and chromedriver on the PATH"
)


RECORD_FOCUS = """(() => {
  window.reached = new Set([document.activeElement]);
  addEventListener("focusin", ({ target }) => reached.add(target));
})()"""

LEFT_OUT = """[...document.querySelectorAll("button, input, summary, a, .scroll")]
  .filter((e) => !reached.has(e) && e.checkVisibility({ contentVisibilityAuto: true }))
  .map((e) => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = installed()
    assert found is not None
    browser = Browser(*found)
    yield browser
    browser.driver.quit()


@pytest.fixture(scope="module")
def page(
    compared_results: Path, timed_results: Path, mapped_results: Path, tmp_path_factory
) -> Path:
    """All that a report can have: tables, latencies, maps, a ledger, figures, a failed run."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(compared_results, folder / "compared")
    edit_record(folder / "compared/single", figures=["compare"], question="How much <is> used?")
    failed = run_folders(folder / "compared/single")[3]
    edit_run(failed, "status", lambda v: v.update(status="failed", error="no <room> " * 30))
    roots = (folder / "compared", timed_results, mapped_results)
    studies = [find_study(str(root / "single"), folder) for root in roots]
    path = folder / "report.html"
    path.write_text(make_page(studies), encoding="utf-8")
    return path


def test_nothing_is_fetched_and_nothing_goes_wrong(browser: Browser, page: Path) -> None:
    browser.requested()
    browser.logged_errors()
    browser.open(page)
    for details in browser.find_all("details"):
        browser.js("arguments[0].open = true", details)
    for slider in browser.find_all("input[type=range]"):
        slider.send_keys(Keys.END)
    addresses = [a for a in browser.requested() if not a.startswith("data:")]
    assert addresses == [page.resolve().as_uri()]
    assert browser.logged_errors() == []


@pytest.mark.parametrize("kind", ["s1", "s3"])
def test_the_slider_moves_the_memory(browser: Browser, page: Path, kind: str) -> None:
    """s1 has the ledger alone, s3 a map."""
    browser.open(page)
    memory = f"#{kind}-memory details.timeline"
    slider = browser.find(f"{memory} input[type=range]")
    panel = browser.find(f"{memory} figure.panel")
    seen = set()
    for keys in ("", Keys.HOME, Keys.ARROW_RIGHT * 20):
        slider.send_keys(keys)
        words = browser.find(f"{memory} figure.panel .readout").text
        assert "token" in words
        seen.add((browser.find(f"{memory} output").text, words, browser.pixels(panel)))
    assert [len(set(each)) for each in zip(*seen, strict=True)] == [3, 3, 3]
    assert slider.get_attribute("aria-valuetext") == browser.find(f"{memory} output").text
    browser.point(browser.find(f"{memory} .picture"), 0.1, click=True)
    assert 22 <= int(slider.get_property("value")) <= 25


def test_the_map_of_the_pool_changes_with_the_slider(browser: Browser, page: Path) -> None:
    browser.open(page)
    slider = browser.find("#s3-memory input[type=range]")
    canvas = browser.find("#s3-memory canvas")
    read = "[...arguments[0].getContext('2d').getImageData(0, 0, 9999, 99).data].join()"
    pictures, labels = set(), set()
    for _ in range(3):
        pictures.add(browser.js(read, canvas))
        labels.add(canvas.get_attribute("aria-label"))
        slider.send_keys(Keys.ARROW_RIGHT * 9)
    assert len(pictures) == len(labels) == 3
    browser.point(canvas)
    assert browser.says("#tip").startswith("slot ")


def column(browser: Browser, table: str, index: int) -> list[str]:
    cells = f"[...document.querySelectorAll('{table} tbody tr')]"
    return browser.js(f"{cells}.map((row) => row.cells[{index}].textContent.trim())")


def test_a_table_sorts_by_number_both_ways(browser: Browser, page: Path) -> None:
    browser.open(page)
    table = "#s1-tables table"
    before = column(browser, table, 1)
    pages, used = browser.find_all(f"{table} thead button")[1:3]
    pages.click()
    sizes = [int(text.split(" ")[0]) for text in column(browser, table, 1)]
    assert sizes == sorted(sizes) and set(sizes) == {8, 16}
    assert sizes != [int(text.split(" ")[0]) for text in before]
    for descending in (False, True):
        used.click()
        texts = column(browser, table, 2)
        assert texts[-1] == "-", "a failed run stays last"
        numbers = [float(text.split(" ")[0].rstrip("*")) for text in texts[:-1]]
        assert numbers == sorted(numbers, reverse=descending)
    heads = browser.js(
        f"[...document.querySelectorAll('{table} th[aria-sort]')].map((h) => h.ariaSort)"
    )
    assert heads == ["descending"]
    assert "descending" in browser.js("document.getElementById('said').textContent")


def test_a_heading_sorts_by_the_keyboard_too(browser: Browser, page: Path) -> None:
    browser.open(page)
    head = browser.find("#s1-tables thead button")
    browser.js("arguments[0].focus()", head)
    browser.press(Keys.ENTER, Keys.SPACE)
    names = column(browser, "#s1-tables table", 0)
    assert names == sorted(names, reverse=True) and len(set(names)) == 4


def test_the_keyboard_alone_reaches_every_control(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press(Keys.TAB)
    assert browser.js("document.activeElement.className") == "skip"
    browser.js(RECORD_FOCUS)
    number = browser.js("document.querySelectorAll('button, input, summary, a, .scroll').length")
    browser.press(Keys.TAB * number)
    assert browser.js(LEFT_OUT) == []


def test_the_focus_can_be_seen(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press(Keys.TAB)
    for kind in ("a", "#s1-tables thead button", "input", "summary", "#s1-tables .scroll"):
        browser.js("document.querySelector(arguments[0]).focus()", f"main {kind}")
        assert browser.js("document.activeElement.matches(arguments[0])", kind), kind
        assert browser.js("getComputedStyle(document.activeElement).outlineStyle") == "solid", kind


def test_the_skip_link_leads_to_the_answer(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press(Keys.TAB, Keys.ENTER)
    assert browser.js("document.activeElement.id") == "main"


def test_light_and_dark_follow_the_system_and_the_button(browser: Browser, page: Path) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    text = "getComputedStyle(document.body).color"
    browser.open(page)
    light = browser.js(back), browser.js(text)
    browser.emulate(dark=True)
    dark = browser.js(back), browser.js(text)
    assert light[0] != dark[0] and light[1] != dark[1]
    button = browser.find("#theme")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert (browser.js(back), browser.js(text)) == light
    assert button.get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("width", [360, 1600])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    for details in browser.find_all("details"):
        browser.js("arguments[0].open = true", details)
    assert browser.js("document.documentElement.scrollWidth") <= width
    outside = browser.js(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, .hidden, svg')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))"
    )
    assert outside == []


def test_everything_drawn_has_a_text_alternative(browser: Browser, page: Path) -> None:
    browser.open(page)
    nameless = browser.js(
        "[...document.querySelectorAll('figure, img, svg, canvas, [role=img]')].filter((e) =>"
        " !e.closest('[aria-hidden=true]') && !e.parentElement.closest('[role=img]') &&"
        " !(e.getAttribute('aria-label') || e.getAttribute('alt') ||"
        " e.querySelector('figcaption')?.textContent.trim()))"
        ".map((e) => e.outerHTML.slice(0, 90))"
    )
    assert nameless == []
    assert len(browser.find_all("canvas[aria-label]")) == 2


def test_a_segment_tells_its_share_under_the_pointer(browser: Browser, page: Path) -> None:
    browser.open(page)
    segment = browser.find("#s1-waste .bar span")
    browser.point(segment)
    said = browser.says("#tip")
    assert said == segment.get_attribute("data-tip") and said.endswith(" %")


def test_a_percentile_is_read_off_all_curves(browser: Browser, page: Path) -> None:
    browser.open(page)
    figure = "#s2-latency figure.curves:first-child"
    slider = browser.find(f"{figure} input")
    slider.send_keys(Keys.HOME, Keys.ARROW_RIGHT * 90)
    rows = browser.find_all(f"{figure} tbody tr")
    assert browser.find(f"{figure} th.live").text == "at p90" and len(rows) == 2
    for row in rows:
        live, _, p90, *_ = [cell.text for cell in row.find_elements("css selector", "td")]
        assert live == p90
    browser.point(browser.find(f"{figure} .plot"), 0.25)
    assert slider.get_property("value") in ("24", "25", "26")


def test_paper_has_everything_open_and_no_controls(browser: Browser, page: Path) -> None:
    browser.open(page, dark=True, media="print")
    controls = browser.find_all(".control, nav, .skip")
    assert controls and not [c for c in controls if c.is_displayed()]
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tables = browser.find_all("details:not([open]) table")
    assert tables and all(table.size["height"] > 0 for table in tables)
