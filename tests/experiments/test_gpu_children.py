"""What the stages of `python -m experiments gpu` do inside: checks that can fail, reports that are
read right, packages that are unpacked."""

from __future__ import annotations

import argparse
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.gpu import kernel_checks, layer_checks, model_checks, packages, sweep
from experiments.gpu.child import Task, command_line
from experiments.gpu.marked_tests import marked_files, read_report
from experiments.gpu.ragged import Heads, exact_attention, make_ragged, relative_error
from experiments.gpu.rows import Budget, RowLog, read_rows
from experiments.gpu.sweep import DRY_OVERRIDES, read_runs
from harness.engine.device.model_shape import model_preset
from harness.runs.grid import Part
from kernels import backend, reference

CPU = torch.device("cpu")
LENS = [(1, 20), (3, 9), (1, 0), (1, 1), (2, 40)]


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"softcap": 2.0}])
@pytest.mark.parametrize("page_size", [1, 4])
def test_float64_attention_is_the_reference(page_size: int, options: dict[str, float]) -> None:
    """Two computations of their own agree, over pages and over the same tokens side by side."""
    window = options.get("window")
    batch = make_ragged(
        LENS, Heads(4, 2, 8), page_size, torch.float32, CPU,
        window=None if window is None else int(window),
    )  # fmt: skip
    exact = exact_attention(batch, scale=0.3, **options)  # type: ignore[arg-type]
    assert exact.isfinite().all()
    paged = reference.paged_attention(*batch.paged(), scale=0.3, **options)  # type: ignore[arg-type]
    flat = reference.contiguous_attention(*batch.contiguous(), scale=0.3, **options)  # type: ignore[arg-type]
    assert relative_error(paged, exact) < 1e-6
    assert relative_error(flat, exact) < 1e-6


def test_pages_beyond_a_first_page_are_nowhere_below_it() -> None:
    batch = make_ragged(LENS, Heads(2, 1, 8), 4, torch.float32, CPU, first_page=100)
    mapped = batch.block_table[batch.block_table >= 0]
    assert mapped.min() >= 100
    assert batch.key_cache[400:].isnan().any()


def test_a_kernel_that_reads_a_wrong_page_or_leaves_output_unwritten_fails() -> None:
    right = backend.load("cpu", "reference")
    case = kernel_checks.Case("c", LENS, Heads(4, 2, 8), 4, torch.float32, {})
    found = kernel_checks.check_attention(right, case, CPU)
    assert found["error_norm"] <= found["tolerance"]

    def off_by_one(query, keys, values, table, *rest, **options):  # type: ignore[no-untyped-def]
        return reference.paged_attention(query, keys, values, table.roll(1, 1), *rest, **options)

    def lazy(query, *rest, out, **options):  # type: ignore[no-untyped-def]
        reference.paged_attention(query, *rest, out=out, **options)
        out[-1, 0] = torch.nan
        return out

    for wrong in (off_by_one, lazy):
        broken = backend.AttentionBackend(
            "broken", wrong, right.contiguous_attention, right.store_kv, right.copy_pages,
            right.dtypes,
        )  # fmt: skip
        found = kernel_checks.check_attention(broken, case, CPU)
        assert not found["error_norm"] <= found["tolerance"]


def test_copies_and_stores_are_exact_or_wrong() -> None:
    right = backend.load("cpu", "reference")
    for check in (
        lambda kernels: kernel_checks.check_copies(kernels, CPU, 4),
        lambda kernels: kernel_checks.check_store(kernels, CPU),
    ):
        assert check(right)["error_norm"] == 0
    in_turn = backend.AttentionBackend(
        "broken", right.paged_attention, right.contiguous_attention, right.store_kv,
        lambda k, v, pairs, size, _: [reference.copy_pages(k, v, p[None], size) for p in pairs],  # type: ignore[arg-type, return-value]
        right.dtypes,
    )  # fmt: skip
    assert kernel_checks.check_copies(in_turn, CPU, 4)["error_norm"] == 1
    for direct in (True, False):
        assert kernel_checks.check_swap(CPU, 4, direct)["error_norm"] == 0


def test_layer_kernels_pass_and_a_wrong_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {torch.float32: 1e-5}
    cases = dict(layer_checks.layer_cases(CPU, [torch.float32], limits, small=True))
    assert len(cases) == 6
    for check in cases.values():
        assert check()["error_norm"] <= 1e-5
    monkeypatch.setattr("kernels.triton_activation.silu_mul", lambda g, out: out.fill_(0.1))
    assert not cases["silu_mul, float32"]()["error_norm"] <= 1e-5


