"""The reference against independent implementations."""

from __future__ import annotations

import pytest
import torch
from attention_cases import Shape, make_batch
from transformers import masking_utils

from kernels import reference


def test_full_causal_equals_sdpa() -> None:
    batch = make_batch([(33, 33)])
    ours = reference.paged_attention(*batch, scale=0.25, out=batch.outside())
    _, keys, values, starts, *_ = batch.contiguous()
    slots = slice(int(starts[0]), int(starts[0]) + 33)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        batch.query.transpose(0, 1),
        keys[slots].transpose(0, 1),
        values[slots].transpose(0, 1),
        is_causal=True,
        enable_gqa=True,
        scale=0.25,
    )
    torch.testing.assert_close(ours, theirs.transpose(0, 1))


@pytest.mark.parametrize("window", [1, 2, 7, 40])
def test_window_means_what_transformers_means(window: int) -> None:
    """With one-hot values the output is the attention matrix: its support is the mask."""
    length = 24
    visible = masking_utils.sliding_window_causal_mask_function(window)
    positions = torch.arange(length)
    zero = torch.tensor(0)
    mask = visible(zero, zero, positions[:, None], positions[None, :])
    query = torch.randn(length, 1, length)
    keys = torch.randn(length, 1, length)
    values = torch.eye(length)[:, None, :]
    weights = reference.paged_attention(
        query,
        keys,
        values,
        torch.arange(6, dtype=torch.int32)[None],
        4,
        torch.tensor([0, length]),
        torch.tensor([length]),
        scale=0.2,
        window=window,
    )
    assert torch.equal(weights[:, 0] > 0, mask)


def test_softcap_equals_eager_gemma2() -> None:
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    batch = make_batch([(1, 19)])
    ours = reference.paged_attention(*batch, scale=0.8, softcap=1.5)
    _, keys, values, starts, *_ = batch.contiguous()
    slots = slice(int(starts[0]), int(starts[0]) + 19)
    module = torch.nn.Module().eval()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    theirs, _ = eager_attention_forward(
        module,
        batch.query.transpose(0, 1)[None],
        keys[slots].transpose(0, 1)[None],
        values[slots].transpose(0, 1)[None],
        None,
        scaling=0.8,
        softcap=1.5,
    )
    torch.testing.assert_close(ours, theirs[0])


def test_contiguous_equals_paged() -> None:
    batch = make_batch([(1, 40), (5, 9), (0, 3), (1, 0)], Shape(page_size=4))
    paged = reference.paged_attention(*batch, scale=0.25, out=batch.outside())
    flat = reference.contiguous_attention(*batch.contiguous(), scale=0.25, out=batch.outside())
    torch.testing.assert_close(flat, paged, rtol=0, atol=0)
    assert not paged.isnan().any()
    assert (paged[-1] == 0).all(), "a row without context gives zeros"
