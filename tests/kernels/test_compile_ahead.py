"""The Triton kernels compile for GPUs that are not there, and no register spills."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from kernels.aot import DTYPES, MODULES, PRESETS, SHAPES, variants

ROOT = Path(__file__).parents[2]


def run_report(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the interpreter is chosen once, when triton is imported."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "kernels.aot", *arguments],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def rows_of(text: str) -> list[list[str]]:
    """sm, kernel, registers, shared, spilled of each line of the table."""
    return [line.split()[:5] for line in text.splitlines()[1:-1]]


def assert_clean(done: subprocess.CompletedProcess[str], num_rows: int | None = None) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert rows and (num_rows is None or len(rows) == num_rows), done.stdout
    assert all(int(registers) > 0 and spilled == "0" for _, _, registers, _, spilled in rows)


def select(
    models: Sequence[str], pages: Sequence[int], capability: int, modules: Sequence[str]
) -> list[str]:
    words = ["--models", *models, "--page-sizes", *map(str, pages), "--modules", *modules]
    return [*words, "--capabilities", str(capability), "--processes", "1"]


@pytest.mark.parametrize("capability", [80, 90])
def test_no_spills_on_the_main_shape(capability: int, tmp_path: Path) -> None:
    """Decode whole and in pieces, prefill, and two joins, on pages and without a table; decode of
    up to 256 sequences on pages."""
    modules = ["triton_decode", "triton_prefill"]
    done = run_report(tmp_path, *select(["llama_3_1_8b"], [16, 0], capability, modules))
    assert_clean(done, 2 * 3 + 2 + 1)


@pytest.mark.slow
def test_no_spills_in_float32(tmp_path: Path) -> None:
    """The report by itself is of the shapes in 16 bits, on every GPU; float32 takes most
    registers, and sm_80 spills first."""
    others = [name for name, shape in SHAPES.items() if shape.dtype == torch.float32]
    pages = ["--page-sizes", "16", "0", "--capabilities", "80"]
    assert_clean(run_report(tmp_path, "--models", *others, *pages))


def test_spills_are_counted_and_fail_the_report(tmp_path: Path) -> None:
    """One warp for a tile of 128 x 64 needs more registers than there are."""
    script = (
        "import sys; from kernels import aot, triton_prefill\n"
        "original = triton_prefill.variants\n"
        "triton_prefill.variants = lambda shape: [each._replace(num_warps=1,"
        "constants=each.constants | {'TILE_N': 16}) for each in original(shape)]\n"
        "sys.exit(aot.main(['--models', 'llama_3_2_1b', '--page-sizes', '16', '--capabilities',"
        "'80', '--modules', 'triton_prefill', '--processes', '1']))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert [int(spilled) > 0 for *_, spilled in rows_of(done.stdout)] == [True]


def test_interpreted_kernels_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kernels.aot", *select(["tiny"], [16], 90, ["triton_decode"])],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "unset it to compile kernels" in done.stderr


def test_presets_are_conf_models() -> None:
    names = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")} - {"hub"}
    assert set(PRESETS) == names
    for name, shape in PRESETS.items():
        model = OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml")
        sizes = model.config
        heads = sizes.num_attention_heads
        assert shape.dtype == DTYPES[model.dtype]
        assert shape.num_q_heads == heads
        assert shape.num_kv_heads == sizes.get("num_key_value_heads", heads)
        assert shape.head_dim == sizes.get("head_dim", sizes.hidden_size // heads)
        assert shape.hidden_size == sizes.hidden_size
        assert shape.intermediate_size == sizes.get("intermediate_size", sizes.get("ffn_dim"))
        assert shape.window == ("sliding_window" in sizes)


def test_every_argument_has_a_type_or_a_value() -> None:
    for shape in (PRESETS["llama_3_1_8b"], PRESETS["tiny"]._replace(dtype=torch.float16)):
        for variant in variants(shape):
            given = {*variant.types, *variant.constants}
            assert given == set(variant.kernel.arg_names), variant.kernel.__name__
            assert not variant.types.keys() & variant.constants.keys()


def test_every_kernel_module_is_listed() -> None:
    """A module that lists its variants is compiled."""
    with_variants = {
        path.stem
        for path in (ROOT / "kernels").glob("triton_*.py")
        if "def variants(" in path.read_text()
    }
    assert set(MODULES) == with_variants
