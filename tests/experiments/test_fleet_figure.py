"""The figure and the table of fleets, from small stored runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from tiny_study import Runner, Study, check_files

from experiments.figures import fleet
from harness.runs.jobs import Job

LINES = {
    "round_robin",
    "least_loaded",
    "prefix_aware, guard 8",
    "prefix_aware, guard 64",
    "paged, round_robin",
}


def _small(job: Job) -> bool:
    return job.config.cluster.replicas <= 10


@pytest.fixture(scope="module")
def fleets(run_tiny: Runner) -> Study:
    return run_tiny(
        "experiment=fleet", "workload.num_requests=30", "repetitions=2", keep=_small,
        own=("model", "workload.length_scale", "workload.max_len"),
    )  # fmt: skip


def test_every_router_is_a_line_from_one_replica_on(fleets: Study, tmp_path: Path) -> None:
    points = check_files(fleet.draw(fleets.rows, fleets.jobs, tmp_path), "fleet")
    assert set(points["line"]) == LINES
    assert set(points["replicas"]) == {1, 10}
    rows = fleets.rows
    single = rows[rows["replicas"].isna() & (rows["allocator"] == "paged_prefix")]
    for line in LINES - {"paged, round_robin"}:
        first = points[(points["line"] == line) & (points["replicas"] == 1)]
        assert first["prefix_hit_rate"].item() == pytest.approx(single["prefix_hit_rate"].mean())
    ten = points[points["replicas"] == 10].set_index("line")
    chosen = rows[(rows["replicas"] == 10) & (rows["router"] == "least_loaded")]
    goodput = chosen["goodput_requests_per_s"].mean() / 10
    assert ten.loc["least_loaded", "goodput_each"] == pytest.approx(goodput)
    hit_rates = ten["prefix_hit_rate"]
    assert hit_rates["prefix_aware, guard 64"] > hit_rates["round_robin"] > 0
    assert hit_rates["paged, round_robin"] == 0


def test_the_table_has_a_row_a_router_and_size(fleets: Study) -> None:
    screen = io.StringIO()
    Console(file=screen, width=110).print(fleet.answer(fleets.rows, fleets.jobs))
    text = screen.getvalue()
    assert all(line in text for line in LINES)
    assert sum(line.split()[-8:-7] == ["10"] for line in text.splitlines()) == len(LINES)


def test_single_runs_are_no_fleet(fleets: Study, tmp_path: Path) -> None:
    single = fleets.rows[fleets.rows["replicas"].isna()]
    assert fleet.draw(single, fleets.jobs, tmp_path) == []
    assert fleet.answer(single, fleets.jobs) is None


def test_what_else_is_swept_is_a_line_of_its_own(run_tiny: Runner, tmp_path: Path) -> None:
    study = run_tiny(
        "experiment=fleet", "workload.num_requests=20", "repetitions=1", "allocator=paged",
        "kv.pool_tokens=1024,4096", "cluster.router=round_robin,least_loaded",
        "cluster.replicas=2,3",
        own=("model", "workload.length_scale", "workload.max_len"),
    )  # fmt: skip
    points = check_files(fleet.draw(study.rows, study.jobs, tmp_path), "fleet")
    assert set(points["line"]) == {
        f"{router}, pool tokens {size}"
        for router in ("round_robin", "least_loaded")
        for size in (1024, 4096)
    }
    assert set(points["repetitions"]) == {1}
    rows = fleet._by_line(study.rows, study.jobs)
    assert len(set(fleet._looks(rows).values())) == 4
    of_line = points[points["line"] == "least_loaded, pool tokens 1024"].set_index("replicas")
    same = study.rows[study.rows["pool_tokens"] == 1024].set_index(["router", "replicas"])
    goodput = same.loc[("least_loaded", 3), "goodput_requests_per_s"] / 3
    assert of_line.loc[3, "goodput_each"] == pytest.approx(goodput)


def test_the_title_says_what_load_the_fleets_have(run_tiny: Runner) -> None:
    said = []
    for load in ("per_replica", "total", "total,per_replica"):
        study = run_tiny(
            "cluster.replicas=2,3", f"cluster.load={load}", "repetitions=1",
            "workload.num_requests=6", "workload.arrivals=poisson",
        )  # fmt: skip
        said.append(fleet._load(study.rows, study.jobs))
        lines = set(fleet._by_line(study.rows, study.jobs)["line"])
    assert said == [" at the same rate a replica", " at the same rate of the fleet", ""]
    assert lines == {"round_robin, load total", "round_robin, load per_replica"}
