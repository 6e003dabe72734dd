"""The report as a document: whole, self-contained, and of the rows' own numbers."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from page_reader import Element, read_page
from PIL import Image
from scipy import stats
from stored_study import edit_record, edit_run, run_folders, store

from experiments.__main__ import main
from experiments.report.page import make_page
from experiments.report.timeline import NUM_MOMENTS
from experiments.stored import find_study
from harness.measure.ledger import CLASSES
from harness.measure.statistics import t_interval

Copy = Callable[[Path], Path]


def page_of(results: Path, *names: str) -> Element:
    return read_page(make_page([find_study(name, results) for name in names or ("single",)]))


@pytest.fixture(scope="module")
def page(compared_results: Path) -> Element:
    return page_of(compared_results)


def rows_of(table: Element) -> list[list[Element]]:
    body = table.all("tbody")[0]
    return [[c for c in row.children if isinstance(c, Element)] for row in body.all("tr")]


def test_nothing_outside_of_the_file_is_referred_to(
    compared_results: Path, timed_results: Path, mapped_results: Path
) -> None:
    for results in (compared_results, timed_results, mapped_results):
        for element in page_of(results).everything():
            for name, value in element.attributes.items():
                if name in ("src", "href", "xlink:href", "action", "poster"):
                    assert value.startswith(("#", "data:")), (element.tag, name, value)
                assert "url(http" not in value
            if element.tag == "style":
                assert not re.search(r"@import|url\((?!#)", element.text)
            if element.tag == "script":
                assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?:", element.text)


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(page: Element) -> None:
    ids = Counter(e.attributes["id"] for e in page.everything() if "id" in e.attributes)
    assert set(ids.values()) == {1}
    targets = {e.attributes["href"][1:] for e in page.all("a")}
    assert targets and targets <= set(ids)


def test_identical_data_give_identical_bytes(
    compared_results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    for name in ("a.html", "b.html"):
        given = ["report", "single", "--results-dir", str(compared_results)]
        assert main([*given, "--output", str(tmp_path / name)]) == 0
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] and len(made[0]) < 500_000
    assert f"report: {tmp_path / 'b.html'}" in capsys.readouterr().out


def test_the_table_has_the_rows_values(compared_results: Path, page: Element) -> None:
    rows = find_study("single", compared_results).rows
    table = page.by_id("s1-tables").all("table")[0]
    heads = [head.words for head in table.all("th") if head.attributes.get("scope") == "col"]
    used, batched = heads.index("used %"), heads.index("batched requests")
    groups = rows.groupby(["strategy", "page_size"], sort=False)
    shown = rows_of(table)
    assert len(shown) == len(groups) == 8
    for cells, ((strategy, page_size), group) in zip(shown, groups, strict=True):
        assert cells[0].words == strategy
        assert cells[1].words.split(" x ")[0] == str(page_size)
        for column, metric, scale in ((used, "utilisation", 100), (batched, "batched_requests", 1)):
            interval = t_interval(group[metric].to_numpy())
            assert float(cells[column].attributes["data-sort"]) == interval.mean
            words = f"{scale * interval.mean:.1f} ±{scale * interval.half_width:.1f}"
            assert cells[column].words.rstrip("*") == words
    best = [c for cells in shown for c in cells if "best" in c.attributes.get("class", "")]
    assert best and all("*" in cell.text for cell in best)


def test_bars_show_the_rows_shares(compared_results: Path, page: Element) -> None:
    rows = find_study("single", compared_results).rows
    means = rows.groupby(["strategy", "page_size"], sort=False)[
        ["utilisation", *(f"{name}_share" for name in CLASSES[1:])]
    ].mean()
    bars = page.by_id("s1-waste").all("div", "bar")
    assert len(bars) == len(means)
    for bar, shares in zip(bars, means.to_numpy(), strict=True):
        found = dict.fromkeys(CLASSES, 0.0)
        for segment in bar.all("span"):
            name = segment.attributes["class"].removeprefix("k-")
            found[name] = float(segment.attributes["style"].removeprefix("width:").rstrip("%"))
        assert np.allclose([found[name] for name in CLASSES], 100 * shares, atol=0.06)
        for segment in bar.all("span"):
            assert segment.attributes["data-tip"].split(": ", 1)[1] in bar.attributes["aria-label"]


def test_the_answer_is_that_of_a_paired_test(compared_results: Path, page: Element) -> None:
    rows = find_study("single", compared_results).rows
    at_16 = rows[rows["page_size"] == 16].pivot(
        index="seed", columns="strategy", values="utilisation"
    )
    best = at_16.mean().idxmax()
    difference = 100 * (at_16[best] - at_16["contiguous buddy max"])
    low, high = stats.t.interval(
        0.95, len(difference) - 1, loc=difference.mean(), scale=stats.sem(difference)
    )
    lead = page.by_id("s1-answer").all("p", "lead")[0].words
    assert f"{100 * at_16[best].mean():.1f} % of the pool holds tokens under {best}" in lead
    assert best != "contiguous buddy max" and len(difference) == 6
    assert f"against {100 * at_16['contiguous buddy max'].mean():.1f} %" in lead
    shown = f"{difference.mean():.1f} ± {(high - low) / 2:.1f} percentage points more"
    assert f"{shown} (95 % interval, n = 6 seeds): better" in lead


def test_latencies_are_the_requests_own(timed_results: Path) -> None:
    study = find_study("single", timed_results)
    figures = page_of(timed_results).by_id("s1-latency").all("figure")
    assert [f.attributes["aria-label"].split(",")[0] for f in figures] == [
        "TTFT", "TPOT", "ITL", "normalised latency", "E2E",
    ]  # fmt: skip
    read = {f.attributes["aria-label"].split(",")[0]: json.loads(f.all("script")[0].text)
            for f in figures}  # fmt: skip
    for index, job in enumerate(study.jobs):
        requests = study.run(job.run_id).frame("requests")
        ttft = 1e3 * (requests["first_token_s"] - requests["arrival_s"])
        gaps = np.concatenate(list(requests["itl_ms"]))
        for name, values in (("TTFT", ttft), ("ITL", gaps)):
            for percentile in (0, 50, 99, 100):
                said = float(read[name][index][percentile].replace(",", ""))
                assert said == pytest.approx(np.percentile(values, percentile), rel=6e-3)
    assert page_of(timed_results).by_id("s1-answer").text.count("output tokens/s") == 1


def test_times_that_mean_nothing_are_not_drawn(page: Element) -> None:
    assert not [e for e in page.everything() if e.attributes.get("id") == "s1-latency"]


def decoded(image: Element) -> np.ndarray:
    data = base64.b64decode(image.attributes["src"].split(",", 1)[1])
    picture = Image.open(io.BytesIO(data))
    assert picture.mode == "P"
    return np.array(picture)


def test_a_timeline_counts_what_the_steps_do(mapped_results: Path) -> None:
    study = find_study("single", mapped_results)
    group = page_of(mapped_results).all("details", "timeline")[0]
    data = json.loads(group.all("script")[0].text)
    frames = [study.run(job.run_id).frame("steps") for job in study.jobs]
    firsts = [frame[frame["repetition"] == 0] for frame in frames]
    ends = [float((f["start_s"] + f["duration_s"]).max()) for f in firsts]
    assert data["until"] == max(ends)
    for panel, steps, end in zip(data["panels"], firsts, ends, strict=True):
        moments = (np.arange(NUM_MOMENTS) + 0.5) * data["until"] / NUM_MOMENTS
        inside = moments[moments < end]
        starts, until = steps["start_s"], steps["start_s"].shift(-1, fill_value=end)
        for moment, token in zip(inside, panel["counts"]["token"], strict=True):
            (at_work,) = np.flatnonzero((starts <= moment) & (moment < until))
            assert token == steps["token"].iloc[at_work]


def test_a_map_shows_each_slot_of_the_pool(mapped_results: Path) -> None:
    """Painted by hand, slot by slot, from the stored intervals."""
    study = find_study("single", mapped_results)
    group = page_of(mapped_results).all("details", "timeline")[0]
    data = json.loads(group.all("script")[0].text)
    names = CLASSES[:5]
    for index, (image, job) in enumerate(zip(group.all("img"), study.jobs, strict=True)):
        pixels = decoded(image)
        assert pixels.shape == (512, NUM_MOMENTS) and data["panels"][index]["map"]
        frame = study.run(job.run_id).frame("memory_map")
        frame = frame[frame["repetition"] == 0]
        for column in (3, 60, 100):
            moment = (column + 0.5) * data["until"] / NUM_MOMENTS
            pool = np.full(512, -1)
            open_now = frame[(frame["from_s"] <= moment) & (moment < frame["to_s"])]
            for row in open_now.itertuples():
                slots = [i for i, name in enumerate(names) for _ in range(getattr(row, name))]
                pool[16 * row.page : 16 * row.page + len(slots)] = slots
            shown = pixels[::-1, column].astype(int)
            mapped = pool >= 0
            assert mapped.any()
            assert (shown[mapped] % len(CLASSES) == pool[mapped]).all()
            assert (shown[~mapped] % len(CLASSES) >= len(names)).all()


def test_without_a_map_the_page_says_how_to_get_one(page: Element, mapped_results: Path) -> None:
    assert "measure.memory_map=true" in page.by_id("s1-memory").text
    assert "repeat the command" not in page_of(mapped_results).by_id("s1-memory").text


def test_the_command_and_the_machine_are_there(page: Element) -> None:
    origin = page.by_id("s1-origin")
    command = origin.all("pre", "command")[0].words
    assert command.startswith("python -m harness ") and "kv.page_size=8,16" in command
    assert "'allocator.expected" not in command
    assert "git revisions" in origin.text and "packages.torch" in origin.text
    runs = next(t for t in origin.all("table") if "that differ" in t.all("caption")[0].text)
    heads = [head.words for head in runs.all("thead")[0].all("th")]
    assert {"run", "allocator.name", "allocator.expected", "kv.page_size", "status"} <= set(heads)
    assert "seed" not in heads


def test_a_failed_run_is_told_and_harms_nothing(own: Copy, compared_results: Path) -> None:
    results = own(compared_results)
    first = run_folders(results / "single")[0]
    edit_run(first, "status", lambda v: v.update(status="failed", error="no room <b>& more</b>"))
    page = page_of(results)
    assert "1 run failed" in page.by_id("s1-answer").words
    failed = page.by_id("s1-checks").all("dl", "failed-runs")[0]
    assert failed.all("pre")[0].text == "no room <b>& more</b>" and not failed.all("b")
    assert len(page.by_id("s1-tables").all("tr", "failed")) == 1


def test_where_every_run_failed_there_is_no_answer(own: Copy, compared_results: Path) -> None:
    results = own(compared_results)
    for run in run_folders(results / "single"):
        edit_run(run, "status", lambda v: v.update(status="out_of_memory", error="pool"))
    page = page_of(results)
    assert page.by_id("s1-answer").all("p", "lead")[0].words.startswith("No run of this study")
    assert "so there was nothing to check" in page.by_id("s1-checks").words


def test_a_study_that_lacks_runs_says_so(own: Copy, compared_results: Path) -> None:
    results = own(compared_results)
    for run in run_folders(results / "single")[:3]:
        (run / "status.json").unlink()
    page = page_of(results)
    assert "incomplete: 3 runs" in page.by_id("s1-answer").words
    assert "5 stored, 3 still to be done" in page.by_id("s1-origin").words


def test_one_run_is_a_report_too(compared_results: Path) -> None:
    run = run_folders(compared_results / "single")[-1].name
    page = page_of(compared_results, f"single/{run}")
    lead = page.by_id("s1-answer").all("p", "lead")[0].words
    assert "there is nothing to compare it with" in lead and "n = 6 seeds" in lead


def test_plenty_of_memory_is_told_within_the_answer(tmp_path: Path) -> None:
    strategies = "allocator=contiguous,paged,paged_prefix"
    store(tmp_path, "repetitions=1", "kv.pool_tokens=8192", strategies)
    answer = page_of(tmp_path).by_id("s1-answer")
    lead = answer.all("p", "lead")[0].words
    told = lead.split("Not memory-bound: ")[1].split(". ")[0]
    assert "paged and paged_prefix" in told and "contiguous buddy max" in told
    assert "says little about allocation" in lead
    assert not any("not memory-bound" in remark.words for remark in answer.all("p", "remark"))


def test_names_with_markup_in_them_are_text(own: Copy, compared_results: Path) -> None:
    results = own(compared_results)
    name = './a<i>b&c"d.py:Mine'
    edit_record(results / "single", question="Is 1 < 2 & 3 </script><script>x()</script>?")
    edit_run(
        run_folders(results / "single")[-1],
        "config",
        lambda v: v["allocator"].update(name=name, options={}),
    )
    page = page_of(results)
    assert page.all("h2")[0].words == "Is 1 < 2 & 3 </script><script>x()</script>?"
    assert not page.all("i")
    label = name.removeprefix("./")
    assert label in [row[0].text.split(" ")[0] for row in rows_of(page.all("table", "sortable")[1])]
    assert any(label in b.attributes["aria-label"] for b in page.all("div", "bar"))


def test_several_studies_share_a_page_and_what_differs_is_shown(
    compared_results: Path, timed_results: Path
) -> None:
    page = page_of(Path(), str(compared_results / "single"), str(timed_results / "single"))
    assert len(page.all("article")) == 3
    table = page.by_id("diff").all("table")[0]
    lines = {row[0].words: [cell.words for cell in row[1:]] for row in rows_of(table)}
    assert lines["executor.cost"] == ["constant", "roofline"]
    assert lines["kv.page_size"] == ["8, 16", "16"]
    assert "workload.num_requests" not in lines
    ids = Counter(e.attributes["id"] for e in page.everything() if "id" in e.attributes)
    assert set(ids.values()) == {1}


def test_figures_are_in_the_page_and_described(tmp_path: Path) -> None:
    folder = store(tmp_path, "repetitions=1", "allocator=contiguous,paged", "allocator.fit=buddy")
    edit_record(folder, figures=["compare"])
    page = page_of(tmp_path)
    drawn = page.by_id("s1-figures").all("figure", "drawn")
    assert [f.all("figcaption")[0].words for f in drawn][:1] == ["compare_classes"]
    for figure in drawn:
        (picture,) = figure.all("img")
        assert picture.attributes["alt"].startswith("Figure compare_")
        head, _, image = picture.attributes["src"].partition(",")
        assert head == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(image)).tag.endswith("svg")
        points = pd.DataFrame([[c.words for c in r] for r in rows_of(figure.all("table")[0])])
        assert len(points)


def test_without_a_name_the_studies_are_listed(
    compared_results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--results-dir", str(compared_results)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("single ") and "8 runs" in out and "report single" in out
    assert main(["report", "--results-dir", str(tmp_path)]) == 2
    assert "has no study" in capsys.readouterr().err
    assert main(["report", "singel", "--results-dir", str(compared_results)]) == 2
    assert "did you mean single" in capsys.readouterr().err
