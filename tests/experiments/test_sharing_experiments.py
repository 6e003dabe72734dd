"""Figures of the experiments on what sequences and requests share, from small stored runs."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from tiny_study import Runner, Study, check_files

from experiments.capacity_figure import capacity_points, knee_notes, rate_lines, rate_points
from experiments.figures import beam_search, chatbot, parallel_sampling, shared_prefix
from harness.runs.jobs import Job

SMALL = (
    "workload.num_requests=24", "repetitions=2", "engine=default", "workload.max_len=256",
    "kv.pool_tokens=1024",
)  # fmt: skip


def _alpaca_alone(job: Job) -> bool:
    workload = job.config.workload
    sequences = max(workload.samples, workload.beam_width)
    return job.part == "waste" and workload.name == "alpaca_like" and sequences in (1, 2, 4)


@pytest.fixture(scope="session")
def sampled(run_tiny: Runner) -> Study:
    return run_tiny(
        "experiment=parallel_sampling", *SMALL, "workload.length_scale=0.5", keep=_alpaca_alone
    )


@pytest.fixture(scope="session")
def beams(run_tiny: Runner) -> Study:
    return run_tiny(
        "experiment=beam_search", *SMALL, "workload.length_scale=0.5", keep=_alpaca_alone
    )


def test_samples_are_drawn_beside_the_paper(sampled: Study, tmp_path: Path) -> None:
    paths = parallel_sampling.draw(sampled.rows, sampled.jobs, tmp_path)
    points = check_files(paths, "parallel_sampling_saved")
    paper = points[points["source"] == "paper"].set_index("samples")["sharing_saved"]
    assert paper.to_dict() == pytest.approx({2: 0.0609, 4: 0.0853, 6: 0.0979})
    ours = points[points["source"] == "simulated"]
    assert set(ours["allocator"]) == {"paged_cow", "paged_prefix"}
    assert set(ours["samples"]) == {2, 4}
    for _, lines in ours.groupby("allocator"):
        saved = lines.set_index("samples")["sharing_saved"]
        assert 0 < saved[2] < saved[4] < 1
    everyone = check_files(paths, "parallel_sampling_throughput")
    assert {"contiguous buddy max", "contiguous buddy oracle", "paged"} < set(everyone["strategy"])
    assert set(everyone["samples"]) == {1, 2, 4}


def test_beams_share_more_than_samples(sampled: Study, beams: Study, tmp_path: Path) -> None:
    paths = beam_search.draw(beams.rows, beams.jobs, tmp_path)
    points = check_files(paths, "beam_search_saved")
    paper = points[points["source"] == "paper"].set_index("beam_width")["sharing_saved"]
    assert paper.to_dict() == pytest.approx({2: 0.3756, 4: 0.5313, 6: 0.5516})
    ours = points[(points["source"] == "simulated") & (points["allocator"] == "paged_cow")]
    samples = sampled.rows[sampled.rows["allocator"] == "paged_cow"]
    for count in (2, 4):
        of_beams = ours[ours["beam_width"] == count]["sharing_saved"].item()
        assert of_beams > samples[samples["samples"] == count]["sharing_saved"].mean()


def test_who_shares_nothing_is_not_in_the_figure_of_savings(sampled: Study, tmp_path: Path) -> None:
    rows = sampled.rows[sampled.rows["allocator"] == "paged"]
    assert (rows["sharing_saved"] == 0).all()
    paths = parallel_sampling.draw(rows, sampled.jobs, tmp_path)
    assert {path.stem for path in paths} <= {"parallel_sampling_throughput"}


def test_of_memory_is_said_what_holds_for_the_workloads_drawn(
    sampled: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []

    def keep_title(figure: plt.Figure, *_: object) -> list[Path]:
        titles.append("".join(t.get_text() for t in figure.texts if t.get_gid() == "title"))
        plt.close(figure)
        return []

    monkeypatch.setattr("experiments.sharing_figure.save", keep_title)
    drawn = sampled.rows.assign(saturated_share=0.9, memory_bound=True)
    alone = drawn[drawn["strategy"] == "paged_cow"]
    alone = alone.assign(workload="other", saturated_share=0.1, memory_bound=False)
    parallel_sampling.draw(pd.concat([drawn, alone]), sampled.jobs, tmp_path)
    assert titles == ["", "simulated; queue waits for memory 90 % of the time"]
    assert parallel_sampling.draw(alone, sampled.jobs, tmp_path) == []


def test_a_shared_prefix_is_drawn_by_length(run_tiny: Runner, tmp_path: Path) -> None:
    study = run_tiny(
        "experiment=shared_prefix", *SMALL, "workload.length_scale=1", "workload.max_len=1024",
        "kv.pool_tokens=2048",
        keep=lambda job: job.part == "capacity" or job.config.workload.rate == 40,
    )  # fmt: skip
    paths = shared_prefix.draw(study.rows, study.jobs, tmp_path)
    points = check_files(paths, "shared_prefix_capacity")
    paper = points[points["source"] == "paper"].set_index("shared_len")["ratio"]
    assert paper.to_dict() == {80: 1.67, 341: 3.58}
    ours = points[points["source"] == "here"].set_index(["strategy", "shared_len"])["ratio"]
    assert ours["contiguous buddy oracle"].eq(1).all()
    assert ours["paged_cow", 341] > ours["paged_cow", 80]
    assert ours["paged_cow", 341] > ours["paged", 341]
    rates = check_files(paths, "shared_prefix_latency")
    assert set(rates["rate"]) == {40} and set(rates["shared_len"]) == {80, 341}


def test_chats_are_drawn_at_capacity_and_over_rates(run_tiny: Runner, tmp_path: Path) -> None:
    study = run_tiny(
        "experiment=chatbot", "workload.num_requests=40", "repetitions=2", "engine=default",
        keep=lambda job: job.part == "capacity" or job.config.workload.rate in (0.1, 0.8),
    )  # fmt: skip
    paths = chatbot.draw(study.rows, study.jobs, tmp_path)
    points = check_files(paths, "chatbot_capacity")
    assert set(points[points["source"] == "paper"]["ratio"]) == {2.0}
    ours = points[points["source"] == "here"]
    hits = ours[ours["prefix_hit_rate"] > 0]
    assert set(hits["allocator"]) == {"paged_prefix"} and len(hits) == 3
    rates = check_files(paths, "chatbot_rates")
    assert set(rates["rate"]) == {0.1, 0.8}
    assert rates["prefix_hit_rate"].between(0, 1).all()


def test_latency_ends_where_the_backlog_grows_with_the_run() -> None:
    rows = pd.DataFrame(
        [("paged", 10, 0.0), ("paged", 20, 0.4), ("paged", 40, 0.6), ("paged", 80, 0.4),
         ("contiguous", 10, 0.9), ("contiguous", 20, 0.9), ("paged_cow", 80, 0.0)],
        columns=["strategy", "rate", "saturated_share"],
    )  # fmt: skip
    rows = rows.assign(
        allocator=rows["strategy"], expected="none", normalised_latency_ms=25.0,
        output_tokens_per_s=1.0, batched_requests=1.0, prefix_hit_rate=0.5,
    )  # fmt: skip
    points = rate_points(rows).set_index(["strategy", "rate"])
    shown = points["normalised_latency_ms"].dropna()
    assert set(shown.index) == {("paged", 10), ("paged", 20), ("paged_cow", 80)}
    assert points["prefix_hit_rate"].eq(0.5).all()
    figure, axes = plt.subplots()
    rate_lines(axes, points.reset_index(), "normalised_latency_ms")
    drawn = {tuple(line.get_xdata()) for line in axes.get_lines()}
    assert {(10, 20), (80,), (20,)} <= drawn, "the last is the ring round the end of paged"
    assert not any(40 in x for x in drawn)
    (note,) = knee_notes(points.reset_index())
    assert "at any rate for contiguous" in note
    plt.close(figure)


def test_ratios_compare_seed_with_seed(sampled: Study) -> None:
    """Requests of another seed are other requests: dividing means would mix them."""
    rows = sampled.rows[sampled.rows["samples"] == 2]
    rows = rows.assign(
        per_step=rows["output_tokens"] / rows["num_steps"],
        # as where clients think between requests: no step runs then
        output_tokens_per_s=rows["output_tokens_per_s"] / rows["batched_requests"],
    )
    rate = rows.pivot_table(index="seed", columns="strategy", values="per_step", aggfunc="mean")
    wanted = (rate["paged"] / rate["contiguous buddy oracle"]).mean()
    points = capacity_points(rows, ["workload"], "oracle").set_index("strategy")
    assert points.loc["paged", "ratio"] == pytest.approx(wanted)
