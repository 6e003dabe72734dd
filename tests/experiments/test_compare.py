"""Two studies on disk compared: cells matched, settings and surroundings told, counts exact."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from tiny_study import rewrite

import harness.launching.runner
from experiments.commands import compare as command
from experiments.comparison.comparison import Comparison, compare
from experiments.comparison.matching import match
from experiments.comparison.metrics import chosen
from experiments.comparison.output import answer
from experiments.comparison.sections import sections
from experiments.comparison.selection import find_side
from harness.compose import Composer, hydra_session, parse_command
from harness.config import ConfigError
from harness.reporting import reporting
from harness.runs.code_hash import CodeHashes
from harness.runs.jobs import Job, make_job
from harness.runs.store import RunStore
from harness.runs.study import run_study
from harness.runs.worker import DeviceCache, do_job

SMALL = (
    "model=tiny", "executor=simulated", "repetitions=6", "workload.num_requests=24",
    "workload.length_scale=0.2", "workload.max_len=128", "tracking=none",
    "allocator=contiguous,paged",
)  # fmt: skip


def run(folder: Path, *arguments: str) -> None:
    """A command, whose runs are done in this process."""
    given = {argument.split("=", 1)[0] for argument in arguments}
    words = [word for word in SMALL if word.split("=", 1)[0] not in given]
    devices = DeviceCache()

    def run_jobs(jobs: Sequence[Job], environment: Any, on_finished: Any, *_: Any) -> None:
        for job in jobs:
            do_job(job, devices)
            on_finished(job, RunStore(job.root).find(job.run_id))

    with hydra_session(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness.launching.runner, "run_jobs", run_jobs)
        parsed = parse_command([*words, f"results_dir={folder}", *arguments])
        run_study(parsed, Console(quiet=True))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of results: `page4` and `again` of the same, `page16` of another page size."""
    root = tmp_path_factory.mktemp("results")
    run(root / "page4", "kv.page_size=4", "kv.pool_tokens=160")
    shutil.copytree(root / "page4", root / "again")
    run(root / "page16", "kv.page_size=16", "kv.pool_tokens=160")
    run(root / "both", "kv.page_size=4,16", "kv.pool_tokens=160")
    return root


def compared(results: Path, before: str, after: str, **options: Any) -> Comparison:
    sides = [find_side(name, results) for name in (before, after)]
    return compare(*sides, **options)


def verdicts(found: Comparison) -> dict[tuple[str, str], str]:
    return {(each.metric.name, each.cell): each.verdict for each in found.findings}


def test_a_repeat_is_equal_in_everything(results: Path) -> None:
    found = compared(results, "page4/single", "again/single")
    assert found.same_addresses and not found.matching.changes
    assert {cell.name for cell in found.matching.cells} == {"contiguous buddy max", "paged"}
    assert set(verdicts(found).values()) == {"equal"}
    assert found.are_counts_equal
    assert sum(each.num_pairs for each in found.counts) == 12
    assert found.exit_status(exact=True) == 0


def test_other_requests_are_told(results: Path, tmp_path: Path) -> None:
    assert compared(results, "page4/single", "page16/single").other_requests == ()
    run(tmp_path, "kv.page_size=4", "kv.pool_tokens=160", "workload.length_scale=0.15")
    after = find_side("single", tmp_path)
    found = compare(find_side("page4/single", results), after)
    assert found.other_requests == ("contiguous buddy max", "paged")
    assert "other requests were served in contiguous buddy max, paged" in answer(found)


def test_one_setting_is_found_and_what_it_does(results: Path) -> None:
    found = compared(results, "page4/single", "page16/single")
    (change,) = found.matching.changes
    assert (change.key, change.before, change.after, change.cells) == (
        "kv.page_size",
        "4",
        "16",
        (),
    )
    assert verdicts(found)["token_of_mapped", "paged"] == "worse"
    assert found.exit_status(exact=False) == 1
    back = compared(results, "page16/single", "page4/single")
    assert verdicts(back)["token_of_mapped", "paged"] == "better"
    worse = {metric for (metric, _), verdict in verdicts(back).items() if verdict == "worse"}
    assert worse <= {"preemptions"}  # of more sequences at one time
    assert back.exit_status(exact=False) == bool(worse)
    assert back.exit_status(exact=True) == 1


