"""Two sweeps logged to W&B offline, read back from its files."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import pytest
from matplotlib import image
from rich.console import Console
from wandb_log import OfflineRun, offline_runs
from wandb_server import wandb_server

from harness.compose import hydra_session, parse_command
from harness.config import TrackingConfig
from harness.measure.ledger import CLASSES
from harness.measure.metrics import METRIC_NAMES
from harness.runs.store import RunStore, StoredRun
from harness.runs.study import run_study
from harness.runs.study_record import StudyRecord, read_studies
from harness.tracking import keys
from harness.tracking.wandb_records import wanted_runs
from harness.tracking.wandb_upload import upload_study

SMALL = (
    "model=tiny", "executor=simulated", "repetitions=5", "workload.num_requests=12",
    "workload.length_scale=0.05", "workload.max_len=128", "kv.pool_tokens=256",
    "tracking=wandb", "tracking.mode=offline", "tracking.project=tried",
)  # fmt: skip

BROKEN = '''
from allocators.paged import Paged


class Broken(Paged):
    """Fails."""

    name = "broken"

    def allocate(self, *arguments, **named):
        raise RuntimeError("no such luck")
'''


class Sweeps(NamedTuple):
    """studies: paged and one that fails; paged alone. said: by the commands for these and by the
    second repeated. runs, after: what W&B has once the second is done, and once it is repeated."""

    folder: Path
    studies: tuple[StudyRecord, StudyRecord]
    said: tuple[str, str, str]
    runs: list[OfflineRun]
    after: list[OfflineRun]

    def stored(self, index: int) -> StoredRun:
        """One of the first study's runs."""
        found = RunStore(self.folder).find(self.studies[0].runs[index].run_id)
        assert found is not None
        return found

    def logged(self, study: int, name: str) -> OfflineRun:
        """The run of a study whose name begins like this."""
        group = f"single@{self.studies[study].study_id}"
        (found,) = (
            run
            for run in self.runs
            if run.header["run_group"] == group and run.header["display_name"].startswith(name)
        )
        return found


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    folder = tmp_path_factory.mktemp("results")
    broken = folder / "broken.py"
    broken.write_text(BROKEN)

    def run(*arguments: str) -> str:
        file = io.StringIO()
        with hydra_session():
            command = parse_command([*SMALL, f"results_dir={folder}", *arguments])
            run_study(command, Console(file=file, width=1000))
        return file.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        first = run(f"allocator=paged,{broken}:Broken", "measure.memory_map=true")
        second = run("allocator=paged", "measure.memory_map=true")
        runs = list(offline_runs(folder / "single"))
        repeated = run("allocator=paged", "measure.memory_map=true")
        after = list(offline_runs(folder / "single"))
    later, earlier = read_studies(folder / "single")
    return Sweeps(folder / "single", (earlier, later), (first, second, repeated), runs, after)


def test_each_stored_run_of_a_sweep_is_a_run_of_its_group(sweeps: Sweeps) -> None:
    shown = {
        (run.header["run_group"], run.header["job_type"], run.header["display_name"])
        for run in sweeps.runs
    }
    first, second = (f"single@{study.study_id}" for study in sweeps.studies)
    paged, broken = (sweeps.stored(index).label for index in (0, 1))
    assert shown == {
        (first, "runs", paged),
        (first, "runs", broken),
        (first, keys.AGGREGATE, first),
        (second, "runs", paged),
        (second, keys.AGGREGATE, second),
    }
    assert {run.header["project"] for run in sweeps.runs} == {"tried"}
    assert {"single", "quick", "paged", "tiny"} <= set(sweeps.logged(0, "paged").header["tags"])


def test_sweeps_that_share_a_stored_run_do_not_merge(sweeps: Sweeps) -> None:
    assert sweeps.studies[1].runs[0] in sweeps.studies[0].runs
    ids = [run.header["run_id"] for run in sweeps.runs]
    assert len(set(ids)) == len(ids) == 5


def test_a_repeated_command_logs_nothing_new(sweeps: Sweeps) -> None:
    assert [run.path for run in sweeps.after] == [run.path for run in sweeps.runs]
    assert "all 2 runs of" in sweeps.said[2] and "there already" in sweeps.said[2]
    assert "offline" in sweeps.said[0] and "warning" not in "".join(sweeps.said)


