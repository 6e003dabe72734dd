"""The lean forward pass: its operations, its angles and its buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lean_models import FAMILIES, SIZES, YARN, batch_of, decoder, loaded, operations_of, step_of
from model_driver import drive
from torch import Tensor

from harness.engine.device.lean.angles import Angles
from harness.engine.device.lean.buffers import Buffers
from harness.engine.device.lean.build import build
from harness.engine.device.lean.operations import FusedOperations, TorchOperations
from harness.engine.device.torch_executor import TorchExecutor
from kernels import triton_layer

_LIMITS = {
    "float32": {"rtol": 2e-4, "atol": 2e-4},
    "float16": {"rtol": 2e-2, "atol": 6e-2},
    "bfloat16": {"rtol": 5e-2, "atol": 0.5},
}


@pytest.mark.parametrize("dtype", _LIMITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_implementations_give_the_models_own_logits(family: str, dtype: str) -> None:
    lens, torch_dtype = [5, 1, 12], getattr(torch, dtype)
    ids, positions, rows = batch_of(lens)
    own_step = step_of(lens, torch_dtype)
    with torch.inference_mode():
        own = loaded(family, dtype).model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
            kv_step=own_step,
        )
        for kernels in ("reference", "cpu", "triton"):
            step = step_of(lens, torch_dtype)
            logits = decoder(family, kernels, dtype)(ids, positions, rows, step)
            limits = _LIMITS[dtype]
            torch.testing.assert_close(logits, own.logits[0], **limits)
            for ours, theirs in zip(step.caches, own_step.caches, strict=True):
                torch.testing.assert_close(ours, theirs, equal_nan=True, **limits)


class _Forgetful(FusedOperations):
    """Leaves the keys unrotated."""

    def __init__(self) -> None:
        super().__init__("triton", triton_layer)

    def rope_store(self, layer: int, qkv: Tensor, cos_sin: Tensor, *rest: Any) -> None:
        still = torch.cat((torch.ones_like(cos_sin[:, :8]), torch.zeros_like(cos_sin[:, :8])), 1)
        super().rope_store(layer, qkv, still, *rest)


def test_operations_that_fail_the_probe_give_way_to_torchs() -> None:
    model = loaded("llama").model

    def load(kernels: str, weight: Tensor) -> Any:
        return _Forgetful() if kernels == "triton" else TorchOperations()

    broken = build(model, load)
    assert broken is not None
    with pytest.warns(RuntimeWarning, match="fused triton operations do not give"):
        found = broken.decoder("triton")
    assert found is not None and found.operations.name == "torch"
    assert build(model, lambda kernels, weight: _Forgetful()) is None


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        YARN,
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_angles_are_those_of_the_rotary_module(rope: dict[str, Any]) -> None:
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding

    config = LlamaConfig(**SIZES, rope_parameters={"rope_theta": 10000.0, **rope})
    rotary = LlamaRotaryEmbedding(config)
    positions = torch.tensor([0, 1, 63, 64, 511, 3])
    like = torch.empty(6, 48)
    cos, sin = rotary(like[None], position_ids=positions[None])
    angles = Angles(rotary, 16).cos_sin(positions, like, Buffers(torch.float32, like.device))
    assert torch.equal(angles, torch.cat((cos[0, :, :8], sin[0, :, :8]), dim=1))


@pytest.mark.parametrize("kernels", ["reference", "cpu", "triton"])
def test_buffers_stay_where_they_are(kernels: str) -> None:
    reserved = decoder("llama", kernels)
    with torch.inference_mode():
        reserved.reserve(20, 3)
        before, num_bytes = reserved.buffers.addresses(), reserved.buffers.num_bytes
        for lens in ([1, 1], [10, 5, 5], [20], [1], [7, 2]):
            reserved(*batch_of(lens), step_of(lens, torch.float32))
    assert reserved.buffers.addresses() == before
    assert reserved.buffers.num_bytes == num_bytes
    assert {"hidden", "query", "attended", "cos_sin"} <= set(before)
    with torch.inference_mode():
        reserved(*batch_of([21]), step_of([21], torch.float32))
    assert reserved.buffers.addresses()["hidden"] != before["hidden"]


def test_decoders_of_a_model_share_no_buffer() -> None:
    one, other = decoder("llama", "cpu"), decoder("llama", "cpu")
    with torch.inference_mode():
        logits = one(*batch_of([3]), step_of([3], torch.float32))
        kept = logits.clone()
        other(*batch_of([5]), step_of([5], torch.float32))
    assert torch.equal(logits, kept)
    assert not set(one.buffers.addresses().values()) & set(other.buffers.addresses().values())


def test_an_executor_on_triton_kernels_gives_the_tokens_of_the_reference() -> None:
    prompts = [[5, 60, 7, 20, 9], [11, 3]]
    outputs = []
    for kernels in ("triton", "cpu", "reference"):
        executor = TorchExecutor(
            loaded("qwen3"),
            num_pages=16,
            page_size=4,
            max_seqs=2,
            max_len=16,
            kernels=kernels,
            poison=True,
        )
        assert executor.runner.lean is not None
        assert executor.runner.lean.operations.name == operations_of(kernels)
        outputs.append(drive(executor, prompts, 4, num_pages=16, page_size=4))
        executor.close()
    assert outputs[0] == outputs[1] == outputs[2]
