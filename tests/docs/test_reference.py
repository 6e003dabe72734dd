"""README says what the reference results say, and these what their own rows say."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import make_reference
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from make_readme import CONSOLES, PICTURES, disagreements, shortened
from make_reference import MAX_TOTAL_BYTES
from reference import FOLDER, OUTPUT, REFERENCES, ROOT, Reference
from rich.console import Console

from experiments import plotting
from experiments.checks import Checks, run_checks
from experiments.equivalence import alike_pairs
from experiments.figures import draw_figures, motivation
from experiments.stored import StoredStudy, find_study
from experiments.table_output import print_table, to_csv_rows, to_markdown
from experiments.tables import Table, make_tables
from harness.config import AllocatorConfig, ConfigError, RunConfig
from harness.engine.device.model_shape import model_preset
from harness.measure.environment import capture_environment
from harness.measure.statistics import MIN_PAIRS_FOR_VERDICT
from harness.runs.code_hash import CodeHashes
from harness.runs.jobs import Job, make_job
from harness.runs.rows import settings

STUDIES = [reference for reference in REFERENCES if reference.study]

FROM_STEPS = {"memory_map": "memory_map", "motivation": "motivation"}
"""Figures that are drawn from steps, which are not kept, by the study that has them."""

ANSWERED = ("motivation",)
"""Studies whose figures print an answer in place of the tables."""

SPEED = "output_tokens_per_s"

MAX_DISAGREEMENT = 0.35
"""How far a repetition may be from what its cell's and its seed's means foretell: strategies do not
suit all workloads alike, which makes up to a fifth."""

OF_REQUESTS = ("identical tokens under", "tokens not compared:")
"""What is said of the check that compares requests, which are not kept either."""


def names(reference: Reference) -> str:
    return reference.name


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out and their points written, but no picture is."""

    def close(figure: plt.Figure, name: str, folder: Path) -> Sequence[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        plt.close(figure)
        return []

    monkeypatch.setattr(plotting, "save_pictures", close)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What README is filled from, to be changed."""
    for name in ("docs/images", "docs/output", "docs/examples", "results/reference"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def test_readme_and_its_files_are_what_the_reference_results_make():
    assert disagreements(ROOT) == []


@pytest.mark.parametrize("reference", REFERENCES, ids=names)
def test_all_that_is_kept_of_a_command_is_there(reference):
    assert reference.name in CONSOLES.values() or reference.pictures, "README does not show it"
    assert (reference.folder / OUTPUT).read_text().strip()
    for name in reference.files:
        assert (reference.folder / Path(name).name).stat().st_size
    if not reference.study:
        assert "git_revision" in (reference.folder / "environment.json").read_text()
    for name in reference.pictures:
        assert (reference.folder / "figures" / f"{name}.png").is_file()


def test_the_whole_is_small_enough_for_a_repository():
    sizes = [path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(sizes) < MAX_TOTAL_BYTES


def test_every_picture_of_readme_is_of_one_reference():
    shown = [name for reference in REFERENCES for name in reference.pictures]
    assert sorted(shown) == sorted(name for name, _ in PICTURES.values())


@pytest.mark.parametrize("reference", STUDIES, ids=names)
def test_tables_are_what_the_rows_say(reference):
    assert wrong_tables(reference.folder) == []


@pytest.mark.parametrize("reference", STUDIES, ids=names)
def test_figures_show_what_the_rows_say(reference, tmp_path, no_pictures):
    assert wrong_figures(reference.folder, tmp_path) == []


def test_the_motivation_figure_follows_from_its_check(tmp_path, monkeypatch, no_pictures):
    kept = FOLDER / "motivation" / "figures"
    points = pd.read_csv(kept / "motivation.csv")
    check = points[points["panel"] == "check"].drop(columns="panel").dropna(axis=1, how="all")
    monkeypatch.setattr(motivation, "formulas_beside_runs", lambda rows, jobs: check)
    study = find_study("motivation", FOLDER)
    motivation.draw(study.complete, study.jobs, tmp_path)
    for name in ("motivation.csv", "motivation_models.csv", "motivation.json"):
        assert (tmp_path / name).read_text() == (kept / name).read_text(), name


@pytest.mark.parametrize(
    "name", ["summary.csv", "summary.parquet", "configs.json", "comparison.md", "comparison.csv",
             OUTPUT],
)  # fmt: skip
def test_a_number_that_was_changed_in_a_result_is_found(name, tmp_path):
    folder = shutil.copytree(FOLDER / "single", tmp_path / "single")
    assert wrong_tables(folder) == []
    path = folder / name
    if path.suffix == ".parquet":
        rows = pd.read_parquet(path)
        rows["utilisation"] += 0.01
        rows.to_parquet(path, index=False)
    elif name == "configs.json":
        path.write_text(path.read_text().replace('"page_size": 16', '"page_size": 32'))
    else:
        path.write_text(with_another_digit(path.read_text()))
    assert wrong_tables(folder)


def test_a_point_that_was_changed_in_a_figure_is_found(tmp_path, no_pictures):
    folder = shutil.copytree(FOLDER / "memory_map", tmp_path / "memory_map")
    path = folder / "figures" / "compare_fig2.csv"
    path.write_text(with_another_digit(path.read_text()))
    assert wrong_figures(folder, tmp_path / "drawn") == ["compare_fig2.csv"]


@pytest.mark.parametrize("block", [*CONSOLES, *PICTURES, "example"])
def test_what_was_changed_in_a_block_of_readme_is_found(block, checkout):
    path = checkout / "README.md"
    before, head, after = path.read_text().partition(f"<!-- generated: {block} -->\n")
    content, end, rest = after.partition("<!-- end -->")
    changed = with_another_digit(content) if re.search(r"\d", content) else content.upper()
    path.write_text(before + head + changed + end + rest)
    (found,) = disagreements(checkout)
    assert found.startswith("README.md: line ")


def test_a_file_that_is_not_its_source_is_found(checkout):
    for name in ("docs/images/motivation.png", "docs/output/sweep_page_size.txt"):
        path = checkout / name
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    (checkout / "docs/output/compare_allocators.txt").unlink()
    found = disagreements(checkout)
    assert len(found) == 3
    assert any("motivation.png" in line for line in found)


@pytest.mark.parametrize("reference", REFERENCES, ids=names)
def test_a_reference_that_is_missing_is_a_failure(reference, checkout):
    shutil.rmtree(checkout / "results/reference" / reference.name)
    (found,) = disagreements(checkout)
    assert reference.name in found and "make reference" in found


def test_many_runs_are_counted_and_progress_is_left_out():
    lines = [f"[{k:>2}/10] paged" for k in range(1, 11)]
    text = "\n".join(["10 runs", *lines[:5], "5 done, 5 left, about 3 s", *lines[5:], "table"])
    assert shortened(text).splitlines() == [
        "10 runs", *lines[:4], "... 6 more lines, one a run ...", "table",
    ]  # fmt: skip
    assert shortened("\n".join(lines[:5])) == "\n".join(lines[:5])


def test_a_command_is_run_once_a_revision_and_kept_when_it_went_well(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(make_reference, "WORKPLACE", tmp_path / "work")
    monkeypatch.setattr("reference.FOLDER", tmp_path / "kept")
    environment = dataclasses.replace(capture_environment("cpu", 1), git_revision="abc")
    monkeypatch.setattr(make_reference, "capture_environment", lambda *_: environment)
    name = "docs/examples/mine.py"
    head = Reference(
        "head", ("-c", f"print(open({name!r}).readline())"), files=(name,), reads=(name,)
    )
    assert make_reference.run(head) and make_reference.run(head)
    assert capfd.readouterr().out.count("from allocators.base") == 1
    make_reference.keep(head)
    assert (tmp_path / "kept/head" / OUTPUT).read_text().startswith("from allocators.base")
    assert (tmp_path / "kept/head/mine.py").read_text() == (ROOT / name).read_text()
    assert (
        json.loads((tmp_path / "kept/head/environment.json").read_text())["git_revision"] == "abc"
    )
    bad = Reference("bad", ("-c", "raise SystemExit(3)"))
    assert not make_reference.run(bad) and not make_reference.run(bad)
    assert "bad: exit status 3" in capfd.readouterr().err


def test_a_command_that_finds_its_runs_stored_shows_how_they_were_made():
    earlier = "3 runs; 2 min to go\n[1/3] paged\n\nan old table\n"
    output = "3 runs, 3 already stored\n\na table\n\nchecks\n"
    shown = make_reference.with_head_of(earlier, output)
    assert shown == "3 runs; 2 min to go\n[1/3] paged\n\na table\n\nchecks\n"


@pytest.mark.parametrize("reference", STUDIES, ids=names)
def test_timed_repetitions_agree_and_were_not_disturbed(reference):
    study = find_study(str(reference.folder), Path("elsewhere"))
    assert unsound_times(study.rows, study.jobs) == []


def test_times_that_are_no_reference_are_found():
    rows, jobs = timed_by_hand()
    assert unsound_times(rows, jobs) == []

    def found(**changes: object) -> list[str]:
        at = (rows["seed"] == 3) & (rows["strategy"] == "paged")
        changed = rows.copy()
        for name, value in changes.items():
            changed.loc[at, name] = value
        return unsound_times(changed, jobs)

    assert "disturbed" in found(others_share=0.2)[0]
    assert "not measured" in found(others_share=math.nan)[0]
    assert any("seed 3 of paged" in line for line in found(output_tokens_per_s=300.0))
    slow = (rows["strategy"] == "paged_cow").to_numpy()
    slower = rows.assign(duration_s=np.where(slow, 3.0, rows["duration_s"]))
    assert any("decided alike" in line for line in unsound_times(slower, jobs))
    assert any("5 repetitions" in line for line in unsound_times(rows[rows["seed"] < 5], jobs))


def timed_by_hand() -> tuple[pd.DataFrame, list[Job]]:
    """Two strategies that decided alike, six repetitions each, on a machine that nobody shared."""
    base = RunConfig(model=model_preset("tiny"))
    hashes = CodeHashes()
    configs = [
        dataclasses.replace(base, allocator=AllocatorConfig(name), seed=seed)
        for name in ("paged", "paged_cow")
        for seed in range(6)
    ]
    jobs = [make_job(config, "times", Path(), "cpu", hashes) for config in configs]
    noise = [0.0, 0.01, -0.01, 0.004, -0.006, 0.002]
    rows = [
        {"run_id": job.run_id, "part": "times", "status": "complete", "executor": "torch",
         "workload": "sharegpt", "strategy": job.config.allocator.name, "seed": job.config.seed,
         "others_share": 0.01, "schedule_digest": f"alike {job.config.seed}",
         "duration_s": 2.0 * (1 + noise[index % 5]),
         "output_tokens_per_s": (900 + 50 * job.config.seed) * (1 + noise[index % 5])}
        for index, job in enumerate(jobs)
    ]  # fmt: skip
    return pd.DataFrame(rows), jobs


def unsound_times(rows: pd.DataFrame, jobs: Sequence[Job]) -> list[str]:
    """Why timed rows are no reference, a line each: others had the machine, repetitions are few or
    disagree, runs that decided alike took other times. One run that is compared with nothing may be
    a single one."""
    timed = rows[(rows["executor"] != "simulated") & (rows["status"] == "complete")]
    if timed.empty:
        return []
    shares = timed.get("others_share", pd.Series(math.nan, timed.index))
    found = [f"interference was not measured in {shares.isna().sum()} repetitions"] * any(
        shares.isna()
    )
    found += [f"{100 * share:.0f} % of the cores: disturbed" for share in shares if share > 0.05]
    labels = {job.run_id: re.sub(r" · seed \d+", "", job.label) for job in jobs}
    timed = timed.assign(cell=timed["run_id"].map(labels))
    for (part, workload), table in timed.groupby(["part", "workload"], sort=False):
        counts = table.groupby("cell", sort=False).size()
        if len(counts) == 1:
            continue
        few = counts[counts < MIN_PAIRS_FOR_VERDICT]
        found += [f"{part}: {cell}: {count} repetitions" for cell, count in few.items()]
        speed = np.log(table.pivot_table(index="cell", columns="seed", values=SPEED, sort=False))
        odd = speed.sub(speed.mean(axis=1), axis=0) - speed.mean(axis=0) + speed.stack().mean()
        found += [
            f"{part}, {workload}: seed {seed} of {cell} disagrees with the others by "
            f"{100 * math.expm1(abs(value)):.0f} %"
            for (cell, seed), value in odd.stack().items()
            if abs(value) > math.log1p(MAX_DISAGREEMENT)
        ]
    return found + [str(pair) for pair in alike_pairs(timed, jobs) if not pair.is_equivalent]


def wrong_tables(folder: Path) -> list[str]:
    """What in an exported study does not follow from its rows and configs."""
    study = find_study(str(folder), Path("elsewhere"))
    tables = make_tables(study.rows, study.jobs)
    markdown = (folder / "comparison.md").read_text()
    lines = re.findall(r"^- (.*)$", markdown.partition("## Checks\n")[2], re.MULTILINE)
    checks = run_checks(study.rows, study.jobs)
    known = [line for line in lines if not line.startswith(OF_REQUESTS)]
    found = {
        "summary.csv": (folder / "summary.csv").read_text() == study.rows.to_csv(index=False),
        "runs": study.missing == 0 and set(study.rows["run_id"]) == {j.run_id for j in study.jobs},
        "configs.json": all(is_as_configured(*run) for run in each_run(study)),
        "status": set(study.rows["status"]) == {"complete"},
        "checks": known
        == [
            line.strip()
            for line in (*checks.lines, *checks.failures)
            if not line.startswith(OF_REQUESTS)
        ],
        "comparison.md": markdown == to_markdown(tables, lines),
        "comparison.csv": (folder / "comparison.csv").read_text()
        == to_csv_rows(tables).to_csv(index=False),
    }
    if folder.name not in ANSWERED:
        output = (folder / OUTPUT).read_text()
        found[OUTPUT] = all(text in output for text in as_printed(tables, checks))
    return [what for what, is_right in found.items() if not is_right]


def each_run(study: StoredStudy) -> Iterator[tuple[Job, pd.DataFrame]]:
    """Each job with its rows."""
    for job in study.jobs:
        yield job, study.rows[study.rows["run_id"] == job.run_id]


def is_as_configured(job: Job, rows: pd.DataFrame) -> bool:
    """The settings that stand in a run's rows are those of its config."""
    wanted = settings(job.config)
    own = rows[list(wanted)]
    is_alike = bool((own.nunique(dropna=False) == 1).all())
    return is_alike and all(
        value == wanted[key] or (pd.isna(value) and wanted[key] is None)
        for key, value in own.iloc[0].items()
    )


def as_printed(tables: Sequence[Table], checks: Checks) -> list[str]:
    """The tables and the check of the ledger, as they stand in the output: simulated tables before
    the lines of timed runs."""
    texts = []
    for table in tables:
        screen = io.StringIO()
        print_table(table, Console(file=screen))
        texts.append("\n".join(line.rstrip() for line in screen.getvalue().splitlines()))
    return [*texts, *checks.lines[:1]]


def wrong_figures(folder: Path, drawn: Path) -> list[str]:
    """Points and provenance of an exported study that are others when its rows are drawn again.
    Those of FROM_STEPS are left out, and must be what cannot be drawn."""
    study = find_study(str(folder), Path("elsewhere"))
    for name in study.record.figures:
        if name == FROM_STEPS.get(folder.name):
            with pytest.raises(ConfigError, match="without steps"):
                draw_figures([name], study.complete, study.jobs, drawn)
        else:
            draw_figures([name], study.complete, study.jobs, drawn)
    kept = {path.name: path for path in (folder / "figures").glob("*") if is_data(path)}
    redrawn = {path.name: path for path in drawn.glob("*") if is_data(path)}
    expected = {name for name in kept if not is_from_steps(folder, name)}
    found = expected ^ redrawn.keys()
    found |= {n for n in expected & redrawn.keys() if content(kept[n]) != content(redrawn[n])}
    return sorted(found)


def is_data(path: Path) -> bool:
    return path.name.endswith((".csv", ".csv.gz", ".json"))


def is_from_steps(folder: Path, name: str) -> bool:
    return folder.name in FROM_STEPS and name.startswith(FROM_STEPS[folder.name])


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def with_another_digit(text: str) -> str:
    """`text` with its last digit but nothing else changed."""
    at = max(index for index, letter in enumerate(text) if letter.isdigit())
    return f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}"
