"""Words of a command line that are no setting, flag or value: one line, and nothing is begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import ConfigError, SweepConfig
from harness.conversion import from_mapping, unknown_name

NO_SETTING = "a run is described by KEY=VALUE"
NO_KEY = "there is no key before the `=`"
COMMA = "a comma stands between two values"


def assert_told(answer, *said: str) -> None:
    assert answer.status == 2, answer
    assert answer.out == ""
    (line,) = answer.err.strip().splitlines()
    assert line.startswith("error: ")
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("word", "how"),
    [
        ("=3", NO_KEY),
        (" =3", NO_KEY),
        ("@kv=3", NO_KEY),
        ("", NO_SETTING),
        ("kv.page_size", NO_SETTING),
        ("kv.page_size:8", NO_SETTING),
        ("report", "python -m experiments NAME"),
        ("kv.page_size=16,", COMMA),
        ("kv.page_size=,16", COMMA),
        ("kv.page_size=8,,16", COMMA),
        ("kv.page_size=(8", "must pair up"),
        ('kv.page_size="8', "must pair up"),
    ],
)
def test_a_word_that_is_no_setting_is_quoted_with_how_one_is_written(command, word, how):
    assert_told(command(word), f"cannot read {word!r}", how)
    assert_told(command("--cfg", "job", word), f"cannot read {word!r}", how)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (["--halp"], "did you mean --help?"),
        (["--hel"], "did you mean --help?"),
        (["-x"], "unknown flag '-x'"),
        (["--model", "tiny"], "KEY=VALUE, without dashes"),
        (["--dry_run=true"], "KEY=VALUE, without dashes"),
        (["--cfg"], "--cfg: expected one argument"),
        (["--cfg", "jobs"], "choose from 'job', 'hydra', 'all'"),
    ],
)
def test_an_unknown_flag_is_told_with_those_there_are(command, flag, said):
    assert_told(command(*flag), said)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("device=gpu", "unknown value 'gpu': choose one of auto, cpu, cuda"),
        ("kv.page_size=abc", "expected a whole number"),
        ("kv.page_size=[8,16]", "to sweep several: kv.page_size=8,16"),
        ("kv.page_size=1e30", "must be at most 2**62"),
        ("kv=16", "give one of kv.page_size, kv.pool_tokens"),
        ("workload.rate=inf", "expected a number that is finite"),
        ("seed=-1", "must be 0 or more"),
        ("results_dir=", "names no folder"),
        ("page_size=8", "did you mean kv.page_size"),
        ("~kv.pagesize", "did you mean kv.page_size"),
        ("model=meta-llama/Llama-3.1-8B", "'meta-llama/Llama-3.1-8B'"),
        ("model=meta-llama/Llama-3.1-8B", "A checkpoint is model=hub model.path=DIR_OR_ID"),
        ("allocator=", "unknown value '': choose one of contiguous"),
        ("allocator=mine.Mine", "One of your own is allocator=./FILE.py:CLASS"),
        ("allocator.fit=best_fit", "is an option of allocator=contiguous, not of paged"),
        ("hydra/launcher=slurm", "did you mean submitit_slurm"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_the_way_out(command, argument, said):
    assert_told(command(argument), argument.split("=")[0].lstrip("~"), said)


@pytest.mark.parametrize("kind", ["file", "read-only"])
def test_a_folder_that_takes_no_results_is_told_before_any_run(command, kind):
    folder = Path("taken") if kind == "file" else Path("/proc/nowhere")
    Path("taken").write_text("not a folder")
    answer = command(f"results_dir={folder}")
    assert answer.status == 2
    assert answer.err.startswith(f"error: results_dir={folder}: {folder}/single/ cannot be written")
    assert "give another folder" in answer.err
    assert answer.err.count("\n") == 1
    assert "[1/1]" not in answer.out


def test_a_dry_run_makes_no_folder(command):
    assert command("dry_run=true").status == 0
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("typed", ["llama3", "llama-3.1", "Llama_3.1_8B", "llama318b"])
def test_a_name_is_remembered_without_case_and_separators(typed):
    names = [f"preset_{number}" for number in range(20)]
    for known in (["llama_3_1_8b", "llama_13b", "opt_13b"], [*names, "llama_3_1_8b"]):
        assert "did you mean llama_3_1_8b" in unknown_name(typed, known, "value")


def test_of_few_names_only_near_ones_are_hinted_at_and_of_many_not_all_shown():
    assert "did you mean" not in unknown_name("gpu", ["cpu", "cuda"], "value")
    assert "did you mean cpu?" in unknown_name("cpuu", ["cpu", "cuda"], "value")
    names = [f"name_{number}" for number in range(30)]
    assert unknown_name("other", names, "value").endswith(", ... (30 in all)")
    assert unknown_name("other", [], "value") == "unknown value 'other': there is none"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"presets": {"quick": 3}}, "sweep.presets.quick=3: expected a list"),
        ({"presets": {"quick": [3]}}, r"sweep.presets.quick\[0\]=3: expected a group of keys"),
        ({"figures": ["a", 3]}, r"sweep.figures\[1\]=3: expected text"),
    ],
)
def test_what_a_list_or_group_holds_is_checked(values, said):
    with pytest.raises(ConfigError, match=said):
        from_mapping(SweepConfig, values, "sweep.")
