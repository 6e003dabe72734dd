"""The PagedAttention paper's figures, from small stored runs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tiny_study import Runner, Study, check_files

from experiments import attention_latency
from experiments.figures import answers, draw_figures, paper_fig2, paper_fig13, paper_fig15
from experiments.paper import rates as paper_rates
from experiments.paper.page_sizes import LATENCY, largest_good_page
from experiments.paper.quantities import published_numbers
from experiments.paper.systems import SYSTEMS, system_of
from experiments.present import present
from experiments.windows import Window
from harness.compose import compose_study, hydra_session, parse_command
from harness.config import AllocatorConfig, ConfigError, EngineConfig, RunConfig
from harness.runs.jobs import Job
from harness.runs.study import run_study

SMALL = ("repetitions=2", "engine=default", "workload.max_len=256", "kv.pool_tokens=1024")
OVERLOAD = ("workload.rate=100000", "workload.num_requests=48")


def _of_fig2(job: Job) -> bool:
    return job.part == "fig2"


@pytest.fixture
def full(run_tiny: Runner, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Fig. 2's systems, whose pool is full in the window."""
    study = run_tiny(
        "experiment=paper_fig2", "preset=full", *SMALL, *OVERLOAD, "kv.pool_tokens=320",
        keep=_of_fig2, own=["model"],
    )  # fmt: skip
    end = float(study.rows["duration_s"].min())
    monkeypatch.setattr(paper_fig2, "WINDOW", Window(0.0, 0.4 * end))
    return study


def test_fig2_has_the_papers_bars_beside_ours(full: Study, tmp_path: Path) -> None:
    points = check_files(paper_fig2.draw(full.rows, full.jobs, tmp_path), "paper_fig2")
    ours = points[points["source"] == "here"].set_index("system")
    assert set(ours.index) == set(SYSTEMS) - {"ft_artifact", "ft_largest", "first_fit_max"}
    sums = ours[["token", "reservation", "internal", "external"]].sum(axis="columns")
    assert sums.tolist() == pytest.approx([100.0] * len(ours))
    assert ours.loc["orca_max", "internal"] > ours.loc["orca_oracle", "internal"] == 0
    theirs = points[points["source"] == "paper"].set_index("system")["token"]
    assert theirs.to_dict() == {
        "orca_max": 20.4, "orca_pow2": 26.8, "orca_oracle": 38.2, "vllm": 96.3,
    }  # fmt: skip


def test_every_number_of_fig2_is_in_the_table(full: Study) -> None:
    found = paper_fig2.quantities(full.rows, full.jobs)
    labelled = pd.DataFrame(published_numbers()["fig2_memory_percent"]).notna().to_numpy().sum()
    assert len(found) == labelled == 13
    assert {q.published for q in found} >= {20.4, 41.6, 96.3}
    shares = paper_fig2.shares(full.rows, full.jobs).set_index("system")
    first = found[0]
    assert first.ours.mean == pytest.approx(shares.loc["orca_max", "token"])


def test_the_table_takes_the_comparisons_place_on_the_terminal(full: Study, tmp_path: Path) -> None:
    out = io.StringIO()
    figures = ["paper_fig2", "paper_table"]
    made = present(full.rows, full.jobs, figures, tmp_path, Console(file=out, width=120))
    assert "Orca (Max), token states" in out.getvalue()
    assert "tok/step" not in out.getvalue()
    names = {path.name for path in made.paths}
    assert {"comparison.md", "paper_table.md", "paper_table.csv"} <= names
    assert answers(["paper_fig2"], full.rows, full.jobs) == []
    with pytest.raises(ConfigError, match="did you mean paper_table"):
        draw_figures(["paper_tabel"], full.rows, full.jobs, tmp_path)


def test_batched_requests_compare_only_where_requests_wait() -> None:
    waiting = pd.Series({"workload": "sharegpt", "queued": 1.0})
    assert paper_fig13._reason(waiting) == ""
    idle = pd.Series({"workload": "sharegpt", "queued": 0.2})
    assert "host" in paper_fig13._reason(idle)
    both = paper_fig13._reason(pd.Series({"workload": "alpaca_like", "queued": 0.2}))
    assert "Alpaca" in both and "host" in both


