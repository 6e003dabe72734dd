"""A search in an experiment: bisected over stored runs, repeated for free, told in its table."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.config_store import ConfigStore
from rich.console import Console

from experiments.sustained_rate import sustained_rates
from harness.compose import compose_study, hydra_session, parse_command
from harness.config import ConfigError, PartConfig, SearchConfig
from harness.measure.backlog import majority_sustains
from harness.runs.jobs import Job
from harness.runs.planning import Plan, plan_study
from harness.runs.rows import collect_rows
from harness.runs.store import RunStore
from harness.runs.study import run_study
from harness.runs.worker import DeviceCache, do_job

TOLERANCE = 0.2
PART = {
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
    "axes": {"engine.max_num_seqs": [4, 8]},
    "search": {"low": 2, "high": 32, "tolerance": TOLERANCE, "normalised_latency_ms": 40},
}


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def offer(part: Mapping[str, object]) -> None:
    """An experiment `searched` of this part, as if it were in conf/."""
    node = {"sweep": {"name": "searched", "presets": {"quick": [part]}}}
    ConfigStore.instance().store(group="experiment", name="searched", node=node, package="_global_")


@pytest.fixture(scope="module", autouse=True)
def experiment() -> Iterator[None]:
    offer(PART)
    yield
    ConfigStore.instance().repo["experiment"].pop("searched.yaml")


def command_line(folder: Path) -> list[str]:
    return ["experiment=searched", f"results_dir={folder}", "tracking=none"]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    return command_line(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """A command line that was done by worker processes, and what it said."""
    arguments = command_line(tmp_path_factory.mktemp("whole"))
    console = Console(file=io.StringIO(), width=200)
    with hydra_session():
        assert run_study(parse_command(arguments), console) == 0
    return arguments, said(console)


def plan(arguments: list[str], console: Console) -> Plan:
    command = parse_command(arguments)
    with hydra_session():
        study = compose_study(command)
        return plan_study(study, command, study.results_dir / study.name, console)


def finish(arguments: list[str], console: Console) -> tuple[Plan, list[Job]]:
    """Do all that a plan asks for, and what follows; the jobs that were done."""
    command = parse_command(arguments)
    with hydra_session():
        study = compose_study(command)
        planned = plan_study(study, command, study.results_dir / study.name, console)
        devices = DeviceCache()
        todo = [job for job in planned.jobs if RunStore(job.root).find(job.run_id) is None]
        done = []
        while todo:
            job = todo.pop(0)
            do_job(job, devices)
            done.append(job)
            todo += planned.follow(job)
    return planned, done


def rates(jobs: list[Job]) -> pd.DataFrame:
    return sustained_rates(collect_rows(jobs), jobs)


def test_finds_the_rate_and_repeats_for_nothing(
    whole: tuple[list[str], str], console: Console
) -> None:
    again, done = finish(whole[0], console)
    assert not done
    answers = rates(again.jobs).set_index("varied")
    few, many = answers.loc["max num seqs 4"], answers.loc["max num seqs 8"]
    for answer in (few, many):
        assert answer["note"] == ""
        assert answer["seeds"] == 3 and set(answer["by_seed"]) == {0, 1, 2}
        assert 0 < answer["sustained"] < answer["unsustained"]
        assert answer["unsustained"] <= answer["sustained"] * (1 + TOLERANCE)
    assert few["unsustained"] < many["sustained"]  # twice the places, more requests a second
    assert len(again.jobs) == sum(answers["num_probes"])


def test_says_what_it_found(whole: tuple[list[str], str]) -> None:
    assert "searching in 2 cells" in whole[1]
    table = whole[1].split("highest workload.rate", 1)[1]
    assert "max num seqs 4" in table and "max num seqs 8" in table
    frame = pd.read_csv(Path(whole[0][1].partition("=")[2]) / "searched" / "sustained.csv")
    assert len(frame) == 2


def test_the_answer_is_what_the_stored_runs_say(
    whole: tuple[list[str], str], console: Console
) -> None:
    jobs = plan(whole[0], console).jobs
    rows = collect_rows(jobs)
    for answer in rates(jobs).to_dict("records"):
        at_best = rows[rows["run_id"] == answer["run_id"]]
        assert set(at_best["rate"]) == {answer["sustained"]}
        assert majority_sustains(at_best.to_dict("records"), 40)


def test_an_interrupted_search_goes_on_where_it_was(arguments: list[str], console: Console) -> None:
    first = plan(arguments, console)
    assert len(first.jobs) == 2  # of each cell, the first probe
    devices = DeviceCache()
    do_job(first.jobs[0], devices)
    second = plan(arguments, console)
    assert len(second.jobs) == 3
    _, done = finish(arguments, console)
    assert first.jobs[0].run_id not in {job.run_id for job in done}
    assert first.jobs[1].run_id in {job.run_id for job in done}


def test_a_failed_probe_ends_its_search_and_is_told(arguments: list[str], console: Console) -> None:
    planned, _ = finish([*arguments, "kv.pool_tokens=16"], console)
    answers = rates(planned.jobs)
    assert list(answers["sustained"]) == [0, 0]
    assert answers["note"].str.contains("requests could be served").all()


def test_a_dry_run_lists_the_first_probes(arguments: list[str], console: Console) -> None:
    with hydra_session():
        assert run_study(parse_command([*arguments, "dry_run=true"]), console) == 0
    assert "searching in 2 cells: up to about" in said(console)
    assert said(console).count("rate 8") == 2


def test_a_value_that_the_user_gives_takes_the_place_of_the_search(
    arguments: list[str], console: Console
) -> None:
    planned = plan([*arguments, "workload.rate=3,5"], console)
    assert not planned.searches
    assert sorted(job.config.workload.rate for job in planned.jobs) == [3, 3, 5, 5]
    assert rates(planned.jobs).empty


@pytest.mark.parametrize(
    ("search", "named"),
    [
        ({"key": "workload.raet"}, "did you mean workload.rate"),
        ({"key": "workload.concurrency"}, "takes fractions"),
        ({"normalised_latency_ms": None}, "slo_normalised_ms"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    arguments: list[str], console: Console, search: dict[str, object], named: str
) -> None:
    offer({**PART, "search": {**PART["search"], **search}})  # type: ignore[dict-item]
    try:
        with pytest.raises(ConfigError, match=named):
            plan(arguments, console)
    finally:
        offer(PART)


def test_a_searched_key_has_no_other_value() -> None:
    with pytest.raises(ConfigError, match="is searched"):
        PartConfig(axes={"workload.rate": [1]}, search=SearchConfig(low=1, high=2))


def test_all_probes_of_all_cells_serve_a_trace_fitted_alike(
    arguments: list[str], console: Console, tmp_path: Path
) -> None:
    lines = [f"2024-05-12 00:00:{i // 4:02d}.0,{90 + 20 * i},10" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    trace = {"workload": "trace", "workload.format": "azure", "workload.path": tmp_path / "t.csv"}
    kept = {k: v for k, v in PART["set"].items() if not k.startswith(("workload", "kv"))}
    search = {"low": 1, "high": 8, "tolerance": 1, "normalised_latency_ms": 40}
    offer(
        PART
        | {"set": {**kept, **trace, "repetitions": 1}, "axes": {"kv.pool_tokens": [2048, 512]}}
        | {"search": {"key": "workload.speed_up", **search}}
    )
    try:
        _, done = finish(arguments, console)
    finally:
        offer(PART)
    assert len(done) > 2 and {job.config.workload.fit_len for job in done} == {128}
