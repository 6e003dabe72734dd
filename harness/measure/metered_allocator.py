"""An allocator with a stopwatch: the host time a strategy costs, by its own calls alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter_ns

from allocators.base import Allocation, KVCacheAllocator, Usage


class MeteredAllocator(KVCacheAllocator):
    """Passes every call on to `inner` and adds up the time spent there."""

    name = "metered"

    def __init__(self, inner: KVCacheAllocator) -> None:
        super().__init__(inner.pool)
        self.sequences = inner.sequences
        self.inner = inner
        self._own_ns = 0
        parts = inner.layer_groups
        self._layer_groups = (
            (self,) if len(parts) == 1 else tuple(MeteredAllocator(part) for part in parts)
        )

    @property
    def host_ns(self) -> int:
        """Time spent in the strategy so far."""
        groups = self._layer_groups
        return self._own_ns + (sum(g._own_ns for g in groups) if len(groups) > 1 else 0)

    @property
    def layer_groups(self) -> tuple[KVCacheAllocator, ...]:
        return self._layer_groups

    @property
    def commits(self) -> bool:
        return self.inner.commits

    @property
    def grows_on_demand(self) -> bool:  # type: ignore[override]
        return self.inner.grows_on_demand

    @property
    def refusals_stand(self) -> bool:  # type: ignore[override]
        return self.inner.refusals_stand

    @property
    def labelled_options(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.labelled_options

    @property
    def forks_share(self) -> bool:  # type: ignore[override]
        return self.inner.forks_share

    @property
    def shares_declared_prefix(self) -> bool:  # type: ignore[override]
        return self.inner.shares_declared_prefix

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        begin = perf_counter_ns()
        allocation = self.inner.allocate(seq_id, token_ids, max_len, expected_len, keep_free)
        self._own_ns += perf_counter_ns() - begin
        return allocation

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        begin = perf_counter_ns()
        allocation = self.inner.append(seq_id, num_tokens)
        self._own_ns += perf_counter_ns() - begin
        return allocation

    def fork(
        self, parent_id: int, child_id: int, max_len: int, expected_len: int
    ) -> Allocation | None:
        begin = perf_counter_ns()
        allocation = self.inner.fork(parent_id, child_id, max_len, expected_len)
        self._own_ns += perf_counter_ns() - begin
        return allocation

    def commit(self, seq_id: int, token_ids: Sequence[int]) -> None:
        begin = perf_counter_ns()
        self.inner.commit(seq_id, token_ids)
        self._own_ns += perf_counter_ns() - begin

    def truncate(self, seq_id: int, new_len: int) -> None:
        begin = perf_counter_ns()
        self.inner.truncate(seq_id, new_len)
        self._own_ns += perf_counter_ns() - begin

    def rebranch(self, parents: Mapping[int, int]) -> Allocation | None:
        begin = perf_counter_ns()
        allocation = self.inner.rebranch(parents)
        self._own_ns += perf_counter_ns() - begin
        return allocation

    def release(self, seq_id: int, upto: int) -> None:
        begin = perf_counter_ns()
        self.inner.release(seq_id, upto)
        self._own_ns += perf_counter_ns() - begin

    def swap_out(self, seq_ids: Sequence[int]) -> Allocation | None:
        begin = perf_counter_ns()
        allocation = self.inner.swap_out(seq_ids)
        self._own_ns += perf_counter_ns() - begin
        return allocation

    def swap_in(self, seq_ids: Sequence[int]) -> Allocation | None:
        begin = perf_counter_ns()
        allocation = self.inner.swap_in(seq_ids)
        self._own_ns += perf_counter_ns() - begin
        return allocation

    def retract(self, seq_id: int) -> None:
        begin = perf_counter_ns()
        self.inner.retract(seq_id)
        self._own_ns += perf_counter_ns() - begin

    def retract_swap_in(self, seq_ids: Sequence[int]) -> None:
        begin = perf_counter_ns()
        self.inner.retract_swap_in(seq_ids)
        self._own_ns += perf_counter_ns() - begin

    def discard_swapped(self, seq_id: int) -> None:
        begin = perf_counter_ns()
        self.inner.discard_swapped(seq_id)
        self._own_ns += perf_counter_ns() - begin

    def free(self, seq_id: int) -> None:
        begin = perf_counter_ns()
        self.inner.free(seq_id)
        self._own_ns += perf_counter_ns() - begin

    def block_table(self, seq_id: int) -> Sequence[int]:
        return self.inner.block_table(seq_id)

    def usage(self) -> Usage:
        return self.inner.usage()

    def pages_needed(self, token_ids: Sequence[int], expected_len: int) -> int:
        return self.inner.pages_needed(token_ids, expected_len)

    def pages_to_swap_in(self, seq_ids: Sequence[int]) -> int:
        return self.inner.pages_to_swap_in(seq_ids)

    @property
    def max_sequence_pages(self) -> int:
        return self.inner.max_sequence_pages

    def check_integrity(self) -> None:
        self.inner.check_integrity()
