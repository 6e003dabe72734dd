"""Operations as data: run them on a new allocator again, and cut a failing run down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from allocators.base import KVCacheAllocator
from allocators.tape import ContractViolationError, TapeEngine

SHRINK_OPERATIONS = 50_000
"""Run again at most to cut a failure down, by tens of thousands a second; counted, not timed, so
that a busy machine tells the same story."""

SHORT_STORY = 300
"""Operations; a longer story is cut by whole sequences first."""

Build = Callable[[], KVCacheAllocator]


class Operation(NamedTuple):
    """A method of TapeEngine and its arguments.

    num_withheld: free pages that another user of the pool holds while this call lasts.
    """

    method: str
    arguments: tuple[object, ...]
    num_withheld: int = 0


Partition = Callable[[Sequence[Operation]], list[set[int]]]
"""Divides operations into parts, given as indices, that are left out together."""

FINISH = Operation("finish", ())
"""End everything and see that every page is back."""


class Failure(NamedTuple):
    """A violation, and the operations that lead to it on a new allocator."""

    message: str
    operations: list[Operation]
    story: list[str]


def perform(engine: TapeEngine, operation: Operation) -> bool:
    """Run one operation; False where it asked for room and was refused. ContractViolationError
    for an answer of the wrong shape as well."""
    engine.num_withheld = operation.num_withheld
    try:
        granted = getattr(engine, operation.method)(*operation.arguments)
    except ContractViolationError:
        raise
    except Exception as error:
        raise ContractViolationError(f"{type(error).__name__}: {error}") from error
    engine.num_withheld = 0
    return granted is not False


def replay(build: Build, operations: Sequence[Operation]) -> Failure | None:
    """Run operations on a new allocator, skipping those that make no sense (any more), and
    end everything; the failure, if there is one."""
    engine = TapeEngine(build())
    done: list[Operation] = []
    try:
        for operation in operations:
            if makes_sense(engine, operation):
                done.append(operation)
                perform(engine, operation)
        perform(engine, FINISH)
    except ContractViolationError as error:
        return Failure(str(error), done, engine.log)
    return None


@dataclass(slots=True)
class _Budget:
    """Operations that may still be run."""

    num_left: int


def shrink(build: Build, failure: Failure) -> Failure:
    """Leave out sequences, then operations, while the story still ends in a violation and no more
    than `SHRINK_OPERATIONS` were run for it. The same failure gives the same story."""
    budget = _Budget(SHRINK_OPERATIONS)
    before = None
    while failure.operations != before:
        before = failure.operations
        orders = _by_sequence, _one_by_one
        for parts_of in orders if len(before) > SHORT_STORY else orders[::-1]:
            size = max(1, len(parts_of(failure.operations)) // 2)
            while size:
                failure = _leave_out(build, failure, parts_of, size, budget)
                size //= 2
    return failure


def _leave_out(
    build: Build, failure: Failure, parts_of: Partition, size: int, budget: _Budget
) -> Failure:
    """Try to do without each `size` parts in turn."""
    start = 0
    while start < len(parts := parts_of(failure.operations)) and budget.num_left > 0:
        dropped = set().union(*parts[start : start + size])
        rest = [op for index, op in enumerate(failure.operations) if index not in dropped]
        budget.num_left -= len(rest)
        shorter = replay(build, rest)
        if shorter is not None and len(shorter.operations) < len(failure.operations):
            failure = shorter
        else:
            start += size
    return failure


def _by_sequence(operations: Sequence[Operation]) -> list[set[int]]:
    """For each sequence, the indices of the operations that it takes part in."""
    parts: dict[int, set[int]] = {}
    for index, operation in enumerate(operations):
        for seq_id in _sequences(operation):
            parts.setdefault(seq_id, set()).add(index)
    return list(parts.values())


def _one_by_one(operations: Sequence[Operation]) -> list[set[int]]:
    return [{index} for index in range(len(operations))]


def _sequences(operation: Operation) -> Iterable[int]:
    first = operation.arguments[0]
    if operation.method == "fork":
        return operation.arguments[:2]  # type: ignore[return-value]
    return [first] if isinstance(first, int) else first  # type: ignore[return-value]


def makes_sense(engine: TapeEngine, operation: Operation) -> bool:
    """Whether an engine in this state could ask for that."""
    method, arguments, _ = operation
    live = engine.live
    first = arguments[0]
    if method in ("allocate", "allocate_and_retract"):
        return first not in live and first not in engine.swapped
    if method == "discard_swapped":
        return first in engine.swapped
    if method in ("swap_in", "swap_in_and_retract"):
        return all(seq_id in engine.swapped for seq_id in first)  # type: ignore[attr-defined]
    if method == "swap_out":
        return all(seq_id in live for seq_id in first)  # type: ignore[attr-defined]
    if method == "rebranch":
        assert isinstance(first, dict)
        return {*first, *first.values()} <= live.keys() and engine.are_beams(first)
    if first not in live:
        return False
    assert isinstance(first, int)
    sequence = live[first]
    size = arguments[1] if len(arguments) > 1 else 0
    if method == "append":
        assert isinstance(size, list)
        return len(sequence.token_ids) + len(size) <= sequence.max_len
    if method == "fork":
        return size not in live and size not in engine.swapped
    assert isinstance(size, int)
    if method == "truncate":
        return max(1, sequence.num_released) <= size <= len(sequence.token_ids)
    if method == "release":
        return size <= sequence.num_computed
    return True