def test_a_threshold_that_is_larger_than_the_change_lets_it_pass(results: Path) -> None:
    found = compared(results, "page4/single", "page16/single", metrics=["token_of_mapped"])
    largest = max(abs(each.change.mean) for each in found.findings)
    for threshold, status in ((largest * 1.01, 0), (largest * 0.99, 1)):
        options = {"metrics": ["token_of_mapped"], "threshold": threshold}
        found = compared(results, "page4/single", "page16/single", **options)
        assert found.exit_status(exact=False) == status


def test_counts_are_those_of_the_stored_steps(results: Path) -> None:
    found = compared(results, "page4/single", "page16/single")
    paged = next(each for each in found.counts if each.cell == "paged")
    counts = {count.name: count for count in paged.counts}
    steps = []
    for side in ("page4", "page16"):
        rows = pd.read_parquet(results / side / "single/summary.parquet")
        (run_id,) = rows[rows["allocator"] == "paged"]["run_id"].unique()
        steps.append(pd.read_parquet(results / side / "single" / run_id / "steps.parquet"))
    assert counts["preemptions"].after == steps[1]["num_preempted"].sum() > 0
    assert counts["steps"].difference == len(steps[1]) - len(steps[0])
    assert counts["tail"].before == pytest.approx(steps[0]["tail"].mean())
    assert counts["tail"].difference > 0
    assert not paged.is_equal


def test_preemptions_are_compared_where_there_are_any() -> None:
    rows = pd.DataFrame({"executor": ["torch"], "cost": ["constant"], "preemptions": [0]})
    assert [each.name for each in chosen((), [rows, rows], has_slo=False)] == []
    some = rows.assign(preemptions=3)
    (metric,) = chosen((), [rows, some], has_slo=False)
    assert metric.name == "preemptions" and not metric.higher_is_better


def test_a_slot_more_in_one_step_is_found(results: Path, tmp_path: Path) -> None:
    """A count that differs in one step of one repetition, and in no metric."""
    folder = tmp_path / "single"
    shutil.copytree(results / "page4/single", folder)
    path = next(folder.glob("*/steps.parquet"))
    steps = pd.read_parquet(path)
    at = steps.index[steps["repetition"] == 2][5]
    steps.loc[at, ["tail", "free"]] += [1, -1]
    rewrite(path, steps)
    found = compared(results, "page4/single", str(folder))
    assert sum(each.num_pairs - each.num_equal for each in found.counts) == 1
    (cell,) = [each for each in found.counts if not each.is_equal]
    assert cell.first_difference == "seed 2, step 5"
    assert cell.num_same_decisions == cell.num_pairs == 6
    assert (found.exit_status(exact=False), found.exit_status(exact=True)) == (0, 1)


def test_two_parts_of_one_command_are_compared_as_two_commands_are(results: Path) -> None:
    one = compared(results, "page4/single", "page16/single")
    other = compared(results, "both/single:kv.page_size=4", "both/single:kv.page_size=16")
    assert verdicts(one) == verdicts(other)
    assert [each.change for each in one.findings] == [each.change for each in other.findings]
    alone = find_side("both/single:allocator=paged,kv.page_size=4", results)
    assert [job.config.allocator.name for job in alone.study.jobs] == ["paged"]


@pytest.mark.parametrize("key", ["allocator.fit", "allocator.options.fit"])
def test_a_key_that_not_every_allocator_has_is_taken_as_it_is_typed(
    results: Path, key: str
) -> None:
    found = find_side(f"page4/single:{key}=buddy", results)
    assert [job.config.allocator.name for job in found.study.jobs] == ["contiguous"]