def test_every_page_size_and_dtype_is_checked() -> None:
    names = " ".join(case.name for case in kernel_checks.attention_cases(small=False, dry=False))
    for page_size in kernel_checks.PAGE_SIZES:
        assert f"bfloat16, page {page_size}, mixed" in names
    for word in ("float32", "float16", "window", "softcap", "beyond 2^31", "group of 7"):
        assert word in names


def test_a_junit_report_becomes_rows(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure message="1 is\n not 2"/></testcase>'
        '<testcase classname="a" name="broken"><error message="boom"/></testcase>'
        '<testcase classname="a" name="left"><skipped message="no GPU"/></testcase>'
        "</testsuite></testsuites>"
    )
    found = [(each.name, each.status, each.message) for each in read_report(report)]
    assert found == [
        ("a::good", "ok", ""),
        ("a::bad", "failed", "1 is not 2"),
        ("a::broken", "failed", "boom"),
        ("a::left", "absent", "no GPU"),
    ]


def test_only_files_with_gpu_tests_are_collected() -> None:
    names = {path.name for path in marked_files()}
    assert {"test_cuda_graphs.py", "test_timing_gpu.py"} <= names
    assert "test_trackers.py" not in names


def test_stored_runs_become_rows(tmp_path: Path) -> None:
    for run_id, status in (("a", "complete"), ("b", "failed"), (".c.partial", "complete")):
        folder = tmp_path / run_id
        folder.mkdir()
        (folder / "status.json").write_text(
            json.dumps({"label": run_id, "status": status, "error": "", "wall_s": 1.5})
        )
        summary = [{"output_tokens_per_s": 5.0, "many": [1]}] if status == "complete" else []
        (folder / "summary.json").write_text(json.dumps(summary))
    assert list(read_runs(tmp_path)) == [
        ("a", "complete", {"output_tokens_per_s": 5.0, "wall_s": 1.5, "error": ""}),
        ("b", "failed", {"wall_s": 1.5, "error": ""}),
    ]


def test_runs_of_other_code_become_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two keys, one label: each stage's rows are of what its own command stored."""
    told: dict[str, str] = {}

    def stores_one(command: list[str], given: Task) -> int:
        (results,) = [word for word in command if word.startswith("results_dir=")]
        folder = Path(results.removeprefix("results_dir=")) / "sweep_page_size" / f"id_{given.key}"
        folder.mkdir(parents=True)
        status = {"label": f"label of {told['label']}", "status": "complete", "error": ""}
        (folder / "status.json").write_text(json.dumps({**status, "wall_s": 1.0}))
        (folder / "summary.json").write_text("[]")
        return 0

    monkeypatch.setattr(sweep, "_run", stores_one)
    for key in ("old", "new"):
        told["label"] = key
        arguments = [
            "sweep",
            "--experiment",
            "sweep_page_size",
            *command_line(tmp_path, key, 9, True),
        ]
        monkeypatch.setattr("sys.argv", arguments)
        assert sweep.main() == 0
    assert [row["case"] for row in read_rows(tmp_path)] == ["label of new"]


def test_a_lacking_package_is_unpacked_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages, "CARRIED", {"kvarena_lacking": "kvarena_lacking"})
    arguments = ["--target", str(tmp_path / "to"), "--wheelhouse", str(tmp_path)]
    assert packages.main(arguments) == 1
    assert "make wheelhouse" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "kvarena_lacking-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("kvarena_lacking/__init__.py", "VALUE = 1\n")
    assert packages.main(arguments) == 0
    assert (tmp_path / "to" / "kvarena_lacking" / "__init__.py").is_file()
    monkeypatch.setattr(packages, "NEEDED", ("kvarena_never",))
    assert packages.main(arguments) == 1
    assert "GPU_PYTHON" in capsys.readouterr().err


def test_every_swept_experiment_has_a_preset_for_gpus() -> None:
    import yaml

    for name in DRY_OVERRIDES:
        path = Path(__file__).resolve().parents[2] / f"conf/experiment/{name}.yaml"
        parts = yaml.safe_load(path.read_text())["sweep"]["presets"]["gpu"]
        for part in parts:
            made = Part(part["name"], part["set"], part["axes"])
            assert made.set["executor"] == "torch" and made.set["model"] == "llama_3_1_8b"


