"""A wrong token is found wherever it is planted; a near-tie is told apart from it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
from tiny_study import Runner, rewrite

from experiments.checks import describe_equality
from experiments.equality import MARGIN_LIMIT, MISSING_ID, check_tokens, compare_tokens
from harness.engine.device.batch import BatchBuilder
from harness.engine.plan import TableUpdate
from harness.runs.jobs import Job


def requests(*chosen: list[int], margin: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "repetition": 0,
            "request_id": range(len(chosen)),
            "status": "finished",
            "sequence_lens": [[len(ids)] for ids in chosen],
            "chosen_ids": chosen,
            "margins": [[margin] * len(ids) for ids in chosen],
        }
    )


def test_equal_tokens_have_no_difference() -> None:
    same = requests([1, 2, 3], [4])
    assert not compare_tokens(same, same, forced=True)


@pytest.mark.parametrize("margin", [MARGIN_LIMIT / 2, 0.5])
def test_each_difference_is_named(margin: float) -> None:
    (found,) = compare_tokens(
        requests([1, 2, 3], [4, 5], margin=margin / 2),
        requests([1, 2, 3], [4, 9], margin=margin),
        forced=True,
    )
    assert found == (0, 1, 0, 1, 5, 9, margin)
    assert found.is_rounding(MARGIN_LIMIT) == (margin < MARGIN_LIMIT)


@pytest.mark.parametrize("is_longer", [False, True])
def test_a_missing_token_is_a_difference_at_any_margin(is_longer: bool) -> None:
    pair = [requests([1, 2, 3], margin=0.0), requests([1, 2], margin=0.0)]
    (found,) = compare_tokens(*pair[:: -1 if is_longer else 1], forced=True)
    assert (found.position, {found.expected_id, found.chosen_id}) == (2, {3, MISSING_ID})
    assert not found.is_rounding(MARGIN_LIMIT)


def test_what_follows_a_difference_is_compared_under_forced_ids_only() -> None:
    pair = requests([1, 2, 3]), requests([9, 2, 8])
    assert [each.position for each in compare_tokens(*pair, forced=True)] == [0, 2]
    assert [each.position for each in compare_tokens(*pair, forced=False)] == [0]


def test_each_output_of_a_request_is_cut_and_compared_by_itself() -> None:
    expected, found = requests([1, 2, 3, 4]), requests([1, 2, 9, 4])
    for frame in (expected, found):
        frame.at[0, "sequence_lens"] = [2, 2]
        frame.at[0, "margins"] = []
    (difference,) = compare_tokens(expected, found, forced=False)
    assert difference[:6] == (0, 0, 1, 0, 3, 9)
    assert not difference.is_rounding(MARGIN_LIMIT)


def test_requests_that_one_run_refused_are_left_out() -> None:
    found = requests([7, 7], [4])
    found.loc[0, "status"] = "refused"
    assert not compare_tokens(requests([1, 2], [4]), found, forced=True)


@pytest.fixture
def timed_jobs(run_tiny: Runner, tmp_path: Path) -> list[Job]:
    """Real runs of three strategies, in a store of the test's own."""
    study = run_tiny(
        "executor=torch", "device=cpu", "repetitions=1", "workload=sharegpt",
        "workload.num_requests=8", "workload.length_scale=0.04", "kv.pool_tokens=128",
        "allocator=contiguous,paged,paged_prefix",
    )  # fmt: skip
    root = tmp_path / "store"
    shutil.copytree(study.folder, root)
    return [dataclasses.replace(job, root=root) for job in study.jobs]


def plant(job: Job, margin: float) -> None:
    """Change the last token that the longest request chose."""
    path = job.root / job.run_id / "requests.parquet"
    frame = pd.read_parquet(path)
    row = int(frame["chosen_ids"].map(len).idxmax())
    ids, margins = frame.at[row, "chosen_ids"], frame.at[row, "margins"]
    frame.at[row, "chosen_ids"] = [*ids[:-1], ids[-1] + 1]
    if len(margins):  # beams have none
        frame.at[row, "margins"] = [*margins[:-1], margin]
    rewrite(path, frame)


def margins_to(jobs: list[Job], margin: float) -> None:
    for job in jobs:
        path = job.root / job.run_id / "requests.parquet"
        frame = pd.read_parquet(path)
        frame["margins"] = frame["margins"].map(lambda values: values * 0 + margin)
        rewrite(path, frame)


def test_real_runs_have_equal_tokens(timed_jobs: list[Job]) -> None:
    report = check_tokens(timed_jobs)
    assert report is not None
    assert report.settings == 3 and report.positions > 30
    assert not report.failures and not report.near_ties
    lines = describe_equality(report).lines
    assert lines == (f"identical tokens under all 3 allocators ({report.positions} positions)",)


def test_a_planted_near_tie_passes(timed_jobs: list[Job]) -> None:
    margins_to(timed_jobs, 1e-5)
    plant(timed_jobs[2], margin=1e-5)
    report = check_tokens(timed_jobs)
    assert report is not None and not report.failures and len(report.near_ties) == 1
    (line,) = describe_equality(report).lines
    assert "but for a position where two logits tie" in line and "1e-05" in line


def test_simulated_runs_have_no_tokens_to_compare(run_tiny: Runner) -> None:
    assert check_tokens(run_tiny("allocator=contiguous,paged").jobs) is None


