"""Declared prefixes that stay in memory for the requests to come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from allocators.base import Allocation, KVCacheAllocator
from harness.engine.memory_events import Extent
from harness.engine.plan import TableUpdate
from harness.engine.request import Request
from harness.engine.scheduling import sequence


class HeldPrefix(NamedTuple):
    """Live memory that never runs: for the ledger."""

    extent: Extent
    tables: tuple[TableUpdate, ...]


class HeldPrefixes:
    """One sequence a prefix, forked from the first request that computed it and cut to length.

    It never runs; later requests of the same `shared_prefix_id` fork it instead of computing
    the prefix again. Holders have ids of their own, below 0.
    """

    def __init__(self, allocator: KVCacheAllocator) -> None:
        self._allocator = allocator
        self._holders: dict[int, int] = {}
        self._new: list[HeldPrefix] = []
        self._next_id = -1

    def serves(self, request: Request) -> bool:
        """Whether the request can start from a held prefix; something must follow it."""
        return request.shared_prefix_id in self._holders and request.shared_prefix_len < len(
            request.prompt_ids
        )

    def fork(
        self,
        request: Request,
        seq_id: int,
        token_ids: Sequence[int],
        expected_len: int,
        keep_free: int,
    ) -> Allocation | None:
        """Room for `token_ids` of a request that is served, on top of its prefix; None when
        there is none."""
        allocator = self._allocator
        holder_id = self._holders[request.shared_prefix_id]
        forked = allocator.fork(holder_id, seq_id, request.max_len, expected_len)
        if forked is None:
            return None
        grown = allocator.append(seq_id, len(token_ids) - request.shared_prefix_len)
        usage = allocator.usage()
        if grown is None or usage.free + usage.cached < keep_free:
            allocator.retract(seq_id)
            return None
        return Allocation(request.shared_prefix_len, forked.copies + grown.copies, 0)

    def hold(self, source: sequence.Sequence) -> None:
        """Keep the sequence's declared prefix, once it is computed and if it costs no copy."""
        request = source.group.request
        prefix_len = request.shared_prefix_len
        if (
            request.shared_prefix_id < 0
            or request.shared_prefix_id in self._holders
            or not 0 < prefix_len <= source.num_computed_tokens
            or any(g.sequences[source.seq_id].num_released for g in self._allocator.layer_groups)
        ):
            return
        holder_id = self._next_id
        allocation = self._allocator.fork(source.seq_id, holder_id, prefix_len, 0)
        if allocation is None:
            return
        if allocation.copies:
            self._allocator.retract(holder_id)
            return
        self._allocator.truncate(holder_id, prefix_len)
        self._next_id -= 1
        self._holders[request.shared_prefix_id] = holder_id
        tables = tuple(
            TableUpdate(holder_id, 0, tuple(group.block_table(holder_id)), index)
            for index, group in enumerate(self._allocator.layer_groups)
        )
        extent = Extent(holder_id, prefix_len, prefix_len, prefix_len)
        self._new.append(HeldPrefix(extent, tables))

    def drop(self, users: Iterable[Request]) -> int | None:
        """Free the prefix held for longest that none of `users` declares; its holder's id."""
        if not self._holders:
            return None
        in_use = {user.shared_prefix_id for user in users}
        for prefix_id, holder_id in self._holders.items():
            if prefix_id not in in_use:
                del self._holders[prefix_id]
                self._allocator.free(holder_id)
                return holder_id
        return None

    def take_new(self) -> list[HeldPrefix]:
        """Prefixes held since the last call."""
        new, self._new = self._new, []
        return new