def test_logits_are_as_good_as_transformers_and_a_wrong_page_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = model_preset("tiny")
    right = model_checks.check_logits(config, "cpu", (5, 13), "reference")
    assert 0 < right["error_norm"] <= right["tolerance"] < 1e-4

    def broken(device: str, name: str) -> backend.AttentionBackend:
        made = backend.load(device, name)

        def wrong(query, keys, values, table, *rest, **options):  # type: ignore[no-untyped-def]
            swapped = table.clone()
            if table.shape[1] > 1:
                swapped[0, 0] = table[0, 1]
            return made.paged_attention(query, keys, values, swapped, *rest, **options)

        return replace(made, paged_attention=wrong)

    monkeypatch.setattr(model_checks, "load", broken)
    wrong = model_checks.check_logits(config, "cpu", (5, 13), "reference")
    assert not wrong["error_norm"] <= wrong["tolerance"]  # a page of NaN, or of other tokens


def test_every_prompt_is_prefilled_continued_and_decoded() -> None:
    for length in (3, 5, 9, 170, 700, 701):
        cuts = model_checks._cuts(length)
        assert [at for begin, end in cuts for at in range(begin, end)] == list(range(length))
        assert all(begin < end for begin, end in cuts)
        singles = [end - begin for begin, end in cuts[2:]]
        assert singles and set(singles) == {1} and (length < 24 or len(singles) == 8)


def test_a_decode_that_is_wrong_beyond_the_first_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefills and three steps of single tokens are right; later ones read a wrong page."""
    steps: list[int] = []

    def broken(device: str, name: str) -> backend.AttentionBackend:
        made = backend.load(device, name)

        def wrong(query, keys, values, table, *rest, **options):  # type: ignore[no-untyped-def]
            steps.append(len(query))
            late = len(query) == 1 and steps.count(1) > 3 * layers
            return made.paged_attention(
                query, keys, values, table.flip(1) if late else table, *rest, **options
            )

        return replace(made, paged_attention=wrong)

    layers = model_preset("tiny").config["num_hidden_layers"]
    monkeypatch.setattr(model_checks, "load", broken)
    found = model_checks.check_logits(model_preset("tiny"), "cpu", (24,), "reference")
    assert steps.count(1) == 8 * layers
    assert not found["error_norm"] <= found["tolerance"]


def test_greedy_tokens_are_compared_under_every_strategy_and_switch() -> None:
    names = [setting.name for setting in model_checks.settings(dry=True)]
    assert names[:4] == ["paged", "paged_cow", "paged_prefix", "contiguous"]
    assert "paged, fused=false" in names
    on_a_gpu = [setting.name for setting in model_checks.settings(dry=False)]
    assert on_a_gpu == [*names, "paged, compile=true"]
    found = {0: ([1, 2], [0.5, 0.5])}
    assert model_checks._difference(found, {0: ([1, 2], [0.5, 0.5])}) == ""
    assert "position 1" in model_checks._difference(found, {0: ([1, 3], [0.5, 0.5])})
    assert "finished" in model_checks._difference(found, {})


def test_two_that_are_as_good_may_part_and_nothing_after_that_is_compared() -> None:
    """At a tie the prefixes part; what follows has other inputs, whatever its margins."""
    ours = {0: ([1, 2, 3], [0.5, 1e-5, 0.5]), 1: ([7, 8], [0.5, 0.5])}
    theirs = {0: ([1, 4, 9], [0.5, 1e-5, 0.5]), 1: ([7, 8], [0.5, 0.5])}
    assert model_checks._difference(theirs, ours) == ""
    beyond = {**ours, 1: ([7, 9], [0.5, 0.5])}
    assert "request 1, position 1" in model_checks._difference(theirs, beyond)
    only_ours_is_close = {**theirs, 0: ([1, 4, 9], [0.5, 0.4, 0.5])}
    assert "request 0, position 1" in model_checks._difference(only_ours_is_close, ours)


def test_checks_of_tokens_go_on_and_keep_what_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first setting is served again for the others' sake; no time left cuts those alone."""
    served: list[str] = []

    def tokens(log: RowLog, case: str, *rest: object) -> None:
        served.append(case)
        log.add(case, "failed" if case.endswith("fused=false") and len(served) < 8 else "ok")

    monkeypatch.setattr(model_checks, "_tokens", tokens)
    monkeypatch.setattr(model_checks, "TorchDevice", lambda *_: None)
    given = Task(tmp_path, "key", Budget(100.0), True, argparse.Namespace())
    names = [f"greedy tokens, {each.name}" for each in model_checks.settings(dry=True)]
    model_checks.check_tokens(given, given.log(), "cpu")
    assert served == names and len(names) == 7
    model_checks.check_tokens(replace(given, budget=Budget(0.0)), given.log(), "cpu")
    log = given.log()
    assert len(log.cases("ok")) == 6 and len(served) == 7
    model_checks.check_tokens(given, log, "cpu")
    assert served[7:] == [names[0], names[6]] and len(log.cases("ok")) == 7
    model_checks.check_tokens(given, log, "cpu")
    assert len(served) == 9
