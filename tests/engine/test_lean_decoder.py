"""The lean forward pass: its operations, its buffers, its launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from model_driver import drive
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.engine.device.attention import AttentionStep
from harness.engine.device.lean.angles import Angles
from harness.engine.device.lean.buffers import Buffers
from harness.engine.device.lean.build import LeanModel, build
from harness.engine.device.lean.decoder import LeanDecoder
from harness.engine.device.lean.operations import TorchOperations, TritonOperations
from harness.engine.device.model_shape import ModelConfig
from harness.engine.device.models import LoadedModel, load_model
from harness.engine.device.torch_executor import TorchExecutor
from kernels import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCAB = 96
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 9},
    "llama yarn": {"rope_parameters": _YARN},
}


@cache
def loaded(family: str, dtype: str = "float32") -> LoadedModel:
    config = ModelConfig(
        name=family,
        family=family.split()[0],
        config={**_SIZES, **FAMILIES[family]},
        initializer_range=0.2,
        dtype=dtype,
    )
    model = load_model(config, DEVICE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # biases and norms start at 0 and 1, where their misuse would not show
        for parameter in model.model.parameters():
            if parameter.dim() == 1:
                noise = 0.2 * torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter))
    return model


def lean(family: str, dtype: str = "float32") -> LeanModel:
    found = loaded(family, dtype).lean
    assert found is not None
    return found


def decoder(family: str, kernels: str, dtype: str = "float32") -> LeanDecoder:
    found = lean(family, dtype).decoder(kernels)
    assert found is not None and found.operations.name == kernels
    return found


def step_of(num_tokens: list[int], dtype: torch.dtype, page_size: int = 4) -> AttentionStep:
    """New sequences of so many tokens, on pages of a poisoned pool; reference attention."""
    lens = torch.tensor(num_tokens, dtype=torch.int32)
    pages_each = [-(-n // page_size) for n in num_tokens]
    table = torch.zeros(len(num_tokens), max(pages_each), dtype=torch.int32)
    slots, first = [], 0
    for row, (count, pages) in enumerate(zip(num_tokens, pages_each, strict=True)):
        table[row, :pages] = torch.arange(first, first + pages)
        slots.append(first * page_size + torch.arange(count))
        first += pages
    size = (first * page_size, _SIZES["num_key_value_heads"], _SIZES["head_dim"])
    caches = [
        (torch.full(size, torch.nan, dtype=dtype), torch.full(size, torch.nan, dtype=dtype))
        for _ in range(2)
    ]
    bounds = torch.tensor([0, *num_tokens], dtype=torch.int32).cumsum(0).int()
    return AttentionStep(
        reference,  # type: ignore[arg-type]
        [(key.to(DEVICE), value.to(DEVICE)) for key, value in caches],
        (0, 0),
        page_size,
        bounds.to(DEVICE),
        lens.to(DEVICE),
        (torch.cat(slots).to(DEVICE),),
        (table.to(DEVICE),),
    )


def batch_of(num_tokens: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, positions and the last row of each sequence."""
    generator = torch.Generator().manual_seed(sum(num_tokens))
    ids = torch.randint(VOCAB, (sum(num_tokens),), generator=generator)
    positions = torch.cat([torch.arange(n) for n in num_tokens])
    rows = torch.tensor(num_tokens).cumsum(0) - 1
    return ids.to(DEVICE), positions.to(DEVICE), rows.to(DEVICE)


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
        for kernels in ("torch", "triton"):
            step = step_of(lens, torch_dtype)
            logits = decoder(family, kernels, dtype)(ids, positions, rows, step)
            limits = _LIMITS[dtype]
            torch.testing.assert_close(logits, own.logits[0], **limits)
            for ours, theirs in zip(step.caches, own_step.caches, strict=True):
                torch.testing.assert_close(ours, theirs, equal_nan=True, **limits)


class _Forgetful(TritonOperations):
    """Leaves the keys unrotated."""

    def rope_store(self, layer: int, qkv: Tensor, cos_sin: Tensor, *rest: Any) -> None:
        still = torch.cat((torch.ones_like(cos_sin[:, :8]), torch.zeros_like(cos_sin[:, :8])), 1)
        super().rope_store(layer, qkv, still, *rest)


