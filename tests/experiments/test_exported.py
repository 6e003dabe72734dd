"""A study that was exported says what the study itself says."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments.commands import compare, export, figures, report
from experiments.exported import by_run, exported_environment, read_by_run
from experiments.exporting import export_study
from experiments.figures import draw_figures
from experiments.provenance import environment
from experiments.stored import StoredStudy, available, find_study
from experiments.table_output import to_csv_rows, to_markdown
from experiments.tables import make_tables
from harness.compose import hydra_session, parse_command
from harness.config import ConfigError
from harness.runs.rows import collect_rows
from harness.runs.study import run_study

SMALL = (
    "model=tiny", "executor=simulated", "repetitions=2", "workload.num_requests=12",
    "workload.length_scale=0.05", "workload.max_len=128", "kv.pool_tokens=256",
    "tracking=none", "kv.page_size=4,16", "measure.memory_map=true",
    "allocator=paged,contiguous", "allocator.expected=max",
)  # fmt: skip
FIGURES = ("page_size", "memory_map")
PRINTABLE = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=3)
"""Control characters are replaced where stored text is read."""

ANYTHING = st.recursive(
    st.none() | st.integers() | PRINTABLE | st.lists(st.integers(), max_size=2),
    lambda values: st.dictionaries(st.sampled_from("abc"), values, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study whose figures want rows, or more than rows."""
    folder = tmp_path_factory.mktemp("results")
    with hydra_session():
        command = parse_command([*SMALL, f"results_dir={folder}"])
        assert run_study(command, Console(file=io.StringIO())) == 0
    path = next(folder.glob("single/studies/*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"figures": FIGURES}))
    return folder


@pytest.fixture(scope="module")
def study(results: Path) -> StoredStudy:
    return find_study("single", results)


@pytest.fixture(scope="module")
def folder(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote."""
    path = tmp_path_factory.mktemp("exported") / "single"
    assert export.main(["single", "--results-dir", str(results), "--output", str(path)]) == 0
    return path


CONFIGS = st.dictionaries(st.sampled_from("abc"), ANYTHING, max_size=3)


@given(st.dictionaries(PRINTABLE.filter(bool), CONFIGS, min_size=1, max_size=4))
def test_what_is_stored_once_for_all_runs_comes_back_for_each(tmp_path_factory, mappings):
    path = tmp_path_factory.mktemp("by_run") / "values.json"
    path.write_text(json.dumps(by_run(mappings)))
    assert read_by_run(path) == mappings


def test_what_all_runs_share_is_stored_once():
    configs = {"r1": {"kv": {"size": 1, "dtype": "x"}}, "r2": {"kv": {"size": 2, "dtype": "x"}}}
    assert by_run(configs) == {
        "shared": {"kv": {"dtype": "x"}},
        "runs": {"r1": {"kv": {"size": 1}}, "r2": {"kv": {"size": 2}}},
    }


def test_an_export_is_the_study_without_its_runs(study, folder):
    found = find_study("single", folder.parent)
    assert available(folder.parent) == ("single",) and found.is_exported
    assert found.record == study.record and found.missing == 0
    assert [job.config for job in found.jobs] == [job.config for job in study.jobs]
    pd.testing.assert_frame_equal(found.rows, collect_rows(study.jobs))
    for job, other in zip(found.jobs, study.jobs, strict=True):
        assert environment(job) == environment(other)
        assert exported_environment(folder, job.run_id)["git_revision"]
        mine, theirs = found.run(job.run_id), study.run(job.run_id)
        assert (mine.label, mine.status, mine.wall_s) == (
            theirs.label,
            theirs.status,
            theirs.wall_s,
        )
    assert not list(folder.rglob("steps.parquet"))


def test_tables_and_figures_of_an_export_are_those_of_the_study(study, folder, tmp_path):
    found = find_study("single", folder.parent)
    tables = make_tables(found.rows, found.jobs)
    assert tables == make_tables(study.rows, study.jobs)
    assert (folder / "comparison.md").read_text().startswith(to_markdown(tables, []))
    assert (folder / "comparison.csv").read_text() == to_csv_rows(tables).to_csv(index=False)
    drawn = draw_figures(("page_size",), found.complete, found.jobs, tmp_path)
    assert len(drawn) >= 4
    for path in drawn:
        assert path.read_bytes() == (folder / "figures" / path.name).read_bytes(), path.name


def test_one_run_of_an_export_is_found(study, folder):
    run_id = study.jobs[0].run_id
    one = find_study(f"{folder}/{run_id[:9]}", Path("elsewhere"))
    assert [job.run_id for job in one.jobs] == [run_id] and one.record.study_id == run_id
    assert set(one.rows["run_id"]) == {run_id}
    with pytest.raises(ConfigError, match="0 exported runs of that id"):
        find_study(f"{folder}/zzz", Path("elsewhere"))


def test_the_same_study_gives_the_same_bytes(study, folder, tmp_path):
    export_study(study, tmp_path / "single", with_report=True, with_pdf=True)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 15
    for name in files:
        assert (tmp_path / "single" / name).read_bytes() == (folder / name).read_bytes(), name


OWN = """
from allocators.paged import Paged
class Mine(Paged):
    name = "mine"
"""


def test_the_code_of_ones_own_allocator_is_in_the_export_once_for_each_state(tmp_path):
    own = tmp_path / "mine.py"
    states = [OWN, OWN + "# edited\n"]
    run_ids = []
    for state, size in zip(states, ("4,8", "16"), strict=True):
        own.write_text(state)
        words = [*SMALL, f"results_dir={tmp_path}", f"kv.page_size={size}", "repetitions=1"]
        with hydra_session():
            command = parse_command([*words, f"allocator={own}:Mine,paged"])
            assert run_study(command, Console(file=io.StringIO())) == 0
        study = find_study("single", tmp_path)
        run_ids.append([j.run_id for j in study.jobs if j.config.allocator.name != "paged"])
        export_study(study, tmp_path / "out" / size, with_report=False, with_pdf=False)
        code = tmp_path / "out" / size / "code"
        digests = json.loads((code / "runs.json").read_text())
        assert [*digests] == run_ids[-1]
        (digest,) = set(digests.values())
        assert (code / digest / "allocator" / "mine.py").read_text() == state
        assert len([path for path in code.rglob("*") if path.is_file()]) == 2
    assert run_ids[0] != run_ids[1]


def test_nothing_of_what_comes_with_kvarena_is_exported_as_code(folder):
    assert not (folder / "code").exists()


def test_what_needs_steps_says_so(folder, results, tmp_path):
    there = ["--results-dir", str(folder.parent)]
    with pytest.raises(ConfigError, match="an export without steps"):
        figures.main(["memory_map", "--of", "single", *there, "--output", str(tmp_path)])
    with pytest.raises(ConfigError, match="an export without steps"):
        compare.main([str(folder), str(results / "single"), "--exact"])


def test_it_is_compared_with_the_study_itself(folder, results, capsys):
    compare.main([str(folder), str(results / "single")])
    printed = capsys.readouterr().out
    assert "their run ids are the same" in printed and "Environment\nthe same" in printed
    assert "an export has no steps" in printed


def test_a_report_of_an_export_has_its_figures_and_spares_its_own_page(folder, tmp_path):
    there = ["--results-dir", str(folder.parent)]
    with pytest.raises(ConfigError, match="give --output"):
        report.main(["single", *there])
    assert report.main(["single", *there, "--output", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "Figure memory_map" in text and "Figure page_size_waste" in text


def test_nothing_but_an_export_gives_way(study, folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    with pytest.raises(ConfigError, match="holds something else"):
        export_study(study, tmp_path / "mine", with_report=False, with_pdf=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.tex"]
    copy = shutil.copytree(folder, tmp_path / "copy")
    plain = study._replace(record=dataclasses.replace(study.record, figures=()))
    export_study(plain, copy, with_report=False, with_pdf=False)
    assert not (copy / "report.html").exists() and not (copy / "figures").exists()
    with pytest.raises(ConfigError, match="is an export already"):
        again = find_study("copy", tmp_path)
        export_study(again, tmp_path / "again", with_report=False, with_pdf=False)