def test_what_is_not_compared_is_said_with_the_reason(timed_jobs: list[Job]) -> None:
    path = timed_jobs[2].root / timed_jobs[2].run_id / "requests.parquet"
    frame = pd.read_parquet(path)
    frame.loc[0, "status"] = "refused"
    rewrite(path, frame)
    other = dataclasses.replace(
        timed_jobs[2].config, workload=dataclasses.replace(timed_jobs[2].config.workload, rate=7.0)
    )
    jobs = [*timed_jobs, dataclasses.replace(timed_jobs[2], config=other)]
    assert describe_equality(check_tokens(jobs)).lines[1:] == (
        "tokens not compared: 1 of 4 timed runs are the only ones of their requests",
        "tokens not compared: 1 requests were finished in some of the runs only",
    )
    (jobs[0].root / "configs.json").touch()
    assert "an export has no requests" in describe_equality(check_tokens(jobs)).lines[1]


SMALL = (
    "executor=torch", "device=cpu", "repetitions=1", "workload=sharegpt",
    "workload.num_requests=6", "workload.length_scale=0.05", "kv.page_size=4",
)  # fmt: skip
TIGHT = (
    "workload=fixed", "workload.length_scale=1", "workload.max_len=48", "workload.prompt_len=16",
    "workload.output_len=24", "workload.num_requests=8", "kv.pool_tokens=120",
)  # fmt: skip
SAMPLES = ("workload.samples=3", "workload.temperature=0.9")
FREE = "workload.output=forced_length"
MODES = {
    "greedy": (),
    "own tokens fed back": (FREE,),
    "samples": SAMPLES,
    "samples, own tokens": (*SAMPLES, FREE),
    "beams": ("workload.beam_width=3",),
    "n-gram": ("engine.speculation.method=ngram",),
    "draft": ("engine.speculation.method=draft_model", "engine.speculation.draft=tiny"),
    "chunked": ("engine.token_budget=8", "engine.max_num_seqs=4"),
    "swap": (*TIGHT, "engine.preemption=swap"),
    "recompute": (*TIGHT, "engine.preemption=recompute"),
    "window": ("model=tiny_32k_window",),
    "bf16": ("model.dtype=bfloat16",),
    "bf16 pool": ("kv.dtype=bfloat16",),
    "prefix cache": ("workload.sharing=system_prompt", "workload.shared_len=24"),
    "split ranks": ("allocator=paged", "engine.tensor_parallel=1,2"),
}


def two_runs(run_tiny: Runner, mode: str, *more: str) -> list[Job]:
    """Of the same requests, decoded in that way."""
    chosen = (*MODES[mode], *more)
    given = {argument.split("=", 1)[0] for argument in chosen}
    defaults = (*SMALL, "kv.pool_tokens=800", "allocator=paged,paged_prefix")
    return run_tiny(*(a for a in defaults if a.split("=", 1)[0] not in given), *chosen).jobs


QUICK = ("greedy", "samples", "beams", "bf16")


@pytest.mark.parametrize(
    "mode", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in MODES]
)
def test_a_planted_difference_fails_in_every_way_of_decoding(
    run_tiny: Runner, tmp_path: Path, mode: str
) -> None:
    planned = two_runs(run_tiny, mode)
    shutil.copytree(planned[0].root, tmp_path / "store")
    jobs = [dataclasses.replace(job, root=tmp_path / "store") for job in planned]
    (line,) = describe_equality(check_tokens(jobs)).lines
    assert line.startswith("identical tokens under all")
    assert ("16 bits" in line) == mode.startswith("bf16")
    plant(jobs[1], margin=9.0)
    lines, (failure,) = describe_equality(check_tokens(jobs))
    assert not lines
    assert failure.startswith(f"tokens differ: {jobs[1].label} chose token ")
    for word in (jobs[0].label, "request ", "output position ", "margin", jobs[1].run_id):
        assert word in failure
    assert (", output " in failure.replace("output position", "")) == (
        mode in ("samples", "samples, own tokens", "beams")
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "split ranks"])
def test_a_wrong_page_fails_in_every_way_of_decoding(
    run_tiny: Runner, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The device is told that everybody's first page is page 0, by nobody's fault but its own."""
    original = BatchBuilder.update

    def update(self: BatchBuilder, updates: Iterable[TableUpdate]) -> None:
        first = [u for u in updates if u.first == 0 and u.page_ids[0] > 0]
        wrong = [u._replace(page_ids=[0, *u.page_ids[1:]]) for u in first]
        original(self, [*(u for u in updates if u not in first), *wrong])

    right = two_runs(run_tiny, mode, "allocator=paged")
    monkeypatch.setattr(BatchBuilder, "update", update)
    wrong = two_runs(run_tiny, mode, "allocator=paged_prefix")
    lines, failures = describe_equality(check_tokens([*right, *wrong]))
    assert not lines and len(failures) == 1


def test_draws_that_differ_while_the_logits_agree_fail(run_tiny: Runner, tmp_path: Path) -> None:
    """As of a random stream that depends on who else is in the batch."""
    planned = two_runs(run_tiny, "samples")
    shutil.copytree(planned[0].root, tmp_path / "store")
    jobs = [dataclasses.replace(job, root=tmp_path / "store") for job in planned]
    path = jobs[1].root / jobs[1].run_id / "requests.parquet"
    frame = pd.read_parquet(path)
    frame.at[0, "chosen_ids"] = [*frame.at[0, "chosen_ids"][:-1], 1]
    rewrite(path, frame)
    assert "but for a position" in describe_equality(check_tokens(jobs)).lines[0]
    frame["chosen_ids"] = frame["chosen_ids"].map(lambda ids: [each + 1 for each in ids])
    rewrite(path, frame)
    (failure,) = describe_equality(check_tokens(jobs)).failures
    assert "draws that differ while the logits agree" in failure
