"""The answer's sentence: who is compared with whom, and what may be claimed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.core.config_store import ConfigStore
from page_reader import read_page
from scipy import stats
from stored_study import store

from experiments.report.answer import Answer, answer_of
from experiments.report.cells import Group, common_settings, make_groups, representatives
from experiments.report.differences import Difference, difference_in_words
from experiments.report.headline import LATENCY, THROUGHPUT, USED, headline_of
from experiments.report.page import make_page
from experiments.report.search_answer import search_answers
from experiments.stored import find_study

SEARCH = {
    "name": "capacity",
    "set": {
        "executor": "simulated",
        "model": "tiny",
        "executor.step_ms": 10,
        "workload": "steady",
        "workload.num_requests": 60,
        "workload.length_scale": 0.25,
        "kv.pool_tokens": 4096,
        "repetitions": 3,
    },
    "axes": {"allocator": ["contiguous", "paged"]},
    "search": {"low": 2, "high": 32, "tolerance": 0.4, "normalised_latency_ms": 40},
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results of an experiment that searches the rate of two strategies."""
    node = {"sweep": {"name": "searched", "presets": {"quick": [SEARCH]}}}
    ConfigStore.instance().store(group="experiment", name="searched", node=node, package="_global_")
    folder = tmp_path_factory.mktemp("searched")
    store(folder, "experiment=searched", "tracking=none", defaults=())
    yield folder
    ConfigStore.instance().repo["experiment"].pop("searched.yaml")


def only_group(results: Path) -> Group:
    study = find_study("single", results)
    (group,) = make_groups(study.rows, study.jobs)
    return group


def test_the_metric_fits_what_the_runs_can_say(
    compared_results: Path, timed_results: Path, tmp_path: Path
) -> None:
    assert headline_of(only_group(compared_results)) is USED
    assert headline_of(only_group(timed_results)) is THROUGHPUT
    open_loop = ("executor.cost=roofline", "executor.gpu=a100_40gb", "workload.arrivals=poisson")
    store(tmp_path, "repetitions=1", *open_loop, "workload.rate=50")
    assert headline_of(only_group(tmp_path)) is LATENCY


def test_strategies_are_compared_at_one_setting(compared_results: Path) -> None:
    group = only_group(compared_results)
    assert common_settings(group.cells) == (("page size", "16"),)
    answer = answer_of(group)
    assert answer is not None and "page size 16" in answer.sentence
    assert answer.baseline == "contiguous buddy max" and len(answer.differences) == 3
    assert len(representatives(group)[0]) == 8
    assert re.search(r"The best mean of all 8 rows is [\d.]+ %, of paged oracle", answer.sentence)


def test_the_readers_own_allocator_is_spoken_of(compared_results: Path) -> None:
    group = only_group(compared_results)
    answer = answer_of(group)
    assert answer is not None
    label = next(d.label for d in answer.differences if d.label not in answer.sentence)
    for cell in group.complete:
        if cell.strategy == label:
            cell.rows["allocator"] = "./mine.py:Mine"
    said = answer_of(group)
    assert said is not None and re.search(rf" Under {label}, [\d.]+ %: ", said.sentence)


def test_verdicts_are_corrected_over_the_strategies(compared_results: Path) -> None:
    answer = answer_of(only_group(compared_results))
    rows = find_study("single", compared_results).rows
    table = rows[rows["page_size"] == 16].pivot(
        index="seed", columns="strategy", values="utilisation"
    )
    others = [name for name in table if name != "contiguous buddy max"]
    p = {n: stats.ttest_rel(table[n], table["contiguous buddy max"]).pvalue for n in others}
    p = {n: 1.0 if np.isnan(value) else value for n, value in p.items()}
    assert answer is not None
    for difference in answer.differences:
        gain = 100 * (table[difference.label] - table["contiguous buddy max"])
        assert difference.difference == pytest.approx(gain.mean())
        assert difference.pairs == 6
        smaller = sum(p[n] < p[difference.label] for n in others)
        assert difference.p_value >= min(1.0, (len(p) - smaller) * p[difference.label]) * (1 - 1e-9)
        assert (difference.verdict == "better") == (difference.p_value < 0.05)


def test_the_details_say_what_an_interval_does_not_allow_for(compared_results: Path) -> None:
    answer = answer_of(only_group(compared_results))
    assert answer is not None and len(answer.differences) == 3
    assert any("not adjusted for choosing the best of 4" in note for note in answer.view.notes)
    alone = answer_to(compared_results, lambda rows: rows["seed"] == 0)
    assert not any("interval" in note for note in alone.view.notes)


def test_strategies_with_nothing_in_common_are_compared_as_they_are(
    compared_results: Path,
) -> None:
    kept = {("paged oracle", 8), ("contiguous buddy max", 16)}
    answer = answer_to(
        compared_results,
        lambda rows: pd.Series(
            [each in kept for each in zip(rows["strategy"], rows["page_size"], strict=True)],
            index=rows.index,
        ),
    )
    assert "under paged oracle · page size 8, against" in answer.sentence
    assert "under contiguous buddy max · page size 16" in answer.sentence