def test_the_config_is_the_resolved_one_with_environment_and_study(sweeps: Sweeps) -> None:
    stored, logged = sweeps.stored(0), sweeps.logged(0, "paged").config
    for group, values in stored.config.items():
        assert (
            logged[group] == pytest.approx(values) if group == "seed" else logged[group] == values
        )
    environment = json.loads((stored.path / "environment.json").read_text())
    assert logged["environment"] == environment
    assert logged["study"]["run_id"] == stored.run_id
    assert logged["study"]["arguments"] == list(sweeps.studies[0].arguments)
    assert logged["setting"]["strategy"] == "paged"


def test_series_have_every_class_over_their_step_metric(sweeps: Sweeps) -> None:
    logged = sweeps.logged(0, "paged")
    steps = sweeps.stored(0).frame("steps").query("repetition == 0")
    series = logged.history.dropna(subset=[keys.STEP])
    assert list(series[keys.STEP]) == list(steps["step"])
    for name in CLASSES:
        assert list(series[f"ledger_slots/{name}"]) == list(steps[name])
        np.testing.assert_allclose(series[f"ledger_share/{name}"], steps[name] / 256)
    assert list(series["engine/running"]) == list(steps["num_running"])
    assert list(series["engine/waiting"]) == list(steps["num_waiting"])
    tokens = steps["num_prefill_tokens"] + steps["num_decode_tokens"]
    assert list(series["engine/tokens"]) == list(tokens)
    assert set(keys.SERIES) <= set(series.columns)
    metrics = {m["glob_name"]: m["step_metric"] for m in logged.of("metric") if "glob_name" in m}
    for name in keys.SERIES:
        assert metrics[name.split("/")[0] + "/*"] == keys.STEP


def test_the_summary_has_means_with_counts_and_intervals(sweeps: Sweeps) -> None:
    logged, rows = sweeps.logged(0, "paged").summary, pd.DataFrame(sweeps.stored(0).summary)
    assert (logged["status"], logged["repetitions"]) == ("complete", 5)
    for name in METRIC_NAMES:
        values = rows[name].astype(float).dropna()
        if len(values) == 0:
            assert name not in logged
            continue
        assert logged[name] == pytest.approx(values.mean()), name
        assert logged.get(f"n/{name}", 5) == len(values)
    spread = rows["utilisation"].std(ddof=1)
    assert logged["half_width/utilisation"] == pytest.approx(2.7764451 * spread / 5**0.5)
    assert "ledger_share/token" not in logged  # the last step's would stand for the run


def test_table_and_histograms_are_of_the_requests(sweeps: Sweeps) -> None:
    logged, requests = sweeps.logged(0, "paged"), sweeps.stored(0).frame("requests")
    first = requests.query("repetition == 0")
    table = logged.table(keys.REQUESTS)
    assert list(table["request_id"]) == list(first["request_id"])
    ttft = 1e3 * (first["first_token_s"] - first["arrival_s"])
    np.testing.assert_allclose(table["ttft_ms"], ttft)
    row = logged.history.iloc[-1]
    for name, counted in (("ttft_ms", 60), ("e2e_ms", 60), ("normalised_ms", 60)):
        assert sum(row[f"latency/{name}.values"]) == counted
        assert len(row[f"latency/{name}.bins"]) == keys.NUM_BINS + 1
    several = int((requests["output_len"] > 1).sum())
    assert 0 < several < 60 and sum(row["latency/tpot_ms.values"]) == several


def test_the_memory_map_is_an_image(sweeps: Sweeps) -> None:
    logged = sweeps.logged(0, "paged")
    (path,) = (logged.path.parent / "files/media/images").glob("memory_*.png")
    assert np.ptp(image.imread(path)[..., :3]) > 0.5
    assert "memory map" in logged.history.iloc[-1]["memory.caption"]


def test_a_failed_run_has_its_error_and_exit_code(sweeps: Sweeps) -> None:
    logged = sweeps.logged(0, "broken")
    assert logged.of("exit")[0]["exit_code"] == 1
    assert logged.summary["status"] == "failed"
    assert "no such luck" in logged.summary["error"]
    assert "failed" in logged.header["tags"]
    assert sweeps.logged(0, "paged").of("exit")[0].get("exit_code", 0) == 0


