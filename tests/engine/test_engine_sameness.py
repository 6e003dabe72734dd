"""Decisions depend on the config and the requests, not on the device."""

from __future__ import annotations

from typing import Any

import pytest
from simulated_run import ALLOCATORS, RecordingExecutor, Setup, SimulatedRun, random_requests

from allocators.base import KVCacheAllocator
from harness.engine.executor import Executor
from harness.engine.plan import StepOutcome, StepPlan
from harness.engine.simulated_executor import SimulatedExecutor

WATCHED = ("allocate", "append", "fork", "commit", "truncate", "free")


class PlanLog:
    """An executor that keeps the plans which another carries out."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.plans: list[StepPlan] = []

    def execute(self, plan: StepPlan) -> StepOutcome:
        self.plans.append(plan)
        return self.inner.execute(plan)

    def close(self) -> None:
        return None


def log_calls(allocator: KVCacheAllocator) -> list[tuple[Any, ...]]:
    """Every call of the contract that changes something, with its arguments and its answer."""
    calls: list[tuple[Any, ...]] = []

    def watch(name: str) -> None:
        call = getattr(allocator, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            frozen = tuple(tuple(arg) if isinstance(arg, list) else arg for arg in args)
            calls.append((name, frozen, tuple(kwargs.items())))
            answer = call(*args, **kwargs)
            calls.append((name, answer))
            return answer

        setattr(allocator, name, watched)

    for name in WATCHED:
        watch(name)
    return calls


def decisions(setup: Setup, executor: Executor, seed: int) -> tuple[list[Any], list[StepPlan]]:
    log = PlanLog(executor)
    run = SimulatedRun(setup, log)
    calls = log_calls(run.inner)
    run.run(random_requests(seed, shared_len=13, num_requests=25, max_output=40))
    assert sum(step.num_preempted for step in run.recorder.sink.steps) or setup.expected != "none"
    return calls, log.plans


@pytest.mark.parametrize("expected", ["none", "oracle"])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("allocator", "options"), ALLOCATORS)
def test_durations_and_chosen_tokens_change_no_decision(
    allocator: str, options: dict[str, Any], seed: int, expected: Any
) -> None:
    setup = Setup(allocator, options, num_pages=24, expected=expected)
    simulated = decisions(setup, SimulatedExecutor(0.01), seed)
    for executor_seed in (1, 2):
        assert decisions(setup, RecordingExecutor(executor_seed), seed) == simulated


def test_a_run_can_be_repeated() -> None:
    setup = Setup("paged_prefix", num_pages=24)
    first, again = (
        SimulatedRun(setup).run(random_requests(5, shared_len=9, spread_s=20)) for _ in range(2)
    )
    assert first.recorder.sink.entries == again.recorder.sink.entries
    assert [step._replace(allocator_us=0, host_us=0) for step in first.recorder.sink.steps] == [
        step._replace(allocator_us=0, host_us=0) for step in again.recorder.sink.steps
    ]
