"""What a run decided, step by step, as digests: the calls that its allocators got, with their
answers, and the plans."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from allocators.base import KVCacheAllocator
from harness.engine.executor import Executor, late, works_apart
from harness.engine.plan import Chunk, StepOutcome, StepPlan

OPERATIONS = (
    "allocate", "allocate_from", "append", "fork", "rebranch", "commit", "truncate", "release",
    "swap_out", "swap_in", "retract", "retract_swap_in", "discard_swapped", "free",
)  # fmt: skip
"""Methods of the allocator contract that change something."""


class Decisions:
    """digests: one of each step, of what was decided since the step before. num_calls: of
    allocators, in all."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.num_calls = 0
        self._open = hashlib.sha256()

    def watch(self, allocator: KVCacheAllocator) -> None:
        """Take its operations into account from now on."""
        for name in OPERATIONS:
            setattr(allocator, name, self._watched(name, getattr(allocator, name)))

    def end_step(self, plan: StepPlan) -> None:
        """`plan` is what this step came to."""
        self._note(plan._replace(chunks=tuple(_decided(chunk) for chunk in plan.chunks)))
        self.digests.append(self._open.hexdigest()[:16])

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.num_calls += 1
            self._note((name, args, kwargs))
            answer = call(*args, **kwargs)
            self._note(answer)
            return answer

        return watched

    def _note(self, what: object) -> None:
        self._open.update(repr(what).encode())


def _decided(chunk: Chunk) -> Chunk:
    """`chunk` without the token that the step before it drew: the log has it, and a run that is
    a step ahead does not know it yet."""
    follows_draw = chunk.output_position and not chunk.num_drafts
    return chunk._replace(token_ids=chunk.token_ids[:-1]) if follows_draw else chunk


class DecidedExecutor:
    """Passes plans on and closes a step of `decisions` with each."""

    def __init__(self, inner: Executor, decisions: Decisions) -> None:
        self._inner = late(inner)
        self._decisions = decisions

    @property
    def works_apart(self) -> bool:
        return works_apart(self._inner)

    def execute(self, plan: StepPlan) -> StepOutcome:
        return self.result(self.submit(plan))

    def submit(self, plan: StepPlan) -> Any:
        self._decisions.end_step(plan)
        return self._inner.submit(plan)

    def result(self, pending: Any) -> StepOutcome:
        return self._inner.result(pending)

    def close(self) -> None:
        self._inner.close()