def test_the_aggregate_has_table_comparison_and_artifact(sweeps: Sweeps) -> None:
    logged = sweeps.logged(0, "single@")
    table = logged.table(keys.SUMMARY_TABLE)
    assert list(table["status"]) == ["complete", "failed"]
    rows = pd.DataFrame(sweeps.stored(0).summary)
    assert table["utilisation"][0] == pytest.approx(rows["utilisation"].mean())
    assert len(logged.table(keys.COMPARISON_TABLE))
    assert [logged.summary[key] for key in keys.AGGREGATE_FACTS] == [1, 1, 0]
    artifact = logged.artifacts[keys.ARTIFACT_TYPE]
    study = sweeps.studies[0].study_id
    assert artifact["name"] == f"single-{study}"
    contents = {each["path"]: each for each in artifact["manifest"]["contents"]}
    assert contents.keys() == {
        "summary.csv", "summary.parquet", "comparison.csv", "comparison.md",
        f"studies/{study}.json",
    }  # fmt: skip
    for each in contents.values():
        assert Path(each["local_path"]).stat().st_size == int(each["size"])


def test_what_was_logged_is_known_again(sweeps: Sweeps) -> None:
    """An attempt at a failed run is a W&B run of its own; the same attempt always the same one."""
    study = sweeps.studies[0]
    wanted = [run.wandb_id for run in wanted_runs(study, sweeps.folder)]
    assert set(wanted) == {
        run.header["run_id"] for run in sweeps.runs if study.study_id in run.header["run_id"]
    }
    status = sweeps.stored(1).path / "status.json"
    before = status.read_text()
    try:
        status.write_text(before.replace("no such luck", "other luck"))
        again = [run.wandb_id for run in wanted_runs(study, sweeps.folder)]
    finally:
        status.write_text(before)
    assert [new == old for new, old in zip(again, wanted, strict=True)] == [True, False, True]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have W&B at this address."""

    def use(url: str) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)

    return use


def upload_again(sweeps: Sweeps, timeout_s: float) -> tuple[bool, str]:
    """Upload the second study, which is written already: whether all is there, and what was said
    last."""
    config = TrackingConfig("wandb", project="tried", mode="online", timeout_s=timeout_s)
    lines: list[str] = []
    is_whole = upload_study(sweeps.studies[1], sweeps.folder, [], config, lines.append)
    assert [run.path for run in offline_runs(sweeps.folder)] == [run.path for run in sweeps.runs]
    return is_whole, lines[-1]


def test_without_a_network_the_runs_stay_to_be_uploaded(
    sweeps: Sweeps, online: Callable[[str], None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    online(f"http://127.0.0.1:{port}")  # nobody listens any more
    is_whole, said = upload_again(sweeps, timeout_s=100)
    assert not is_whole
    assert "of 2 runs, 2 not uploaded: http://127.0.0.1" in said and "cannot be reached" in said


@pytest.mark.slow
def test_an_upload_that_hangs_is_ended(sweeps: Sweeps, online: Callable[[str], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        is_whole, said = upload_again(sweeps, timeout_s=15)
        silent.setblocking(False)
        num_asked = len([silent.accept() for _ in range(2)])
    assert num_asked == 2  # whether anybody is there, and then W&B itself
    assert not is_whole and "2 not uploaded: it was ended after 15 s" in said
    # which all that was started for it has in its environment
    environments = [each.info["environ"] or {} for each in psutil.process_iter(["environ"])]
    assert os.environ["WANDB_BASE_URL"] not in [each.get("WANDB_BASE_URL") for each in environments]


def test_an_upload_brings_all_and_is_not_repeated(
    sweeps: Sweeps, online: Callable[[str], None]
) -> None:
    study, run = sweeps.studies[1], sweeps.logged(1, "paged")
    with wandb_server() as (url, received):
        online(url)
        assert upload_again(sweeps, timeout_s=100) == (True, "W&B: uploaded to project tried")
        num_runs = len(received.runs)
        assert "there already" in upload_again(sweeps, timeout_s=100)[1]
        assert len(received.runs) == num_runs
    created = {each["name"]: each for each in received.runs if each["groupName"]}
    assert created.keys() == {run.wandb_id for run in wanted_runs(study, sweeps.folder)}
    assert {each["groupName"] for each in created.values()} == {f"single@{study.study_id}"}
    parts = received.history[run.header["run_id"]]
    assert parts[0][0] == 0  # the same id twice is written over, not appended to
    assert sum(len(lines) for _, lines in parts) == len(run.history)
    (results,) = (a for a in received.artifacts if a["artifactTypeName"] == keys.ARTIFACT_TYPE)
    name = results["artifactCollectionName"]
    assert received.files[f"/{name}/comparison.md"].startswith(b"#")
    pictures = [path for path in received.files if "/media/images/memory_" in path]
    assert len(pictures) == 1
