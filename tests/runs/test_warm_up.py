"""What an executor does before its first step, so that no kernel of page copies or swap compiles
in mid-run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.compose import Composer, hydra_session
from harness.engine.device.torch_executor import TorchExecutor
from harness.runs.torch_device import TorchDevice
from harness.runs.warm_up import warm_up_moves
from kernels import triton_cache

NUM_PAGES = 6


def executor_with(*overrides: str, rehearses_graphs: bool = False) -> TorchExecutor:
    common = ("executor=torch", "device=cpu", "tracking=none", "model=tiny")
    with hydra_session():
        config = Composer().run([*common, *overrides])
    device = TorchDevice(config.model, config.device, rehearses_graphs=rehearses_graphs)
    made = device.executor(config, NUM_PAGES, max_len=64)
    assert isinstance(made, TorchExecutor)
    return made


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted then")
@pytest.mark.parametrize("rehearses_graphs", [False, True])
def test_copies_are_warmed_up_with_and_without_staging(
    rehearses_graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = executor_with(
        "attention.backend=triton", "engine.max_num_seqs=2", rehearses_graphs=rehearses_graphs
    )
    launches: list[tuple[bool, int]] = []
    launch = triton_cache._launch_copy

    def counted(
        source: Any, staging: Any, to: Any, pages: Any, staged: int, *args: Any, **kw: Any
    ) -> None:
        assert staging[0].stride(0) == source[0].stride(0) or staged or kw["gather"]
        launches.append((kw["gather"], staged))
        launch(source, staging, to, pages, staged, *args, **kw)

    monkeypatch.setattr(triton_cache, "_launch_copy", counted)
    warm_up_moves(executor)
    assert launches == [(False, 0), (True, 0), (False, 2)]


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_swap_is_warmed_up_where_there_is_any(
    preemption: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page that is swapped out comes back as it was."""
    executor = executor_with(f"engine.preemption={preemption}", "attention.backend=reference")
    moved: list[str] = []
    for name in ("save", "restore"):
        move = getattr(executor.host_pool, name)
        monkeypatch.setattr(
            executor.host_pool, name, lambda *a, n=name, f=move: (moved.append(n), f(*a))
        )
    executor.pool.storage.copy_(torch.randn_like(executor.pool.storage))
    before = executor.pool.storage[:, :, : executor.pool.page_size].clone()
    warm_up_moves(executor)
    assert moved == (["save", "restore"] if preemption == "swap" else [])
    assert torch.equal(executor.pool.storage[:, :, : executor.pool.page_size], before)