def test_overload_of_fig13_is_fig2s(
    full: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = full.rows.copy()
    rows.loc[rows["allocator"] == "paged", "part"] = "fig13"
    rows.loc[rows["allocator"] == "paged", "rate"] = 2.0
    monkeypatch.setattr(paper_fig13, "WINDOWS", {("sharegpt", "2"): paper_fig2.WINDOW})
    points = check_files(paper_fig13.draw(rows, full.jobs, tmp_path), "paper_fig13")
    loads = points.groupby("system")["load"].first().astype(str).to_dict()
    assert loads["vllm"] == "2" and loads["orca_max"] == paper_fig13.OVERLOAD
    assert [q.published for q in paper_fig13.quantities(rows, full.jobs)] == [
        30.42, 7.0, 9.81, 13.62,
    ]  # fmt: skip


def _samples(job: Job) -> bool:
    return job.config.workload.samples > 1 and job.config.workload.name == "alpaca_like"


def test_fig15_has_what_samples_share_beside_the_papers(run_tiny: Runner, tmp_path: Path) -> None:
    study = run_tiny(
        "experiment=paper_fig15", *SMALL, "workload.length_scale=0.5", keep=_samples,
    )  # fmt: skip
    paths = paper_fig15.draw(study.rows, study.jobs, tmp_path)
    check_files(paths, "paper_fig15_parallel_saved")
    found = paper_fig15.quantities(study.rows, study.jobs)
    assert [q.published for q in found] == [6.09, 8.53, 9.79]
    saved = [q.ours.mean for q in found]
    assert 0 < saved[0] < saved[1] < saved[2] < 100


def test_a_search_ends_as_lines_and_ratios(tmp_path: Path) -> None:
    out = io.StringIO()
    arguments = (
        "experiment=paper_fig16", "repetitions=1", "model=tiny", "executor.cost=constant",
        "workload.num_requests=150", "workload.length_scale=0.125", "kv.pool_tokens=512",
        "workload.max_len=1024", "workload.shared_len=80", "tracking=none",
        f"results_dir={tmp_path}",
    )  # fmt: skip
    with hydra_session():
        assert run_study(parse_command(arguments), Console(file=out, width=120)) == 0
    folder = tmp_path / "paper_fig16"
    points = pd.read_csv(folder / "figures" / "paper_fig16.csv")
    assert set(points["system"]) == {"orca_oracle", "first_fit_oracle", "vllm"}
    table = pd.read_csv(folder / "paper_table.csv").set_index("published_low")
    sustained = points[points["sustained"]].groupby(["panel", "system"])["rate"].max()
    panel = "1-shot, 80 tokens shared"
    expected = sustained[panel, "vllm"] / sustained[panel, "orca_oracle"]
    assert table.loc[1.67, "ours"] == pytest.approx(expected)
    assert list(table["quantity"]) == [f"{panel}: paged over Orca (Oracle)"]


def test_ratios_are_of_the_rates_that_most_seeds_sustain() -> None:
    rates = pd.DataFrame(
        {
            "system": ["vllm", "orca_oracle", "orca_max"],
            "sustained": [5.0, 2.0, 0.0],
            "by_seed": [{0: 0.0, 1: 5.0, 2: 5.5}, {0: 2.0, 1: 2.0, 2: 2.1}, {0: 0.0, 1: 0.0}],
        }
    )
    found = paper_rates.rate_ratio(rates, "vllm", "orca_oracle")
    assert (found.mean, found.n) == (pytest.approx(2.5), 3)
    assert np.isnan(found.half_width)
    assert np.isnan(paper_rates.rate_ratio(rates, "vllm", "orca_max").mean)
    assert paper_rates.rate_ratio(rates, "vllm", "ft_largest").n == 0


def test_systems_by_config() -> None:
    buddy = AllocatorConfig("contiguous", "oracle", options={"fit": "buddy"})
    config = RunConfig(allocator=buddy)
    assert system_of(config) == "orca_oracle"
    assert system_of(replace(config, engine=EngineConfig(schedule="static"))) == "ft_largest"
    five = EngineConfig(schedule="static", batch_size=5)
    assert system_of(replace(config, engine=five)) == "ft_artifact"
    best = AllocatorConfig("contiguous", "oracle", options={"fit": "best_fit"})
    assert system_of(RunConfig(allocator=best)) == ""
    assert system_of(RunConfig()) == "vllm"
    assert system_of(RunConfig(allocator=AllocatorConfig("paged", "oracle"))) == ""


def test_the_largest_good_page_ends_at_the_first_bad_one() -> None:
    line = pd.DataFrame({"page_size": [1, 2, 4, 8], LATENCY.metric: [12.0, 10.0, 10.9, 11.5]})
    assert largest_good_page(line, 0.1) == 4
    assert largest_good_page(line, 0.2) == 8
    assert largest_good_page(line.sample(frac=1, random_state=1), 0.05) == 2


def test_the_whole_paper_is_its_figures() -> None:
    alone = [f"paper_fig{n}" for n in (2, 12, 13, 14, 15, 16, 17, 18, 19)] + ["paper_host_time"]
    with hydra_session():
        paper = compose_study(parse_command(["experiment=paper"]))
        parts = [compose_study(parse_command([f"experiment={name}"])).parts for name in alone]
        assert set(paper.figures) == {*alone, "paper_table"}
        assert all(part in paper.parts for own in parts for part in own)
        with pytest.raises(ConfigError, match="includes itself"):
            compose_study(parse_command(["experiment=paper_fig2", "sweep.include=[paper_fig2]"]))


def test_kernels_are_compared_round_by_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"batch": 8, "context": 64, "kernel": kernel, "round": turn, "latency_us": latency}
        for turn in range(40)
        for kernel, latency in (("contiguous", 100.0 + turn), ("paged", 1.2 * (100.0 + turn)))
    ]
    lines[1]["latency_us"] = 1e6  # one call waited for a processor
    overhead = attention_latency.overheads(pd.DataFrame(lines))[8, 64]
    assert overhead.mean == pytest.approx(20.0)
    for name, value in (("BATCHES", (2,)), ("CONTEXTS", (32, 64)), ("NUM_HEADS", 2)):
        monkeypatch.setattr(attention_latency, name, value)
    measured = attention_latency.measure("cpu", 4)
    assert len(measured) == 2 * 2 * 4 and (measured["latency_us"] > 0).all()
    attention_latency.store(measured, tmp_path, attention_latency.environment("cpu"))
    stored = attention_latency.load(tmp_path / "paper")
    assert stored is not None and set(attention_latency.overheads(stored)) == {(2, 32), (2, 64)}
    assert attention_latency.load(tmp_path / "elsewhere" / "paper") is None
    drawn = attention_latency.draw(stored, tmp_path, "kernels")
    assert all(path.stat().st_size > 0 for path in drawn)
