"""The equality table finds a wrong page, a mode that did not happen, and a user's allocator."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from experiments.commands.modes import RESERVING, main
from experiments.modes.cases import FAMILIES, ROOMY_TOKENS, Mode, modes, save_near_draft
from experiments.modes.reference import Reference, transformers_model
from experiments.modes.runs import CPU, Cell, first_difference, mode_cell
from experiments.modes.table import closing_line, failures, to_markdown
from harness.config import AllocatorConfig
from harness.runs.torch_device import TorchDevice

MINIMAL = f"{Path(__file__).parents[1] / 'allocators' / 'minimal.py'}:Minimal"
PAGED = AllocatorConfig("paged")
LLAMA = FAMILIES["llama"]
WRONG_PAGE = '''
from allocators.paged import Paged

class WrongPage(Paged):
    """Says that everybody's third page is page 0."""

    name = "wrong_page"

    def block_table(self, seq_id):
        table = list(super().block_table(seq_id))
        return [*table[:2], 0, *table[3:]] if len(table) > 2 else table
'''


class Output(NamedTuple):
    status: int
    text: str
    cells: pd.DataFrame
    folder: Path


@pytest.fixture(scope="module")
def device() -> TorchDevice:
    return TorchDevice(LLAMA, CPU)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(LLAMA)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mode]:
    folder = tmp_path_factory.mktemp("near")
    save_near_draft(LLAMA, folder)
    return {mode.name: mode for mode in modes(LLAMA, folder)}


def one_cell(mode: Mode, strategy: AllocatorConfig, device: Any, reference: Reference) -> Cell:
    answers = [reference.answer(request) for request in mode.requests]
    return mode_cell("llama", mode, strategy, LLAMA, device, answers)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """The command on one model, with an allocator that is right and one that is not."""
    folder = tmp_path_factory.mktemp("modes")
    wrong = folder / "wrong.py"
    wrong.write_text(WRONG_PAGE)
    arguments = ["--family", "llama", "--out", str(folder), "--allocator", MINIMAL]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main([*arguments, "--allocator", str(wrong)])
    return Output(status, printed.getvalue(), pd.read_csv(folder / "modes.csv"), folder)


def test_planted_wrong_page_is_refused(output: Output) -> None:
    found = output.cells[output.cells["strategy"].str.endswith("wrong.py")]
    assert output.status == 1
    assert len(found) == 9
    assert (found["equal"] < found["requests"]).all()
    assert found["error"].str.contains("allocator wrong_page: allocate").all()
    for text in (output.text, (output.folder / "modes.md").read_text()):
        assert "! llama, greedy, " in text
        assert "handed out page 0, which sequence 0 maps" in text
        assert "FAILED: 9 of 72 runs" in text


def test_other_tokens_are_a_difference_at_a_position(
    cases: dict[str, Mode], device: Any, reference: Reference
) -> None:
    mode = cases["greedy"]
    answers = [reference.answer(request) for request in mode.requests]
    (ids,) = answers[2].token_ids
    answers[2] = answers[2]._replace(token_ids=((*ids[:3], ids[3] + 1, *ids[4:]),))
    cell = mode_cell("llama", mode, PAGED, LLAMA, device, answers)
    assert cell.num_equal == 7
    assert cell.difference is not None
    assert cell.difference[:5] == (2, 0, 3, ids[3] + 1, ids[3])
    assert cell.difference.margin > 1e-3
    assert "request 2, output 0, position 3" in failures([cell])[0]
    assert "logit margin" in failures([cell])[0]


def test_users_allocator_is_a_column(output: Output) -> None:
    mine = output.cells[output.cells["strategy"].str.endswith("minimal.py:Minimal")]
    assert len(mine) == 9
    assert (mine["equal"] == 8).all()
    assert mine["error"].isna().all()
    others = output.cells[~output.cells["strategy"].str.endswith("wrong.py")]
    assert (others["equal"] == others["requests"]).all()
    assert "Minimal" in output.text
    assert "minimal.py:Minimal" in (output.folder / "modes.md").read_text()
    stored = json.loads((output.folder / "modes.json").read_text())
    assert len(stored["strategies"]) == output.cells["strategy"].nunique() == 8
    assert set(stored["allocator_sha256"]) == {MINIMAL, str(output.folder / "wrong.py")}


def test_mode_that_did_not_happen_is_an_error(
    cases: dict[str, Mode], device: Any, reference: Reference
) -> None:
    roomy = replace(cases["preempted by swap"], pool_tokens=ROOMY_TOKENS)
    cell = one_cell(roomy, PAGED, device, reference)
    assert cell.num_equal == cell.num_requests == 8
    assert not cell.is_proof
    assert cell.error == "the mode did not happen: 0 swaps"
    assert "8/8!" in to_markdown([cell])
    assert closing_line([cell]).startswith("FAILED: 1 of 1 runs, 0 requests")


def test_strategy_that_reserves_need_not_be_preempted(
    cases: dict[str, Mode], device: Any, reference: Reference
) -> None:
    cell = one_cell(cases["preempted by swap"], RESERVING[0], device, reference)
    assert cell.is_proof
    assert cell.num_happened == 0
    page = to_markdown([cell])
    assert "8/8†" in page
    assert "† preempted by swap: never swapped: contiguous buddy max" in page


def test_failing_run_is_a_cell(cases: dict[str, Mode], device: Any, reference: Reference) -> None:
    small = replace(cases["greedy"], pool_tokens=40)
    cell = one_cell(small, PAGED, device, reference)
    assert 0 < cell.num_equal < 8
    assert cell.difference is None
    assert failures([cell]) == [f"llama, greedy, paged: {cell.error}"]
    assert cell.error.startswith("request 1: needs up to 44 token slots")


def test_first_difference_names_output_and_position(
    cases: dict[str, Mode], reference: Reference
) -> None:
    answer = reference.answer(cases["n=4 samples"].requests[0])
    ids = [list(output) for output in answer.token_ids]
    record = _Record(0, [8] * 4, [token for output in ids for token in output], [0.5] * 32)
    assert first_difference(record, answer) is None  # type: ignore[arg-type]
    record.chosen_ids[2 * 8 + 3] += 1
    found = first_difference(record, answer)  # type: ignore[arg-type]
    assert found is not None
    assert found[:5] == (0, 2, 3, ids[2][3], ids[2][3] + 1)
    assert found.margin == max(0.5, answer.margins[2][3])
    cut = _Record(0, [8, 8, 8], record.chosen_ids[: 2 * 8] + ids[2], [0.5] * 24)
    found = first_difference(cut, answer)  # type: ignore[arg-type]
    assert found is not None
    assert found[:5] == (0, 3, 0, ids[3][0], -1)


class _Record(NamedTuple):
    request_id: int
    sequence_lens: Sequence[int]
    chosen_ids: list[int]
    margins: list[float]


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_has_attention_of_its_own(family: str) -> None:
    model = transformers_model(FAMILIES[family])
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_do_not_cycle(family: str, tmp_path: Path) -> None:
    """Where one token follows itself for ever, a wrong page may change nothing."""
    reference = Reference(FAMILIES[family])
    for mode in modes(FAMILIES[family], tmp_path):
        if mode.name == "greedy":
            outputs = [reference.answer(request).token_ids[0] for request in mode.requests]
    assert len(set(outputs)) == len(outputs)
    assert all(len(set(output)) >= len(output) / 2 for output in outputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--allocator", "nofile.py:X"],
            "error: allocator=nofile.py:X: no allocator file nofile.py",
        ),
        (
            ["--allocator", "pagedd"],
            "error: allocator=pagedd: unknown allocator 'pagedd': did you mean",
        ),
    ],
)
def test_unknown_allocator_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_allocator_that_cannot_be_built_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "needy.py"
    path.write_text(
        "from allocators.paged import Paged\n\n"
        "class Needy(Paged):\n"
        "    name = 'needy'\n"
        "    def __init__(self, pool, wanted):\n"
        "        super().__init__(pool)\n"
    )
    arguments = ["--family", "llama", "--allocator", str(path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "wanted" in error
    assert error.count("\n") == 1


def test_folder_that_cannot_be_written_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_unknown_family_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--family", "lama"])
    assert "'llama', 'gpt2', 'opt', 'gemma2', 'all'" in capsys.readouterr().err
