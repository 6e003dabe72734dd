"""python -m experiments figures: what it finds, where it writes, the same bytes again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_study import Runner, Study, record

from experiments.commands import figures
from experiments.redraw import Asked, asked_for
from harness.config import ConfigError

SUFFIXES = {".pdf", ".png", ".svg", ".csv", ".json"}


@pytest.fixture
def results(compared: Study) -> Path:
    return record(compared)


def in_a_process(hash_seed: str, results: Path, output: Path, *arguments: str) -> dict[str, bytes]:
    """The files that the command writes, by name."""
    command = [sys.executable, "-m", "experiments", "figures", *arguments]
    where = ["--results-dir", str(results), "--output", str(output)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run([*command, *where], check=True, env=environment, capture_output=True)
    return {path.name: path.read_bytes() for path in output.iterdir()}


def test_two_processes_write_the_same_bytes(results: Path, tmp_path: Path) -> None:
    asked = ("compare", "page_size", "--of", "compare_allocators", "--style", "paper")
    first = in_a_process("1", results, tmp_path / "a", *asked)
    second = in_a_process("4242", results, tmp_path / "b", *asked)
    names = ("compare_classes", "compare_fig2", "page_size_waste")
    assert set(first) == {f"{name}{suffix}" for name in names for suffix in SUFFIXES}
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_files_carry_no_date_and_fonts_that_can_be_edited(results: Path, tmp_path: Path) -> None:
    files = ["compare", "--results-dir", str(results), "--output", str(tmp_path)]
    assert figures.main(files) == 0
    pdf = (tmp_path / "compare_fig2.pdf").read_bytes()
    assert b"/CreationDate" not in pdf and b"/Subtype /Type3" not in pdf
    assert b"/CIDFontType2" in pdf, "Type 42"
    svg = (tmp_path / "compare_fig2.svg").read_text()
    assert "<dc:date>" not in svg and "<text" not in svg, "text is outlines"


def test_a_study_keeps_its_figures_by_style(
    results: Path, compared: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["compare_allocators", "--results-dir", str(results), "--style", "paper"]
    assert figures.main([*asked, "--width", "usenix", "--columns", "2"]) == 0
    folder = compared.folder / "figures-paper-usenix-2-columns"
    assert {path.suffix for path in folder.glob("compare_fig2.*")} == SUFFIXES
    assert "7.00 in wide" in capsys.readouterr().out


def test_names_are_studies_or_figures(results: Path, compared: Study) -> None:
    everything = [Asked("compare_allocators", ("compare",))]
    assert asked_for([], results) == everything
    assert asked_for(["compare"], results) == everything
    assert asked_for(["compare_allocators", "compare"], results) == everything
    assert asked_for([str(compared.folder)], Path("elsewhere")) == [
        Asked(str(compared.folder), ("compare",))
    ]
    assert asked_for(["page_size"], results, "compare_allocators@01") == [
        Asked("compare_allocators@01", ("page_size",))
    ]


@pytest.mark.parametrize(
    ("names", "study", "says"),
    [
        (["compere"], "", "did you mean compare"),
        (["page_size"], "", "no study in .* draws it.*--of STUDY"),
        (["page_sise"], "compare_allocators", "did you mean page_size"),
        (["compare_allocators@ff"], "", "0 studies of that id"),
    ],
)
def test_a_wrong_name_gets_a_way_out(
    results: Path, names: list[str], study: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        asked_for(names, results, study)


def test_one_run_has_no_figures_of_its_own(results: Path, compared: Study) -> None:
    with pytest.raises(ConfigError, match="give --of compare_allocators/"):
        asked_for([f"compare_allocators/{compared.jobs[0].run_id}"], results)


def test_nothing_stored_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no study"):
        asked_for([], tmp_path)


def test_what_no_run_answers_is_said(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["phase_map", "--of", "compare_allocators", "--output", str(tmp_path / "out")]
    assert figures.main([*asked, "--results-dir", str(results)]) == 1
    assert "nothing in these runs for it" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_list_says_who_draws_what(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main(["--list", "--results-dir", str(results)]) == 0
    said = capsys.readouterr().out
    assert "compare_allocators@0123456789ab" in said
    assert "\n  compare\n" in said and "phase_map" in said.split("of no study")[1]


def test_a_study_that_cannot_be_read_stops_no_other(
    results: Path, run_tiny: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = next(results.glob("*/studies/*.json"))
    both = tmp_path / "results"
    (both / "compare_allocators").parent.mkdir()
    (both / "compare_allocators").symlink_to(study.parent.parent)
    (both / "broken" / "studies").mkdir(parents=True)
    text = study.read_text().replace("compare_allocators", "broken")
    (both / "broken" / "studies" / study.name).write_text(text)
    assert figures.main(["--results-dir", str(both), "--output", str(tmp_path / "out")]) == 1
    assert "none of its" in capsys.readouterr().err
    assert (tmp_path / "out" / "compare_allocators" / "compare_classes.svg").exists()
