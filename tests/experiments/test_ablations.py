"""The ablations' figures from small runs, and that what they say is so."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tiny_study import Runner, Study, check_files

from experiments.figures import (
    answers,
    estimate_price,
    first_fit_gain,
    motivation,
    phase_map,
    reservation_placement,
)
from experiments.kv_arithmetic import Lengths
from harness.runs.jobs import Job


def _few_of_gain(job: Job) -> bool:
    config = job.config
    told = config.allocator.expected in ("none", "oracle")
    return told and (job.part == "capacity" or config.workload.rate in (1.0, 4.0))


def _few_of_price(job: Job) -> bool:
    allocator = job.config.allocator
    return allocator.expected != "predicted" or (
        allocator.expected_bias in (0.25, 1.0, 4.0) and allocator.expected_spread in (0.0, 1.0)
    )


def _few_of_map(job: Job) -> bool:
    config = job.config
    if config.allocator.expected == "max" or config.workload.output_cv == 2.0:
        return False
    return job.part == "capacity" or (
        config.workload.rate in (1.1, 8.4, 0.8, 6.0) and config.workload.burstiness != 1.0
    )


@pytest.fixture(scope="module")
def gain(run_tiny: Runner) -> Study:
    return run_tiny("experiment=first_fit_gain", "kv.pool_tokens=320", keep=_few_of_gain)


@pytest.fixture(scope="module")
def crossed(run_tiny: Runner) -> Study:
    return run_tiny("experiment=reservation_placement", "kv.pool_tokens=320")


def test_paged_over_contiguous_is_taken_seed_by_seed(gain: Study, tmp_path: Path) -> None:
    points = check_files(first_fit_gain.draw(gain.rows, gain.jobs, tmp_path), "first_fit_gain")
    rows = gain.rows[gain.rows["part"] == "capacity"].set_index(["strategy", "seed"])
    speed = rows["output_tokens_per_s"]
    ratio = (speed["paged"] / speed["contiguous first_fit oracle"]).mean()
    shown = points[(points["panel"] == "ratio") & (points["placement"] == "first_fit")]
    assert shown["output_tokens_per_s_ratio"].item() == pytest.approx(ratio)
    said = first_fit_gain.findings(gain.rows, gain.jobs)
    assert len(said) == 2 and f"{ratio:.2f}" in said[0]


def test_the_most_goodput_may_be_at_another_rate_for_each(gain: Study) -> None:
    rows = gain.rows[gain.rows["part"] == "rates"].copy()
    is_paged = rows["allocator"] == "paged"
    best = np.where(is_paged, 4.0, 1.0)
    rows["goodput_requests_per_s"] = np.where(rows["rate"] == best, 1.0 + is_paged, 0.1)
    line = first_fit_gain.findings(rows, gain.jobs)[0]
    assert "2.00 requests/s" in line and line.count("2.00 ± 0.00 times") == 2
    assert "(1.00)" in line


def test_paging_by_itself_is_drawn_too(gain: Study, crossed: Study, tmp_path: Path) -> None:
    """`allocator=paged` leaves the contiguous parts out."""
    for study, module in ((gain, first_fit_gain), (crossed, reservation_placement)):
        rows = study.rows[study.rows["allocator"] == "paged"]
        name = module.__name__.rpartition(".")[2]
        check_files(module.draw(rows, study.jobs, tmp_path), name)
        assert not any("fit" in line for line in module.findings(rows, study.jobs))


def test_each_change_alone_is_what_it_says(crossed: Study, tmp_path: Path) -> None:
    paths = reservation_placement.draw(crossed.rows, crossed.jobs, tmp_path)
    points = check_files(paths, "reservation_placement")
    rows = crossed.rows[crossed.rows["part"] == "capacity"].set_index(["strategy", "seed"])
    speed = rows["output_tokens_per_s"]
    changes = [
        ("contiguous first_fit max", "contiguous first_fit oracle"),
        ("contiguous first_fit oracle", "paged oracle"),
        ("paged oracle", "paged"),
        ("contiguous first_fit oracle", "contiguous first_fit"),
        ("contiguous buddy oracle", "contiguous buddy"),
    ]
    factors = points[points["part"] == "factors"]["factor"].tolist()
    assert factors == pytest.approx([(speed[b] / speed[a]).mean() for a, b in changes])
    assert len(points[points["part"] == "capacity"]) == 12


def test_reserving_paged_memory_needs_no_preemption(crossed: Study) -> None:
    rows = crossed.rows.groupby("strategy")[["preemptions", "over_reserved_share"]].sum()
    for strategy in ("paged oracle", "paged max"):
        assert rows.loc[strategy, "preemptions"] == 0
    assert rows.loc["paged max", "over_reserved_share"] > 0
    assert rows.loc["paged oracle", "over_reserved_share"] == 0
    assert rows.loc["contiguous first_fit", "preemptions"] > 0


def test_the_verdict_on_optimistic_buddies_follows_the_rows(crossed: Study) -> None:
    for factor, word in ((2.0, "x 2.00 ±"), (1.0, "x 1.00 ±"), (0.5, "x 0.50 ±")):
        rows = crossed.rows.copy()
        told = rows["strategy"] == "contiguous first_fit oracle"
        speeds = rows[told].set_index(["part", "seed"])["output_tokens_per_s"]
        optimistic = rows["strategy"] == "contiguous buddy"
        at = pd.MultiIndex.from_frame(rows.loc[optimistic, ["part", "seed"]])
        rows.loc[optimistic, "output_tokens_per_s"] = factor * speeds.loc[at].to_numpy()
        assert word in reservation_placement.findings(rows, crossed.jobs)[1]


def test_estimates_are_compared_with_the_oracle_of_their_placement(
    run_tiny: Runner, tmp_path: Path
) -> None:
    study = run_tiny(
        "experiment=estimate_price", "kv.pool_tokens=320", "repetitions=2", keep=_few_of_price
    )
    points = check_files(estimate_price.draw(study.rows, study.jobs, tmp_path), "estimate_price")
    truth = points[points["expected"] == "oracle"]
    assert len(truth) == 4 and truth["output_tokens_per_s_ratio"].eq(1).all()
    exact = points[(points["expected"] == "predicted") & (points["expected_bias"] == 1)]
    exact = exact[(exact["expected_spread"] == 0) & (exact["placement"] == "first_fit")]
    assert exact["output_tokens_per_s_ratio"].tolist() == pytest.approx([1, 1])
    lines = estimate_price.findings(study.rows, study.jobs)
    assert len(lines) == 4
    assert all("4 times too short" in line and "4 times too long" in line for line in lines)


def test_the_map_of_small_runs(run_tiny: Runner, tmp_path: Path) -> None:
    study = run_tiny(
        "experiment=phase_map", "kv.pool_tokens=320", "repetitions=2", keep=_few_of_map
    )
    points = check_files(phase_map.draw(study.rows, study.jobs, tmp_path), "phase_map")
    assert len(points) == 2 * 2 * 2
    assert points["load"].gt(0).all()


def _map_rows(attained: dict[str, list[float]]) -> pd.DataFrame:
    """A cell in which each strategy attains these shares, a seed each, and a capacity of 8/s."""
    rows = [
        {"part": "map", "allocator": name.split()[0], "fit": "first_fit",
         "expected": name.split()[1], "spread": 1.0, "burstiness": 1.0, "rate": 6.0, "seed": seed,
         "goodput_requests_per_s": 10 * share, "duration_s": 10.0, "num_requests": 100,
         "requests_per_s": 6.0, "saturated_share": 0.5}
        for name, shares in attained.items()
        for seed, share in enumerate(shares)
    ]  # fmt: skip
    capacity = {**rows[-1], "part": "capacity", "requests_per_s": 8.0}
    return pd.DataFrame([*rows, capacity])


def test_a_cell_is_the_paired_difference_in_points() -> None:
    oracle = [0.1, 0.3, 0.4, 0.6, 0.7, 0.9]
    paged = [share + 0.05 + 0.01 * (-1) ** k for k, share in enumerate(oracle)]
    (cell,) = phase_map._cells(
        _map_rows({"contiguous oracle": oracle, "paged none": paged})
    ).to_dict("records")
    assert cell["points"] == pytest.approx(5.0) and cell["load"] == 0.75
    assert cell["differs"]  # although seeds differ by far more than strategies
    same = _map_rows({"contiguous oracle": oracle, "paged none": oracle})
    assert not phase_map._cells(same)["differs"].any()


def test_cells_of_a_map_are_tested_together() -> None:
    """One of twenty cells, at p = 0.01, is what chance would give."""
    found = [0.01, 0.02, 0.03, 0.08, 0.09, 0.12]
    noise = [0.05, -0.05, 0.04, -0.04, 0.03, -0.03]
    rows = _map_rows({"contiguous oracle": [0.5] * 6, "paged none": [0.5] * 6})
    is_paged = (rows["allocator"] == "paged") & (rows["part"] == "map")
    cells = [rows.assign(burstiness=float(k)) for k in range(1, 21)]
    for index, cell in enumerate(cells):
        cell.loc[is_paged, "goodput_requests_per_s"] += 10 * np.array(noise if index else found)
    alone = phase_map._cells(cells[0])
    assert alone["differs"].item() and alone["verdict"].item() == "better"
    together = phase_map._cells(pd.concat(cells))
    assert together["differs"].sum() == 1
    assert set(together["verdict"]) == {"no difference seen"}


def test_a_map_without_paging_is_not_drawn(tmp_path: Path) -> None:
    assert phase_map._cells(_map_rows({"contiguous oracle": [0.5] * 5})).empty


def _few_bounds(job: Job) -> bool:
    return job.part != "bounds" or (job.config.workload.max_len or 0) <= 8192


def test_formulas_stand_beside_what_was_simulated(run_tiny: Runner, tmp_path: Path) -> None:
    study = run_tiny(
        "experiment=motivation", "kv.pool_tokens=8192", "kv.memory_fraction=null",
        "workload.num_requests=60", "repetitions=2", keep=_few_bounds,
        own=("model", "workload.length_scale", "workload.max_len"),
    )  # fmt: skip
    paths = motivation.draw(study.rows, study.jobs, tmp_path)
    points = check_files(paths, "motivation")
    check = points[points["panel"] == "check"]
    bound = check[(check["strategy"] == "max") & (check["model"] == "llama_3_1_8b")]
    assert bound.set_index("limit")["users"].to_dict() == pytest.approx({2048: 4, 8192: 1})
    assert bound.set_index("limit")["users_formula"].to_dict() == {2048: 4, 8192: 1}
    waste = Lengths.sharegpt().waste("max", 8192, 16)
    assert bound.set_index("limit").loc[8192, "waste"] == pytest.approx(waste, abs=0.03)
    paged = check[(check["strategy"] == "paged") & (check["model"] == "llama_3_1_8b")]
    assert paged["users"].item() == pytest.approx(paged["users_formula"].item(), rel=0.25)
    models = pd.read_csv(next(path for path in paths if path.stem == "motivation_models"))
    assert models["users_max"].le(models["users_oracle"]).all()
    assert models["users_oracle"].le(models["users_paged"]).all()
    console = Console(file=io.StringIO(), width=160)
    console.print(motivation.answer(study.rows, study.jobs))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(name in printed for name in models["model"])
    lines_of_model = (check["model"] == "llama_3_1_8b").sum() + 1  # and what is found of it
    assert printed.count("llama_3_1_8b") == lines_of_model


def test_findings_say_nothing_of_runs_that_are_not_there() -> None:
    empty = pd.DataFrame({name: [] for name in ("status", "run_id", "part", "allocator", "fit",
        "expected", "goodput_requests_per_s", "duration_s", "num_requests")})  # fmt: skip
    names = ["first_fit_gain", "reservation_placement", "estimate_price", "phase_map"]
    assert answers([*names, "motivation"], empty, []) == []


def test_a_burst_is_named_by_the_variation_of_its_gaps() -> None:
    assert phase_map._burst_name(0.25) == "CV of gaps 2"
    assert math.isclose(1 / math.sqrt(4), 0.5) and phase_map._burst_name(4) == "CV of gaps 0.5"
