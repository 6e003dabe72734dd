"""How many kernels the lean forward pass launches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lean_models import batch_of, decoder, step_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.engine.device.lean.operations import FusedOperations
from kernels import triton_layer


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


class _CountedOperations(FusedOperations):
    def __init__(self, counter: _Counter) -> None:
        super().__init__("triton", triton_layer)
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
