"""Choosing kernels, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from kernels.backend import load

GOOD = {
    "page_size": 16,
    "num_q_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 64,
    "dtype": torch.float32,
}


def test_auto_takes_the_compiled_kernels_of_the_cpu() -> None:
    assert load("cpu").name == "cpu"
    load("cpu").check(**GOOD)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_any_page_size_on_the_cpu(name: str) -> None:
    for page_size in (1, 7, 1000):
        load("cpu", name).check(**{**GOOD, "page_size": page_size})
    with pytest.raises(ValueError, match=r"page size 0: .* any whole number from 1 up"):
        load("cpu", name).check(**{**GOOD, "page_size": 0})


@pytest.mark.parametrize("page_size", [0, 3, 48, 512])
def test_triton_takes_powers_of_two(page_size: int) -> None:
    triton = load("cpu", "triton")  # interpreted, or a CUDA machine would be needed
    for good in (1, 2, 16, 256):
        triton.check(**{**GOOD, "page_size": good})
    with pytest.raises(ValueError, match=rf"page size {page_size}: .* powers of two from 1 to 256"):
        triton.check(**{**GOOD, "page_size": page_size})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_q_heads": 6}, "6 query heads over 4 KV heads"),
        ({"head_dim": 512}, "head dimension 512: .*multiples of 8 from 8 to 256"),
        ({"head_dim": 20}, "head dimension 20"),
        ({"dtype": torch.float64}, "float64: .*float32, bfloat16, float16"),
    ],
)
def test_refusals_say_what_is_taken(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("cpu", "triton").check(**{**GOOD, **change})


def test_unknown_and_misplaced_names() -> None:
    with pytest.raises(ValueError, match=r"unknown kernels 'flash': take auto, reference, cpu"):
        load("cpu", "flash")
    with pytest.raises(ValueError, match="cpu kernels on a cuda device"):
        load("cuda", "cpu")