def answer_to(results: Path, keep: Callable[[pd.DataFrame], pd.Series]) -> Answer:
    """The answer of some rows of the study."""
    study = find_study("single", results)
    (group,) = make_groups(study.rows[keep(study.rows)], study.jobs)
    answer = answer_of(group)
    assert answer is not None
    return answer


def test_a_single_seed_has_no_interval_and_no_verdict(compared_results: Path) -> None:
    said = answer_to(compared_results, lambda rows: rows["seed"] == 0).sentence
    assert "±" not in said
    assert "n = 1 seed, no interval below 5): too few runs to tell (6 are needed)" in said


def test_where_nothing_beats_the_baseline_the_answer_says_so(compared_results: Path) -> None:
    said = answer_to(
        compared_results, lambda rows: (rows["expected"] == "max") & (rows["page_size"] == 16)
    ).sentence
    assert "no mean is ahead of the baseline's, contiguous buddy max (paged max: the same)" in said
    assert "n = 6 seeds" in said


def test_seeds_that_only_one_side_has_are_left_out(compared_results: Path) -> None:
    answer = answer_to(
        compared_results,
        lambda rows: (rows["allocator"] != "paged") | (rows["seed"] >= 2),
    )
    assert "n = 4 seeds, no interval below 5): too few runs to tell" in answer.sentence


def test_an_interval_that_excludes_zero_may_still_have_no_verdict() -> None:
    found = Difference("paged", 50.0, 2.5, 1.9, 6, 0.06, "no difference seen")
    said = difference_in_words(found, USED, family=3)
    assert said.endswith("n = 6 seeds): no difference seen (corrected for 3 comparisons)")


def test_loads_are_no_contestants(tmp_path: Path) -> None:
    timed = ("executor.cost=roofline", "executor.gpu=a100_40gb", "workload.arrivals=poisson")
    store(tmp_path, *timed, "allocator=paged", "workload.rate=50,400")
    answer = answer_of(only_group(tmp_path))
    assert answer is not None and not answer.differences
    means = find_study("single", tmp_path).rows.groupby("rate")["normalised_latency_ms"].mean()
    for rate, mean in means.items():
        assert LATENCY.number(mean) in answer.sentence
        assert f"under paged · rate {rate:g}" in answer.sentence
    for claim in ("baseline", "better", "worse", "ahead"):
        assert claim not in answer.sentence


def test_the_best_of_all_rows_is_one_under_the_same_load(tmp_path: Path) -> None:
    timed = ("executor.cost=roofline", "executor.gpu=a100_40gb", "workload.arrivals=poisson")
    compared = ("allocator=contiguous,paged", "workload.rate=400,50", "repetitions=1")
    store(tmp_path, *timed, *compared)
    answer = answer_of(only_group(tmp_path))
    assert answer is not None and "rate 400" in answer.sentence
    assert "rate 50" not in answer.sentence


def test_a_deterministic_run_repeated_is_one_observation(tmp_path: Path) -> None:
    fixed = ("workload=fixed", "workload.arrivals=all_at_once")
    store(tmp_path, *fixed, "allocator=contiguous,paged")
    answer = answer_of(only_group(tmp_path))
    assert answer is not None
    assert "percentage points more (the same at every seed: exact): better" in answer.sentence
    assert "±" not in answer.sentence and "interval" not in answer.sentence
    assert [cell.text for cell in answer.view.rows[0]][3:] == ["-", "6", "exact", "better"]


def test_a_search_answers_with_the_highest_rate_sustained(searched: Path) -> None:
    study = find_study("searched", searched)
    (found,) = search_answers(study.rows, study.jobs)
    cells = found.cells.set_index("allocator")
    best, other = cells.loc["paged"], cells.loc["contiguous"]
    assert best["sustained"] > other["sustained"] > 0
    assert f"paged sustains a rate of {best['sustained']:.4g} within 40 ms/token" in found.sentence
    assert f"({best['unsustained']:.4g} is not sustained)" in found.sentence
    assert f"against {other['sustained']:.4g} under contiguous buddy max" in found.sentence
    ratio = best["sustained"] / other["sustained"]
    assert f"{ratio:.2f} times as much: n = 3 seeds, no interval below 5" in found.sentence
    assert found.sentence.endswith("too few runs to tell.")


def test_the_page_of_a_search_has_its_table(searched: Path) -> None:
    study = find_study("searched", searched)
    page = read_page(make_page([study]))
    (found,) = search_answers(study.rows, study.jobs)
    assert page.by_id("s1-answer").all("p", "lead")[0].words == found.sentence
    bars = page.by_id("s1-waste").all("div", "bar")
    ended = {r for r in study.rows["rate"] if r in set(found.cells["sustained"])}
    assert len(bars) == 2 and len(study.rows["rate"].unique()) > len(ended) == 2
    for bar, cell in zip(bars, found.cells.itertuples(), strict=True):
        assert bar.attributes["aria-label"].startswith(f"{cell.strategy} · rate {cell.sustained:g}")
    table = page.by_id("s1-answers").all("table")[0]
    shown = {row.all("th")[0].words: row.all("td")[1] for row in table.all("tbody")[0].all("tr")}
    for cell in found.cells.itertuples():
        assert float(shown[cell.strategy].attributes["data-sort"]) == cell.sustained
