"""Figures from small stored runs: files, their data, the same bytes again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tiny_study import Runner, Study, check_files

from experiments import plotting
from experiments.figure_style import DEFAULT
from experiments.figures import compare, draw_figures, memory_fraction, memory_map, page_size
from experiments.present import present
from harness.config import ConfigError
from harness.runs.store import RunStore


@pytest.fixture(scope="session")
def mapped(run_tiny: Runner) -> Study:
    return run_tiny("experiment=memory_map", "repetitions=1", "kv.pool_tokens=256")


def test_present_writes_tables_and_figures(compared: Study) -> None:
    shown = present(
        compared.rows, compared.jobs, compared.figures, compared.folder, Console(file=io.StringIO())
    )
    names = {path.name for path in shown.paths}
    assert {"comparison.md", "comparison.csv", "compare_classes.png", "compare_fig2.pdf"} <= names
    assert all(path.exists() for path in shown.paths) and shown.failures == ()


def test_compare_plots_the_means(compared: Study, tmp_path: Path) -> None:
    paths = compare.draw(compared.rows, compared.jobs, tmp_path)
    points = check_files(paths, "compare_classes")
    rows = compared.rows[
        (compared.rows["strategy"] == "paged") & (compared.rows["workload"] == "sharegpt")
    ]
    plotted = points[(points["strategy"] == "paged") & (points["workload"] == "sharegpt")]
    assert plotted["utilisation"].item() == pytest.approx(rows["utilisation"].mean())
    theirs = check_files(paths, "compare_fig2")
    assert theirs[(theirs["source"] == "paper")].set_index("strategy")["token"].to_dict() == {
        "max": 20.4, "pow2": 26.8, "oracle": 38.2, "paged": 96.3,
    }  # fmt: skip


def test_page_size_draws_times_only_where_there_are_any(run_tiny: Runner, tmp_path: Path) -> None:
    study = run_tiny("allocator=contiguous,paged,paged_prefix", "kv.page_size=4,16")
    paths = page_size.draw(study.rows, study.jobs, tmp_path)
    assert {path.stem for path in paths} == {"page_size_waste"}
    check_files(paths, "page_size_waste")
    timed = study.rows.assign(executor="torch")
    points = check_files(page_size.draw(timed, study.jobs, tmp_path), "page_size_times")
    assert len(points) == 6 and points["output_tokens_per_s"].gt(0).all()


def test_a_figure_of_times_says_its_repetitions_and_which_were_disturbed(
    run_tiny: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = run_tiny("allocator=contiguous,paged", "kv.page_size=4,16")
    said: list[str] = []
    whole = page_size.arrange
    monkeypatch.setattr(
        page_size, "arrange", lambda *a, notes=(), **k: said.extend(notes) or whole(*a, **k)
    )
    page_size.draw(study.rows, study.jobs, tmp_path)
    assert said == []
    timed = study.rows.assign(executor="torch", others_share=0.0)
    timed.loc[timed["repetition"] == 1, "others_share"] = 0.25
    points = check_files(page_size.draw(timed, study.jobs, tmp_path), "page_size_times")
    assert set(points["disturbed"]) == {1}
    assert said == [
        "n = 5 repetitions; bars and bands are 95 % intervals",
        "§ disturbed: others had more than 5 % of the cores in 4 of 20 repetitions (up to 25 %): "
        "their times say little.",
    ]


def test_memory_fraction(run_tiny: Runner, tmp_path: Path) -> None:
    study = run_tiny(
        "experiment=sweep_memory_fraction", "kv.memory_fraction=0.5,0.9", "model=small",
        "device.imagined_memory_gib=0.31", "workload.rate=500", "repetitions=1",
        "workload.num_requests=8",
    )  # fmt: skip
    points = check_files(
        memory_fraction.draw(study.rows, study.jobs, tmp_path), "memory_fraction_simulated"
    )
    assert set(points["memory_fraction"]) == {0.5, 0.9}
    assert set(points["workload"]) == {"steady", "bursty"}


def test_no_point_lies_outside_of_shared_axes(compared: Study) -> None:
    rows = compared.rows.assign(memory_fraction=0.5)
    high = rows.assign(workload="other", batched_requests=100 * rows["batched_requests"])
    with DEFAULT.context():
        figure, points = memory_fraction._draw_grid(
            pd.concat([rows, high]), [("batched_requests", 1.0, "batched requests")], DEFAULT
        )
    assert all(axes.get_ylim()[0] == 0 for axes in figure.axes)
    assert all(axes.get_ylim()[1] > points["batched_requests"].max() for axes in figure.axes)


def test_figures_are_the_same_bytes_again(compared: Study, tmp_path: Path) -> None:
    first = compare.draw(compared.rows, compared.jobs, tmp_path / "a")
    second = compare.draw(compared.rows, compared.jobs, tmp_path / "b")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_an_unknown_figure_is_named_with_the_nearest(compared: Study) -> None:
    with pytest.raises(ConfigError, match="did you mean page_size"):
        draw_figures(["page_sise"], compared.rows, compared.jobs, compared.folder)


def test_memory_map_shows_what_the_ledger_counted(mapped: Study, tmp_path: Path) -> None:
    points = check_files(memory_map.draw(mapped.rows, mapped.jobs, tmp_path), "memory_map")
    assert set(points["strategy"]) == set(mapped.rows["strategy"])
    for job in mapped.jobs:
        run = RunStore(job.root).find(job.run_id)
        assert run is not None
        steps = run.frame("steps")
        until_s = float((steps["start_s"] + steps["duration_s"]).max())
        classes, _ = memory_map.rasterise(run.frame("memory_map"), steps, 16, 256, until_s)
        for index, name in enumerate(memory_map.ORDER):
            counted = np.average(steps[name], weights=steps["duration_s"])
            shown = (classes == index).sum(axis=0).mean()
            assert shown == pytest.approx(counted, abs=0.03 * 256), name


def test_memory_map_puts_classes_in_order_within_a_page() -> None:
    intervals = pd.DataFrame(
        [(1, 7, 1, 1, 1, 0, 1, 0.0, 1.0)],
        columns=[
            "page", "seq_id", "token", "reserved", "over_reserved", "size_class", "tail",
            "from_s", "to_s",
        ],
    )  # fmt: skip
    steps = pd.DataFrame(
        {"start_s": [0.0, 1.0], "withheld": 0, "stranded": [0, 12], "refused": 0, "free": [12, 0]}
    )
    classes, lighter = memory_map.rasterise(intervals, steps, 4, 12, 2.0)
    early, late = classes[:, 10], classes[:, -10]
    free, stranded = memory_map.ORDER.index("free"), memory_map.ORDER.index("stranded")
    assert early.tolist() == [free] * 4 + [0, 1, 2, 4] + [free] * 4
    assert late.tolist() == [stranded] * 12
    assert lighter[4:8, 10].all() and not lighter[:4].any() and not lighter[:, -10].any()


def test_a_figure_of_waste_mixes_no_parts() -> None:
    """`executor=simulated` simulates the timed part as well, which has another pool."""
    rows = pd.DataFrame(
        {
            "workload": ["a", "a", "b", "a"],
            "part": ["waste", "times", "times", "waste"],
            "executor": "simulated",
        }
    )
    chosen = plotting.of_first_part(plotting.preferred(rows, simulated=True))
    assert list(zip(chosen["workload"], chosen["part"], strict=True)) == [
        ("a", "waste"),
        ("a", "waste"),
        ("b", "times"),
    ]
