"""The comparison: rows, marks, notes, and what must add up."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tiny_study import Runner, Study

from experiments import checks
from experiments.checks import SHARES, check_classes, check_order, run_checks
from experiments.figures import page_size
from experiments.latex import to_latex
from experiments.present import present
from experiments.report.table_view import comparison_view
from experiments.table_output import print_table, to_csv_rows, to_markdown
from experiments.tables import make_tables


def printed(rows: pd.DataFrame, study: Study) -> str:
    out = io.StringIO()
    for table in make_tables(rows, study.jobs):
        print_table(table, Console(file=out))
    return out.getvalue()


def test_a_table_for_each_part_and_workload_and_a_row_for_each_strategy(compared: Study) -> None:
    tables = make_tables(compared.rows, compared.jobs)
    assert [(t.part, t.workload) for t in tables] == [
        ("waste", "sharegpt"),
        ("waste", "alpaca_shared"),
    ]
    assert all(len({row.labels[0] for row in t.rows}) == len(t.rows) == 9 for t in tables)


def test_best_mean_is_marked(compared: Study) -> None:
    rows = compared.rows
    waste = rows[(rows["part"] == "waste") & (rows["workload"] == "alpaca_shared")]
    (table,) = make_tables(waste, compared.jobs)
    for metric, digits in (("batched_requests", 1), ("tokens_per_step_per_gib", 2)):
        shown = {row.labels[0]: round(row.cells[metric].mean, digits) for row in table.rows}
        marked = {row.labels[0] for row in table.rows if metric in row.best}
        assert marked == {name for name, mean in shown.items() if mean == max(shown.values())}
        assert 0 < len(marked) < len(shown)
    waste = waste.assign(utilisation=(waste["strategy"] == "paged_cow").astype(float))
    (table,) = make_tables(waste, compared.jobs)
    assert {r.labels[0] for r in table.rows if "utilisation" in r.best} == {"paged_cow"}
    lines = [line for line in printed(waste, compared).splitlines() if "paged_cow" in line]
    assert "100.0 ±0.0*" in lines[0]


def test_what_is_said_of_all_rows_is_true_of_all(compared: Study) -> None:
    waste = compared.rows[compared.rows["workload"] == "sharegpt"].copy()
    assert "of some runs" not in printed(waste, compared)
    two = waste["strategy"] == "paged"
    waste["workload_description"] = np.where(two, "chats; beams of 2; at once", "chats; at once")
    waste["model"] = np.where(two, "large", "small")
    rows = pd.concat([waste[two], waste[~two]])
    shown = printed(rows, compared)
    assert "chats; at once; of some runs: beams of 2\n" in shown
    assert "simulated · large" not in shown and "simulated" in shown
    rows["workload_description"] = np.where(
        rows["model"] == "large", "chats; at 1/s", "chats; at 2/s"
    )
    assert "chats; at 1/s or at 2/s" in printed(rows, compared)


def test_times_are_shown_where_steps_cost_what_they_do(compared: Study) -> None:
    assert "TPOT" not in printed(compared.rows, compared)
    shown = printed(compared.rows.assign(cost="roofline"), compared)
    assert "TPOT" in shown and "published figures (executor.gpu)" in shown


def test_drafts_of_which_none_stands_are_shown(compared: Study) -> None:
    assert "acc." not in printed(compared.rows, compared)
    assert "acc." in printed(compared.rows.assign(acceptance_rate=0.0), compared)


def test_no_mark_where_most_rows_tie(compared: Study) -> None:
    rows = compared.rows.assign(preemptions=0)
    for table in make_tables(rows, compared.jobs):
        assert not any("preemptions" in row.best for row in table.rows)


def test_interval_from_five_repetitions_on(compared: Study) -> None:
    rows = compared.rows
    table = make_tables(rows, compared.jobs)[0]
    values = rows[
        (rows["part"] == table.part)
        & (rows["workload"] == table.workload)
        & (rows["strategy"] == table.rows[0].labels[0])
    ]["utilisation"]
    cell = table.rows[0].cells["utilisation"]
    assert cell.n == 5 and cell.mean == pytest.approx(values.mean())
    assert cell.half_width == pytest.approx(2.7764 * values.std() / np.sqrt(5), rel=1e-4)
    assert "±" in printed(rows, compared)
    few = rows[rows["repetition"] < 4]
    assert "±" not in printed(few, compared).replace("± is", "")


def test_what_is_the_same_at_every_seed_is_one_observation(run_tiny: Runner) -> None:
    study = run_tiny("workload=fixed", "workload.output_len=8", "repetitions=5", "kv.page_size=8")
    shown = printed(study.rows, study)
    assert "All rows are the same at every seed: exact, one observation" in shown
    assert "±" not in shown and "Repetitions: 1 " in shown
    (row,) = make_tables(study.rows, study.jobs)[0].rows
    assert row.cells["utilisation"].mean == study.rows["utilisation"].iloc[0]


def test_rows_without_memory_pressure_say_so(run_tiny: Runner) -> None:
    study = run_tiny("allocator=paged,contiguous", "kv.pool_tokens=100000")
    assert "† not memory-bound" in printed(study.rows, study)
    assert to_markdown(make_tables(study.rows, study.jobs), []).count("| not memory-bound |") == 2


def test_a_strategy_that_no_longer_waits_for_memory_is_not_dismissed(run_tiny: Runner) -> None:
    study = run_tiny("allocator=paged,contiguous", "kv.pool_tokens=100000")
    rows = study.rows.assign(memory_bound=study.rows["allocator"] == "contiguous")
    shown = " ".join(printed(rows, study).split())
    assert "while it does under another strategy: what a row is ahead by there is due" in shown
    assert "says little about allocation" not in shown
    markdown = to_markdown(make_tables(rows, study.jobs), [])
    assert markdown.count("| not memory-bound, as others here are |") == 1


def test_simulated_tables_show_no_times_and_timed_ones_do(
    compared: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = to_markdown(make_tables(compared.rows, compared.jobs), [])
    assert "tokens/s " not in simulated and "TTFT" not in simulated and "tokens/step" in simulated
    monkeypatch.setattr(
        "experiments.tables.with_device",
        lambda rows, jobs: rows.assign(device="cpu", imagined_memory_gib=np.nan),
    )
    timed = compared.rows.assign(executor="torch")
    text = to_markdown(make_tables(timed, compared.jobs), [])
    assert "output tokens/s per GiB of KV" in text and "TTFT ms" in text and "GEMM" in text


@pytest.fixture
def timed(compared: Study, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """A table of times by hand, of which others disturbed two repetitions of one strategy."""
    monkeypatch.setattr(
        "experiments.tables.with_device",
        lambda rows, jobs: rows.assign(device="cpu", imagined_memory_gib=np.nan),
    )
    rows = compared.rows[compared.rows["workload"] == "sharegpt"]
    rows = rows.assign(executor="torch", others_share=0.01)
    disturbed = (rows["strategy"] == "paged") & (rows["repetition"] < 2)
    return rows.assign(others_share=rows["others_share"].where(~disturbed, 0.3))


def test_every_time_has_its_interval_and_its_repetitions(
    compared: Study, timed: pd.DataFrame
) -> None:
    (table,) = make_tables(timed, compared.jobs)
    lines = printed(timed, compared).splitlines()
    heads = [i for i, line in enumerate(lines) if "page x" in line and "output" in line]
    for row, line in zip(table.rows, lines[heads[0] + 2 :], strict=False):
        n = "5 (2§)" if row.labels[0] == "paged" else "5"
        assert line.startswith(row.labels[0]) and line.rstrip().endswith(f" {n}")
    times = [c for block in table.blocks for c in block if c.is_time and not c.in_files_only]
    assert len(times) > 4 and all(column.has_interval for column in times)
    assert any("tok/s" in head for head in lines) and "disturbed: others had more" in "".join(lines)
    assert "Interference not measured" not in "".join(lines)
    text = to_markdown([table], [])
    assert "| 5 (2§) | not memory-bound; 2 of 5 repetitions disturbed |" in text or (
        "| 5 (2§) | 2 of 5 repetitions disturbed |" in text
    )
    assert to_csv_rows([table])["disturbed"].sum() == 2
    assert r"5 (2\S{})" in to_latex([table], ["t"], [])
    view = comparison_view(table)
    assert {(r[-1].text, r[-1].mark) for r in view.rows} == {("5", ""), ("5", " (2§)")}


def test_a_single_timed_repetition_carries_no_verdict(compared: Study, timed: pd.DataFrame) -> None:
    once = timed[timed["repetition"] == 4].drop(columns="others_share")
    (table,) = make_tables(once, compared.jobs)
    shown = printed(once, compared)
    assert "Repetitions: 1 (no interval; a single repetition of a timed run carries no" in shown
    assert "Interference not measured: what others had of the cores is unknown." in shown
    assert "±" not in shown
    times = {column.metric for block in table.blocks for column in block if column.is_time}
    assert not any(times & row.best for row in table.rows)


def test_pool_stands_in_every_table(compared: Study) -> None:
    for table in make_tables(compared.rows, compared.jobs):
        assert any("Pool: 320 tokens" in note and "GiB" in note for note in table.notes)
        assert all("16 x 20" in row.labels for row in table.rows)


def test_a_draft_model_counts_where_memory_does(run_tiny: Runner) -> None:
    study = run_tiny(
        "allocator=paged", "kv.pool_tokens=640", "repetitions=1", "model=tiny",
        "engine.speculation.method=draft_model", "engine.speculation.draft=tiny",
    )  # fmt: skip
    (table,) = make_tables(study.rows, study.jobs)
    # both have 320 slots of 512 B
    said = "Pool: 320 tokens, 0.000305 GiB of KV, of which a draft model has 0.000153."
    assert any(said in note for note in table.notes)
    (row,) = study.rows.to_dict("records")
    per_step = row["output_tokens"] / row["num_steps"]
    shown = table.rows[0].cells["tokens_per_step_per_gib"].mean
    assert shown == pytest.approx(per_step / (640 * 512 / 2**30))


def test_imagined_memory_is_said_to_be(run_tiny: Runner) -> None:
    study = run_tiny("model=small", "kv.memory_fraction=0.9,0.95", "device.imagined_memory_gib=0.2")
    notes = " ".join(note for t in make_tables(study.rows, study.jobs) for note in t.notes)
    assert "imagined device of 0.2 GiB" in notes


def test_a_failed_run_is_a_row_with_its_error(compared: Study) -> None:
    failed = compared.rows["run_id"] == compared.rows["run_id"].iloc[0]
    settings = compared.rows.columns[: compared.rows.columns.get_loc("attention") + 1]
    row = compared.rows.loc[failed, settings].iloc[:1]
    row = row.assign(status="failed", error="out of memory: 3 GiB", repetition=0, seed=0)
    text = printed(pd.concat([row, compared.rows[~failed]], ignore_index=True), compared)
    assert "FAILED" in text and "out of memory: 3 GiB" in text


def test_settings_that_differ_get_columns(run_tiny: Runner) -> None:
    study = run_tiny(
        "allocator=paged", "kv.pool_tokens=200,320", "workload.num_requests=8,16",
        "attention=paged,auto",
    )  # fmt: skip
    (table,) = make_tables(study.rows, study.jobs)
    assert table.label_heads == (
        "strategy", "page x pages", "pool tokens", "num requests", "attention",
    )  # fmt: skip
    assert len(table.rows) == 8 and table.rows[0].cells["utilisation"].n == 5


def test_no_line_is_wider_than_a_pipe_or_a_terminal(compared: Study) -> None:
    timed = compared.rows.assign(executor="torch")
    assert max(map(len, printed(compared.rows, compared).splitlines())) <= 118
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    for table in make_tables(timed, compared.jobs):
        print_table(table, console)
    assert max(len(line.rstrip()) for line in out.getvalue().splitlines()) <= 100
    assert "…" not in out.getvalue()


def test_csv_has_every_row_and_its_best(compared: Study) -> None:
    frame = to_csv_rows(make_tables(compared.rows, compared.jobs))
    assert len(frame) == 2 * 9
    assert frame["used %"].between(0, 100).all()
    assert frame["best in"].str.contains("used %").any()


def test_classes_sum(compared: Study) -> None:
    sums = compared.rows[list(SHARES)].sum(axis=1)
    assert (sums - 1).abs().max() < 1e-9
    assert "100 %" in check_classes(compared.rows).lines[0]


def test_classes_that_do_not_sum_fail(compared: Study) -> None:
    rows = compared.rows.copy()
    rows.loc[3, "tail_share"] += 1e-6
    assert len(check_classes(rows).failures) == 1
    rows.loc[3, "tail_share"] = np.nan
    (failure,) = check_classes(rows).failures
    for name in ("strategy", "page_size", "workload", "repetition", "run_id"):
        assert str(rows.loc[3, name]) in failure


def test_classes_outside_the_pool_fail(compared: Study) -> None:
    rows = compared.rows.copy()
    rows.loc[3, ["tail_share", "free_share"]] = 1.5, -0.25
    rows.loc[3, "utilisation"] += 1 - rows.loc[3, list(SHARES)].sum()
    failures = check_classes(rows).failures
    assert any("ledger class tail is 150 %" in failure for failure in failures)
    assert any("ledger class free is -25 %" in failure for failure in failures)


def ladder(values: dict[str, np.ndarray], **columns: object) -> pd.DataFrame:
    """Rows of the four rungs: utilisation and batched requests by seed."""
    rows = [
        {"allocator": "paged" if rung == "paged" else "contiguous", "seed": seed}
        | {"expected": "none" if rung == "paged" else rung, "utilisation": value}
        | {"batched_requests": value, "fit": None if rung == "paged" else "buddy"}
        for rung, own in values.items()
        for seed, value in enumerate(own)
    ]
    frame = pd.DataFrame(rows).assign(
        part="waste", workload="w", executor="simulated", page_size=16, memory_fraction=None,
        memory_bound=True,
    )  # fmt: skip
    return frame.assign(**columns)


RUNGS = ("max", "pow2", "oracle", "paged")
RISING = {rung: 0.1 * i + 0.01 * np.arange(6.0) % 0.03 for i, rung in enumerate(RUNGS)}


def test_order_is_said_with_buddy_and_first_fit(compared: Study) -> None:
    lines = check_order(compared.rows)
    assert len(lines) == 2 * 2
    few, ample = ": 5 seeds are too few for an order, 6 are needed", ": memory was scarce for none"
    assert all(few in line or ample in line for line in lines)
    assert any(few in line for line in lines)


def test_an_order_is_claimed_where_paired_seeds_carry_it() -> None:
    (line,) = check_order(ladder(RISING))
    assert line.startswith("waste, w, buddy: max < pow2 < oracle < paged: utilisation 1.")
    (line,) = check_order(ladder({**RISING, "oracle": RISING["pow2"] - 0.01}))
    assert "NOT max < pow2 < oracle < paged: the other way round are pow2 and oracle in" in line
    noise = np.array([3.0, -2.0, 1.0, -3.0, 2.0, -1.0]) / 100
    (line,) = check_order(ladder({**RISING, "paged": RISING["oracle"] + 0.001 + noise}))
    assert ": not separated by 6 seeds: oracle and paged in utilisation; oracle and " in line
    same = {rung: np.full(2, 0.1 * i) for i, rung in enumerate(RUNGS)}
    (line,) = check_order(ladder(same))  # the same at every seed: exact
    assert ": max < pow2 < oracle < paged:" in line


@pytest.mark.parametrize(
    ("scarce", "said"),
    [
        (RUNGS, "paged: utilisation"),
        (("max", "pow2"), "paged (memory was not scarce for oracle, paged): utilisation"),
        ((), "memory was scarce for none of them"),
    ],
)
def test_scarcity_is_said_whatever_the_order(scarce: tuple[str, ...], said: str) -> None:
    rows = ladder(RISING)
    rung = rows["expected"].where(rows["allocator"] == "contiguous", "paged")
    (line,) = check_order(rows.assign(memory_bound=rung.isin(scarce)))
    assert said in line


def test_where_nothing_differs_an_order_is_claimed_in_one_of_twenty() -> None:
    rng = np.random.default_rng(0)
    claims, trials = 0, 200
    for _ in range(trials):
        (line,) = check_order(ladder({rung: rng.normal(0.5, 0.05, 10) for rung in RUNGS}))
        claims += not line.startswith("waste, w, buddy: not separated by 10 seeds: max and pow2")
    assert claims <= 0.05 * trials


def test_a_failed_check_fails_the_presentation(compared: Study) -> None:
    rows = compared.rows.copy()
    rows.loc[0, "free_share"] += 0.5
    out = io.StringIO()
    shown = present(rows, compared.jobs, [], compared.folder, Console(file=out))
    assert len(shown.failures) == 1 and "FAILED CHECK" in out.getvalue()
    assert run_checks(compared.rows, compared.jobs).failures == ()


def test_what_breaks_is_a_failure_and_costs_nothing_else(
    compared: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks(*_: object) -> None:
        written.update(path.name for path in tmp_path.rglob("*.*"))
        raise IndexError("index 1 is out\nof bounds")

    written: set[str] = set()
    monkeypatch.setattr(page_size, "draw", breaks)
    monkeypatch.setattr(checks, "check_tokens", breaks)
    out = io.StringIO()
    console = Console(file=out, soft_wrap=True)
    figures = ["page_size", "compare"]
    shown = present(compared.rows, compared.jobs, figures, tmp_path, console)
    assert [failure.partition(": ")[0] for failure in shown.failures] == [
        "the token check broke",
        "the figure page_size broke",
    ]
    for failure in shown.failures:
        assert "IndexError: index 1 is out of bounds (test_tables.py:" in failure
        assert failure in out.getvalue() and failure in (tmp_path / "comparison.md").read_text()
    assert "ledger classes sum to 100 %" in out.getvalue()
    assert {"comparison.md", "comparison.csv", "compare_fig2.png"} <= written  # before the checks


def test_what_lies_beyond_a_calibration_is_marked(compared: Study) -> None:
    rows = compared.rows.assign(cost="calibrated", extrapolated_share=0.0)
    shown = printed(rows, compared)
    assert "fitted to steps of real runs" in shown
    assert "EXTRAPOLATED" not in shown and "extra-" not in shown
    some = rows["strategy"] == "paged"
    shown = printed(rows.assign(extrapolated_share=np.where(some, 0.125, 0.0)), compared)
    assert "EXTRAPOLATED: up to 12.5 %" in shown and "extra-" in shown
