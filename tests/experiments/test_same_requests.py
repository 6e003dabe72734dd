"""Cells of a table are asked for the same requests, whatever pools and models they are compared
over."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_study import Runner, Study

from experiments.checks import run_checks
from experiments.tables import make_tables
from harness.runs import planning

SWEEPS = (
    ("kv.pool_tokens=4096,1024,256",),
    ("kv.pool_tokens=512,256", "workload.num_requests=null", "workload.arrivals=all_at_once"),
    ("kv.pool_tokens=512,256", "workload.length_scale=0.5"),
    ("kv.pool_tokens=512,256", "workload.max_len=900"),
    ("device.imagined_memory_gib=0.02", "kv.memory_fraction=0.5,0.9", "kv.page_size=16,32"),
    ("kv.pool_tokens=2048", "model=tiny,tiny_32k", "allocator=paged,contiguous"),
    ("kv.pool_demand=4,8", "engine.token_budget=64,512", "engine.max_num_seqs=4,64"),
)


@pytest.fixture(scope="session")
def sweep_trace(run_tiny: Runner, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Runs of a trace of 60 requests of 100 to 1,280 tokens, four a second, 20 a repetition."""
    rows = [f"2024-05-12 00:00:{i // 4:02d}.{25 * (i % 4):02d},{90 + 20 * i},10" for i in range(60)]
    path: Path = tmp_path_factory.mktemp("trace") / "t.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))

    def run(*arguments: str) -> Study:
        trace = ("workload=trace", "workload.format=azure", f"workload.path={path}")
        given = {argument.split("=", 1)[0] for argument in arguments}
        own = [key for key in ("workload.length_scale", "workload.max_len") if key not in given]
        few = [] if "workload.num_requests" in given else ["workload.num_requests=20"]
        return run_tiny(*trace, *few, "repetitions=2", *arguments, own=own)

    return run


@pytest.mark.parametrize("sweep", SWEEPS, ids=" ".join)
def test_a_sweep_serves_the_same_requests_in_all_of_its_cells(
    sweep_trace: Runner, sweep: tuple[str, ...]
) -> None:
    study = sweep_trace(*sweep)
    assert run_checks(study.rows, study.jobs).failures == ()
    assert len(study.rows) >= 4
    of_model = study.rows.groupby(["model", "seed"])
    assert (of_model["requests_digest"].nunique() == 1).all()
    assert study.rows.groupby("seed")["prompt_tokens"].nunique().eq(1).all()


@pytest.mark.parametrize("sweep", SWEEPS[:4], ids=" ".join)
def test_what_is_fitted_to_each_cell_is_found_by_the_digests(
    sweep_trace: Runner, sweep: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "fitted_alike", lambda parts, configs, shape_of: configs)
    study = sweep_trace(*sweep, "measure.slo_ttft_ms=1000")  # a study of its own
    failures = run_checks(study.rows, study.jobs).failures
    assert len(failures) == 2
    assert "runs, trace, seed 0: run " in failures[0]
    assert "did not serve the same requests" in failures[0]


def test_a_pool_that_a_strategy_changes_is_found(sweep_trace: Runner) -> None:
    study = sweep_trace(*SWEEPS[5])
    pools = study.rows["pool_tokens"].where(study.rows["allocator"] == "paged", 1024)
    failures = run_checks(study.rows.assign(pool_tokens=pools), study.jobs).failures
    assert len(failures) == 4 and all("pools of 1,024 and 2,048 tokens" in f for f in failures)


def test_times_that_replace_a_traces_own_are_told(sweep_trace: Runner) -> None:
    for sweep, are_told in ((SWEEPS[1], True), (SWEEPS[0], False)):
        study = sweep_trace(*sweep)
        notes = " ".join(make_tables(study.rows, study.jobs)[0].notes)
        assert ("all at once, not at the trace's own times" in notes) == are_told