def test_operations_that_fail_the_probe_give_way_to_torchs() -> None:
    model = loaded("llama").model

    def load(kernels: str) -> Any:
        return _Forgetful() if kernels == "triton" else TorchOperations()

    broken = build(model, load)
    assert broken is not None
    with pytest.warns(RuntimeWarning, match="fused triton operations do not give"):
        found = broken.decoder("triton")
    assert found is not None and found.operations.name == "torch"
    assert build(model, lambda kernels: _Forgetful()) is None


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        _YARN,
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

    config = LlamaConfig(**_SIZES, rope_parameters={"rope_theta": 10000.0, **rope})
    rotary = LlamaRotaryEmbedding(config)
    positions = torch.tensor([0, 1, 63, 64, 511, 3])
    like = torch.empty(6, 48)
    cos, sin = rotary(like[None], position_ids=positions[None])
    angles = Angles(rotary, 16).cos_sin(positions, like, Buffers(torch.float32, like.device))
    assert torch.equal(angles, torch.cat((cos[0, :, :8], sin[0, :, :8]), dim=1))


class _Counter(TorchDispatchMode):
    """Counts what would be a launch: operations that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []
        self.fresh: list[str] = []
        self._is_on = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [each.alias_info for each in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if self._is_on and not is_view:
            self.launches.append(str(func))
            if not all(alias is not None for alias in aliases):
                self.fresh.append(str(func))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """What happens inside is one launch of a kernel, whatever the interpreter does."""
        self.launches.append(name)
        self._is_on = False
        yield
        self._is_on = True


class _CountedOperations(TritonOperations):
    def __init__(self, counter: _Counter) -> None:
        self._counter = counter

    def add_norm(self, *args: Any) -> Tensor:
        with self._counter.one("add_norm"):
            return super().add_norm(*args)

    def rope_store(self, *args: Any) -> None:
        with self._counter.one("rope_store"):
            super().rope_store(*args)

    def silu_mul(self, *args: Any) -> Tensor:
        with self._counter.one("silu_mul"):
            return super().silu_mul(*args)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_layer_takes_eight_launches_beside_attention(family: str) -> None:
    """In float16, where products go through torch.mm as on a GPU; nothing is allocated."""
    counter = _Counter()
    counted = decoder(family, "triton", "float16")
    counted.operations = _CountedOperations(counter)
    counted.reserve(8, 4)
    counter.launches.clear()
    step = step_of([1, 1, 1], torch.float16)
    arguments = batch_of([1, 1, 1])
    attend = step.read

    def read(*args: Any, **kwargs: Any) -> Tensor:
        with counter.one("attention"):
            return attend(*args, **kwargs)

    layer = ["add_norm", "aten.mm.out", "rope_store", "attention", "aten.mm.out"]
    layer += ["add_norm", "aten.mm.out", "silu_mul", "aten.mm.out"]
    if family == "qwen2":
        layer[1] = "aten.addmm.out"
    once = ["aten.index_select.out", "aten.mul.out", "aten.cos.out", "aten.sin.out"]

    class Step:
        target = step.target

    Step.read = staticmethod(read)  # type: ignore[attr-defined]
    with torch.inference_mode(), counter:
        counted(*arguments, Step())  # type: ignore[arg-type]
    assert counter.launches == [*once, *layer * 2, "add_norm", "aten.mm.out"]
    assert len(layer) - 1 == 8
    assert counter.fresh == []


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_buffers_stay_where_they_are(kernels: str) -> None:
    reserved = decoder("llama", kernels)
    with torch.inference_mode():
        reserved.reserve(20, 3)
        before, num_bytes = reserved.buffers.addresses(), reserved.buffers.num_bytes
        for lens in ([1, 1], [10, 5, 5], [20], [1], [7, 2]):
            reserved(*batch_of(lens), step_of(lens, torch.float32))
    assert reserved.buffers.addresses() == before
    assert reserved.buffers.num_bytes == num_bytes
    assert {"hidden", "normed", "query", "attended", "cos_sin"} <= set(before)
    with torch.inference_mode():
        reserved(*batch_of([21]), step_of([21], torch.float32))
    assert reserved.buffers.addresses()["hidden"] != before["hidden"]


def test_decoders_of_a_model_share_no_buffer() -> None:
    one, other = decoder("llama", "torch"), decoder("llama", "torch")
    with torch.inference_mode():
        logits = one(*batch_of([3]), step_of([3], torch.float32))
        kept = logits.clone()
        other(*batch_of([5]), step_of([5], torch.float32))
    assert torch.equal(logits, kept)
    assert not set(one.buffers.addresses().values()) & set(other.buffers.addresses().values())


def test_an_executor_on_triton_kernels_gives_the_tokens_of_the_reference() -> None:
    prompts = [[5, 60, 7, 20, 9], [11, 3]]
    outputs = []
    for kernels in ("triton", "reference"):
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
        assert executor.runner.lean.operations.name == {"reference": "torch"}.get(kernels, kernels)
        outputs.append(drive(executor, prompts, 4, num_pages=16, page_size=4))
        executor.close()
    assert outputs[0] == outputs[1]