def test_two_fits_each_with_two_estimates_are_compared(tmp_path: Path) -> None:
    words = ("kv.page_size=16", "kv.pool_tokens=160", "repetitions=2")
    estimates = "allocator.expected=max,pow2"
    run(tmp_path, "allocator=contiguous", "allocator.fit=buddy,first_fit", estimates, *words)
    both = [f"single:allocator.fit={fit}" for fit in ("buddy", "first_fit")]
    found = compared(tmp_path, *both)
    assert [each.key for each in found.matching.changes] == ["allocator.fit"]
    assert len({each.cell for each in found.counts}) == 2
    assert all(each.num_pairs == 2 for each in found.counts)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("both/single:kv.page_size=7", "no run has kv.page_size=7: it is 16, 4"),
        ("both/single:kv.page_sise=4", "did you mean kv.page_size"),
        ("both/single:paged", "no key=value"),
        ("both/singel", "unknown study in .*/both/ 'singel': did you mean single"),
    ],
)
def test_a_wrong_name_is_told(results: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_side(name, results)


def test_a_run_that_fails_in_one_study_alone_is_worse(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "single"
    shutil.copytree(results / "page4/single", folder)
    for path in folder.glob("*/status.json"):
        status = json.loads(path.read_text())
        if status["label"].startswith("paged"):
            path.write_text(json.dumps({**status, "status": "failed", "error": "no such luck"}))
    found = compared(results, "page4/single", str(folder))
    (outcome,) = found.outcomes
    assert (outcome.cell, outcome.status_after, outcome.is_worse) == ("paged", "failed", True)
    assert found.exit_status(exact=False) == 1
    back = compared(results, str(folder), "page4/single")
    assert back.exit_status(exact=False) == 0


def test_without_common_seeds_or_with_few_nothing_can_be_told(results: Path) -> None:
    before, after = (find_side(f"{name}/single", results) for name in ("page4", "page16"))
    rows = after.study.rows
    others = after.study._replace(rows=rows.assign(seed=rows["seed"] + 100))
    assert compare(before, after._replace(study=others)).exit_status(exact=False) == 3
    few = after.study._replace(rows=rows[rows["seed"] < 5])
    found = compare(before, after._replace(study=few))
    assert "too few runs to tell" in verdicts(found).values()
    assert found.exit_status(exact=False) == 3


def test_what_b_lacks_is_named_and_leaves_it_open(results: Path) -> None:
    whole, other = (find_side(f"{name}/single", results) for name in ("page4", "again"))
    rows = other.study.rows
    fewer = other._replace(study=other.study._replace(rows=rows[rows["seed"] != 3]))
    paged = find_side("again/single:allocator=paged", results)
    for part, says in ((fewer, "seed 3 of paged"), (paged, "contiguous buddy max")):
        found = compare(whole, part)
        assert found.exit_status(exact=False) == 3
        assert f"B lacks {says}" in answer(found) or f", {says}" in answer(found)
        (listed,) = [each for each in sections(found) if each.title == "Not compared"]
        assert all(row[1] == "A alone" for row in listed.rows)
        back = compare(part, whole)
        assert (back.exit_status(exact=False), back.exit_status(exact=True)) == (0, 1)
        assert "lacks" not in answer(back)


def test_times_too_noisy_to_see_a_doubling_tell_nothing(results: Path) -> None:
    found = compared(results, "page4/single", "again/single", metrics=["ttft_ms"])
    for noise, status in ((1.5, 3), (0.5, 0)):
        noisy = found._replace(findings=tuple(e._replace(noise=noise) for e in found.findings))
        assert noisy.exit_status(exact=False) == status
        assert ("a doubling could not be seen" in answer(noisy)) == (status == 3)


Jobs = Callable[..., list[Job]]


@pytest.fixture(scope="module")
def jobs_of(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    folder = tmp_path_factory.mktemp("jobs")
    hashes = CodeHashes()

    def make(*cells: Sequence[str]) -> list[Job]:
        with hydra_session():
            composer = Composer()
            configs = [composer.run(["model=tiny", "executor=simulated", *cell]) for cell in cells]
        return [make_job(config, "", folder, "cpu", hashes) for config in configs]

    return make


def test_a_key_that_one_sweep_varies_and_the_other_does_not(jobs_of: Jobs) -> None:
    swept = jobs_of(*([f"kv.page_size={k}", f"allocator={a}"] for a in ("paged", "contiguous")
                      for k in (4, 8, 16)))  # fmt: skip
    fixed = jobs_of(*(["kv.page_size=8", f"allocator={a}"] for a in ("contiguous", "paged")))
    found = match(swept, fixed)
    names = [cell.name for cell in found.cells]
    assert names == ["paged · page size 8", "contiguous buddy max · page size 8"]
    assert not found.changes and not found.only_after
    assert len(found.only_before) == 4


def test_an_option_of_one_strategy_that_changed_keeps_its_cell(jobs_of: Jobs) -> None:
    before = jobs_of(["allocator=contiguous"], ["allocator=paged"], ["allocator=paged_cow"])
    after = jobs_of(
        ["allocator=contiguous", "allocator.fit=first_fit", "allocator.expected=oracle"],
        ["allocator=paged"],
        ["allocator=paged_cow"],
    )
    found = match(before, after)
    assert [cell.name for cell in found.cells] == ["contiguous", "paged", "paged_cow"]
    changes = {(each.key, each.before, each.after, each.cells) for each in found.changes}
    assert changes == {
        ("allocator.fit", "buddy", "first_fit", ("contiguous",)),
        ("allocator.expected", "max", "oracle", ("contiguous",)),
    }


def test_cells_that_an_unnamed_setting_tells_apart_have_names_of_their_own(jobs_of: Jobs) -> None:
    def contiguous(fit: str) -> list[Job]:
        words = ["allocator=contiguous", f"allocator.fit={fit}"]
        return jobs_of(*([*words, f"allocator.expected={each}"] for each in ("max", "pow2")))

    found = match(contiguous("buddy"), contiguous("first_fit"))
    assert {cell.name for cell in found.cells} == {
        "contiguous · expected max", "contiguous · expected pow2"
    }  # fmt: skip
    first, second = (
        jobs_of(*([f"allocator={name}", f"allocator.expected={each}"] for each in ("none", "max")))
        for name in ("paged_cow", "paged")
    )
    names = [cell.name for cell in match(first, second).cells]
    assert len(set(names)) == len(names) == 2


def test_single_runs_are_compared_whatever_they_are(jobs_of: Jobs) -> None:
    before = jobs_of(["allocator=paged", "seed=1"])
    after = jobs_of(["allocator=contiguous", "kv.page_size=64", "model=small", "seed=2"])
    found = match(before, after)
    assert len(found.cells) == 1 and not found.only_before and not found.only_after
    keys = {each.key for each in found.changes}
    assert {"allocator.name", "kv.page_size", "model.name"} <= keys
    assert not {key for key in keys if key.startswith("model.")} - {"model.name"}
    assert "seed" not in keys


def test_other_seeds_and_repetitions_are_told_and_not_taken_for_other_code(
    results: Path, jobs_of: Jobs
) -> None:
    before, after = jobs_of(["seed=1"]), jobs_of(["seed=2", "repetitions=3"])
    found = match(before, after)
    assert [each[:3] for each in found.sampling] == [("seed", "1", "2"), ("repetitions", "1", "3")]
    assert not found.changes and not found.other_ids
    assert match(before, [replace(before[0], run_id="of other code")]).other_ids
    whole = compared(results, "page4/single", "again/single")
    settings = sections(whole._replace(matching=found, same_addresses=False))[0]
    assert [row[0] for row in settings.rows] == ["seed", "repetitions"]
    assert not settings.notes


def test_runs_of_one_cell_differ_by_their_seeds_alone(jobs_of: Jobs) -> None:
    seeds = jobs_of(*(["allocator=paged", f"seed={k}"] for k in range(3)))
    (cell,) = match(seeds, seeds[:2]).cells
    assert (len(cell.before), len(cell.after)) == (3, 2)


def test_another_package_version_and_a_busy_machine_are_told(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "single"
    shutil.copytree(results / "page4/single", folder)
    for path in folder.glob("*/environment.json"):
        environment = json.loads(path.read_text())
        environment["packages"]["torch"] = "9.9"
        environment["load_average"] = environment["num_cores"] + 1.5
        rewrite(path, environment)
    changes, load = compared(results, "page4/single", str(folder)).surroundings
    (change,) = changes
    assert (change.what, change.after) == ("torch", "9.9")
    assert load is not None


def answer_of(results: Path, *arguments: str) -> int:
    return reporting(lambda: command.main([*arguments, "--results-dir", str(results)]))


def test_the_command_prints_writes_and_exits(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {kind: tmp_path / "out" / f"diff.{kind}" for kind in ("markdown", "csv", "json")}
    writes = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    assert answer_of(results, "page4/single", "page16/single", *writes) == 1
    out = capsys.readouterr().out
    assert "kv.page_size" in out and "worse" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    values = json.loads(files["json"].read_text())
    assert values["exit_status"] == 1 and values["settings"][0]["key"] == "kv.page_size"
    rows = list(csv.DictReader(files["csv"].open()))
    assert {row["verdict"] for row in rows} >= {"worse", "equal"}
    assert len(rows) == len(values["metrics"])
    lines = files["markdown"].read_text().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert "| kv.page_size | 4 | 16 | everywhere |" in tables
    assert lines[2].startswith("B is worse")
    assert answer_of(results, "page4/single", "again/single", "--exact") == 0
    assert "No difference that counts" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["page4/single", "nowhere"],
        ["page4/single", "again/single", "--metric", "utilization"],
        ["page4/single", "again/single", "--threshold", "-1"],
    ],
)
def test_a_wrong_command_line_ends_with_2(
    results: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer_of(results, *arguments) == 2
    err = capsys.readouterr().err
    assert re.match(r"error: \S", err) and len(err.splitlines()) == 1


def test_the_store_is_left_as_it_was(results: Path) -> None:
    root = results / "page4" / "single"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    compared(results, "page4/single", "page16/single")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert RunStore(root).root == root
