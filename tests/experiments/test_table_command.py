"""python -m experiments table: formats, columns, marks; LaTeX that compiles."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from tiny_study import Runner, Study, record

from experiments.commands import table
from experiments.latex import PAGE_CHARACTERS, escape, to_latex
from experiments.table_columns import COLUMNS
from experiments.table_output import all_columns
from experiments.tables import Table, make_tables
from harness.config import ConfigError


@pytest.fixture
def results(compared: Study) -> Path:
    return record(compared)


def printed(capsys: pytest.CaptureFixture[str], results: Path, *arguments: str) -> str:
    assert table.main([*arguments, "--results-dir", str(results)]) == 0
    return capsys.readouterr().out


def check_latex(text: str) -> None:
    """What pdflatex would stumble over: specials, braces, dollars, environments, cells a row."""
    source = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert source.isascii() and not re.search(r"(?<!\\)[#%]", source)
    plain = re.sub(r"\\[{}$&#_%]", "", source)
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    outside = re.sub(r"\$[^$]*\$|\\(label|begin|end)\{[^}]*\}", "", plain)
    assert not set("_^~") & set(outside.replace("\\textasciitilde", ""))
    open_environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([^}]*)\}", source):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert open_environments == []
    for alignment, body in re.findall(
        r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}(.*?)\\end\{tabular\}", plain, re.DOTALL
    ):
        body = re.sub(r"\\shortstack\[[lr]\]\{.*?\}", "", body)
        rules = [body.count(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")]
        assert rules == [1, 1, 1]
        lines = [line for line in body.split("\n") if "&" in line]
        for line in lines:
            spanned = sum(int(width) - 1 for width in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert line.count("&") + 1 + spanned == len(alignment)
            assert line.endswith(r"\\")


def compile_latex(text: str, folder: Path) -> None:
    """With a real LaTeX, where there is one."""
    if not (program := shutil.which("pdflatex")):
        return
    document = (
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
    )
    (folder / "t.tex").write_text(document)
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_latex_is_sound(
    results: Path, compared: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in ("", "all", "utilisation,batched_requests"):
        text = printed(capsys, results, "--format", "latex", "--columns", columns)
        check_latex(text)
        compile_latex(text, tmp_path)
        assert text.count(r"\caption{") == 2 and "% python -m harness" in text
        assert "Pool: 320 tokens" in text and "16 x 20 &" in text
    assert r"contiguous first\_fit max" in text
    assert r"\label{tab:compare-allocators-waste-sharegpt}" in text


def test_latex_shows_what_the_table_has(compared: Study) -> None:
    chosen = [COLUMNS["utilisation"], COLUMNS["batched_requests"]]
    (first, *_) = make_tables(compared.rows, compared.jobs, chosen)
    text = to_latex([first], ["tab:x"], [])
    best = {row.labels[0]: row for row in first.rows if "utilisation" in row.best}
    for row in first.rows:
        begins = re.compile(rf"    {re.escape(escape(row.labels[0]))}(\$.*?\$)* &")
        (line,) = filter(begins.match, text.splitlines())
        value = row.cells["utilisation"]
        mean, half = f"{100 * value.mean:.1f}", f"{100 * value.half_width:.1f}"
        shown = rf"\mathbf{{{mean}}}" if row.labels[0] in best else mean
        assert rf"${shown} \pm {half}$" in line and line.endswith(r"& 5 \\")
    assert 0 < len(best) < len(first.rows)
    assert r"used \%" in text and "Best mean of a column: bold." in text


def test_wide_tables_are_continued_below(compared: Study) -> None:
    (first, *_) = make_tables(compared.rows, compared.jobs)
    text = to_latex([first], ["tab:x"], [])
    assert text.count(r"\begin{tabular}") > 1 and text.count(r"\begin{table*}") == 1
    heads = sum(len(re.findall("r", a)) for a in re.findall(r"@\{\}l+(r+)@", text))
    assert heads == len(all_columns(first)) + text.count(r"\begin{tabular}"), "n in each"
    plain = [re.sub(r"\\pm|\\mathbf|[${}\\]", "", line) for line in text.splitlines()]
    rows = [line for line in plain if line.startswith("    contiguous")]
    assert max(map(len, rows)) < 1.2 * PAGE_CHARACTERS


def test_what_latex_reads_is_escaped(compared: Study, tmp_path: Path) -> None:
    (first, *_) = make_tables(compared.rows, compared.jobs, [COLUMNS["utilisation"]])
    nasty = "a_b %5 #1 {x} $y$ \\n ~ ^ <c> | & † ± 日"
    row = dataclasses.replace(first.rows[0], labels=(nasty, "16 x 20"))
    failed = dataclasses.replace(row, error=nasty)
    changed = dataclasses.replace(first, rows=(row, failed), title=nasty, notes=(nasty,))
    text = to_latex([changed], ["tab:x"], ["one\ntwo"])
    check_latex(text)
    compile_latex(text, tmp_path)
    assert r"a\_b \%5 \#1 \{x\} \$y\$ \textbackslash{}n" in text
    assert text.startswith("% one\n% two\n") and "failed: see below" in text


def test_csv_has_units_pool_and_repetitions(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, results, "compare_allocators", "--format", "csv", "--columns", "all")
    frame = pd.read_csv(io.StringIO(text))
    assert len(frame) == 18 and set(frame["study"]) == {"compare_allocators"}
    assert set(frame["pool_tokens"]) == {320} and set(frame["repetitions"]) == {5}
    assert {"used %", "used % ±", "output tokens/step per GiB of KV", "best in"} <= set(frame)


def test_columns_are_the_chosen_ones(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--columns", "utilisation,num_steps", "--part", "waste"]
    lines = printed(capsys, results, *asked).splitlines()
    assert lines[2] == "| strategy | page x pages | used % | num steps | n |  |"
    assert any(line.startswith("| paged |") and "**" in line for line in lines)


def test_the_end_of_the_file_says_the_format(results: Path, tmp_path: Path) -> None:
    for name, begins in (
        ("t.tex", "% compare_allocators@"),
        ("t.md", "## waste"),
        ("t.csv", "part,"),
    ):
        target = tmp_path / "made" / name
        assert table.main(["--results-dir", str(results), "--output", str(target)]) == 0
        assert target.read_text().startswith(begins)


def test_wrong_names_get_the_nearest(results: Path, tmp_path: Path) -> None:
    for wrong, says in (
        (["--columns", "utilization"], "did you mean utilisation"),
        (["--part", "wast"], "did you mean waste"),
        (["compare_alocators"], "did you mean compare_allocators"),
    ):
        with pytest.raises(ConfigError, match=says):
            table.main([*wrong, "--results-dir", str(results)])
    with pytest.raises(ConfigError, match="has no study"):
        table.main(["--results-dir", str(tmp_path)])


def best_by_label(made: Table, metric: str) -> set[tuple[str, ...]]:
    return {row.labels for row in made.rows if metric in row.best}


def test_only_rows_up_against_the_same_compete(run_tiny: Runner) -> None:
    study = run_tiny("allocator=paged,contiguous", "kv.pool_tokens=200,320", "repetitions=2")
    (made,) = make_tables(study.rows, study.jobs)
    place = made.label_heads.index("pool tokens")
    used = best_by_label(made, "utilisation")
    assert {labels[place] for labels in used} == {"200", "320"}
    for size in ("200", "320"):
        own = {
            row.labels: round(100 * row.cells["utilisation"].mean, 1)
            for row in made.rows
            if row.labels[place] == size
        }
        assert {labels for labels in used if labels[place] == size} == {
            labels for labels, mean in own.items() if mean == max(own.values())
        }
    assert any("among rows of the same pool tokens: *" in note for note in made.notes)
