"""A token tape: a list that plays GPU memory, and an engine that drives an allocator over it.

Every operation does what a real engine would do with the answer (apply copies, update its own
copy of the block table, write by slot) and then checks the contract of `allocators.base`.
What stands at a slot is not a bare token but a *KV id*, one for each different sequence of
tokens up to and including that one, since the KV of a token depends on all before it. So
nothing is ever right by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from allocators.base import NULL_PAGE, Allocation, KVCacheAllocator

T = TypeVar("T")

EMPTY = -1
"""KV id of a slot that was never written."""


class ContractViolationError(AssertionError):
    """What an allocator did that the contract forbids."""


class TapeSequence:
    """The engine's view of a sequence: its tokens, how many are computed, its block table."""

    def __init__(self, token_ids: Sequence[int], max_len: int, expected_len: int) -> None:
        self.token_ids = list(token_ids)
        self.max_len = max_len
        self.expected_len = expected_len
        self.num_computed = 0
        self.num_released = 0
        self.table: list[int] = []

    def copy(self, max_len: int, expected_len: int) -> TapeSequence:
        """A branch with the same tokens; its table is not known yet."""
        other = TapeSequence(self.token_ids, max_len, expected_len)
        other.num_computed = self.num_computed
        other.num_released = self.num_released
        return other


class TapeEngine:
    """Drives one allocator; each method is an engine's action and raises
    ContractViolationError when the allocator breaks the contract.

    Methods that ask for room return whether it was granted. `log` tells what happened.
    """

    def __init__(self, allocator: KVCacheAllocator) -> None:
        self.allocator = allocator
        self.page_size = allocator.page_size
        self.num_pages = allocator.pool.num_pages
        self.tape = [EMPTY] * (self.num_pages * self.page_size)
        self.live: dict[int, TapeSequence] = {}
        self.swapped: dict[int, tuple[TapeSequence, dict[int, int]]] = {}
        self.log: list[str] = []
        self._kv_ids: dict[tuple[int, int], int] = {}
        self._kv_tokens: list[tuple[int, ...]] = []

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int = 0,
        keep_free: int = 0,
    ) -> bool:
        """Admit a sequence; nothing of it is computed but what the allocator says is cached."""
        self.log.append(
            f"allocate({seq_id}, {list(token_ids)}, max_len={max_len}, "
            f"expected_len={expected_len}, keep_free={keep_free})"
        )
        allocator = self.allocator
        outcome = self._ask(
            lambda: allocator.allocate(seq_id, token_ids, max_len, expected_len, keep_free)
        )
        if outcome is None:
            needed = allocator.pages_for(max(len(token_ids), min(expected_len, max_len)))
            if not self.live and needed + keep_free <= allocator.max_sequence_pages:
                self._fail(f"refused {needed} pages although no sequence holds any")
            return False
        sequence = self.live[seq_id] = TapeSequence(token_ids, max_len, expected_len)
        if not 0 <= outcome.num_cached_tokens < len(token_ids):
            self._fail(
                f"num_cached_tokens={outcome.num_cached_tokens} of {len(token_ids)}: the last "
                "token at least is to be computed"
            )
        sequence.num_computed = outcome.num_cached_tokens
        self._apply(outcome)
        self._update_table(seq_id, outcome.first_changed)
        usage = allocator.usage()
        if allocator.grows_on_demand and usage.free + usage.cached < keep_free:
            self._fail(f"keep_free={keep_free}, but only {usage} is left")
        self.check()
        return True

    def append(self, seq_id: int, token_ids: Sequence[int]) -> bool:
        """Make room for these next tokens."""
        self.log.append(f"append({seq_id}, {len(token_ids)})  # for {list(token_ids)}")
        outcome = self._ask(lambda: self.allocator.append(seq_id, len(token_ids)))
        if outcome is None:
            return False
        self.live[seq_id].token_ids += token_ids
        self._apply(outcome)
        self._update_table(seq_id, outcome.first_changed)
        self.check()
        return True

    def compute(self, seq_id: int, num_tokens: int) -> None:
        """Write the next tokens' KV, as one step does for all that it runs, then commit them."""
        sequence = self.live[seq_id]
        start = sequence.num_computed
        end = min(len(sequence.token_ids), start + num_tokens)
        token_ids = sequence.token_ids[start:end]
        self.log.append(f"compute positions {start} to {end - 1} of {seq_id}; commit {token_ids}")
        kv_ids = self._kv_of(sequence.token_ids[:end])
        for position in range(start, end):
            self.tape[self._slot(sequence, position)] = kv_ids[position]
        sequence.num_computed = end
        self._call(lambda: self.allocator.commit(seq_id, token_ids))
        self.check()

    def fork(self, parent_id: int, child_id: int, max_len: int, expected_len: int = 0) -> bool:
        """Branch a sequence."""
        self.log.append(f"fork({parent_id}, {child_id}, {max_len}, {expected_len})")
        outcome = self._ask(lambda: self.allocator.fork(parent_id, child_id, max_len, expected_len))
        if outcome is None:
            return False
        self.live[child_id] = self.live[parent_id].copy(max_len, expected_len)
        self._apply(outcome)
        self._update_table(child_id, outcome.first_changed)
        self.check()
        return True

    def rebranch(self, parents: Mapping[int, int]) -> bool:
        """A beam step: each key goes on from its value."""
        self.log.append(f"rebranch({dict(parents)})")
        before = self.allocator.usage()
        outcome = self._ask(lambda: self.allocator.rebranch(parents))
        if outcome is None:
            return False
        after = self.allocator.usage()
        if after.mapped > before.mapped:
            self._fail(f"a beam step of as many sequences took more pages: {before} -> {after}")
        branches = {}
        for child_id, parent_id in parents.items():
            child, parent = self.live[child_id], self.live[parent_id]
            branches[child_id] = parent.copy(child.max_len, child.expected_len)
            branches[child_id].num_released = max(child.num_released, parent.num_released)
        self.live.update(branches)
        self._apply(outcome)
        for child_id in parents:
            self._update_table(child_id, 0)
        self.check()
        return True

    def truncate(self, seq_id: int, new_len: int) -> None:
        """Reject the tokens from `new_len` on."""
        self.log.append(f"truncate({seq_id}, {new_len})")
        self._call(lambda: self.allocator.truncate(seq_id, new_len))
        sequence = self.live[seq_id]
        del sequence.token_ids[new_len:]
        sequence.num_computed = min(sequence.num_computed, new_len)
        self.check()

    def release(self, seq_id: int, upto: int) -> None:
        """Never read the first `upto` tokens again."""
        self.log.append(f"release({seq_id}, {upto})")
        self._call(lambda: self.allocator.release(seq_id, upto))
        sequence = self.live[seq_id]
        sequence.num_released = max(sequence.num_released, upto)
        self.check()

    def swap_out(self, seq_ids: Sequence[int]) -> bool:
        """Save what the sequences hold, then give their pages up."""
        self.log.append(f"swap_out({list(seq_ids)})")
        saved = {seq_id: self._pages_read(self.live[seq_id]) for seq_id in seq_ids}
        if self._ask(lambda: self.allocator.swap_out(seq_ids)) is None:
            return False
        for seq_id in seq_ids:
            self.swapped[seq_id] = (self.live.pop(seq_id), saved[seq_id])
        self.check()
        return True

    def swap_in(self, seq_ids: Sequence[int]) -> bool:
        """Get room again and write back what was saved."""
        self.log.append(f"swap_in({list(seq_ids)})")
        outcome = self._ask(lambda: self.allocator.swap_in(seq_ids))
        if outcome is None:
            return False
        self._apply(outcome)
        for seq_id in seq_ids:
            sequence, saved = self.swapped.pop(seq_id)
            self.live[seq_id] = sequence
            self._update_table(seq_id, 0)
            for position, kv_id in saved.items():
                self.tape[self._slot(sequence, position)] = kv_id
        self.check()
        return True

    def discard_swapped(self, seq_id: int) -> None:
        """Abort a swapped-out sequence."""
        self.log.append(f"discard_swapped({seq_id})")
        self._call(lambda: self.allocator.discard_swapped(seq_id))
        del self.swapped[seq_id]
        self.check()

    def free(self, seq_id: int) -> None:
        """End a sequence."""
        self.log.append(f"free({seq_id})")
        self._call(lambda: self.allocator.free(seq_id))
        del self.live[seq_id]
        self.check()

    def finish(self) -> None:
        """End everything; then all pages must be there for the taking, one by one."""
        for seq_id in list(self.live):
            self.free(seq_id)
        for seq_id in list(self.swapped):
            self.discard_swapped(seq_id)
        usage = self.allocator.usage()
        if usage.mapped:
            self._fail(f"no sequence is left, yet {usage}")
        count = 0
        token_ids = [-1_000_000] * self.page_size
        while count <= self.num_pages and self.allocate(-count - 1, token_ids, self.page_size):
            token_ids = [token + 1 for token in token_ids]
            count += 1
        if count != self.num_pages:
            self._fail(f"at the end {count} of {self.num_pages} pages could be allocated")
        try:
            self.allocator.append(-count - 2, 1)
        except KeyError:
            pass
        else:
            self._fail("append to an unknown sequence is not a KeyError")

    def check(self) -> None:
        """Reconcile contents, tables, usage and the allocator's own books."""
        mapped: set[int] = set()
        for seq_id, sequence in self.live.items():
            self._check_table(seq_id, sequence)
            self._check_contents(seq_id, sequence)
            mapped.update(page for page in self._table(seq_id) if page != NULL_PAGE)
        usage = self._call(self.allocator.usage)
        if min(usage) < 0 or sum(usage) != self.num_pages:
            self._fail(f"{usage} does not add up to {self.num_pages} pages")
        if usage.mapped != len(mapped):
            self._fail(f"block tables map {len(mapped)} pages, {usage}")
        self._call(self.allocator.check_integrity)

    def _check_table(self, seq_id: int, sequence: TapeSequence) -> None:
        """The engine's table must hold every position and be what the allocator means."""
        table = self._table(seq_id)
        needed = self.allocator.pages_for(len(sequence.token_ids))
        if len(table) < needed:
            self._fail(f"{len(sequence.token_ids)} tokens of {seq_id} do not fit {table}")
        for index in range(sequence.num_released // self.page_size, needed):
            page, seen = table[index], sequence.table[index]
            if not 0 <= page < self.num_pages:
                self._fail(f"block table {table} of {seq_id}: entry {index} is no page")
            if page != seen:
                self._fail(f"block table of {seq_id}: {seen} became {page} at {index} untold")
        own = [page for page in table if page != NULL_PAGE]
        if len(set(own)) < len(own):
            self._fail(f"block table {table} of {seq_id} maps a page twice")

    def _check_contents(self, seq_id: int, sequence: TapeSequence) -> None:
        wanted = self._kv_of(sequence.token_ids[: sequence.num_computed])
        found = self._read(sequence)
        for offset, kv_id in enumerate(found):
            position = sequence.num_released + offset
            if kv_id != wanted[position]:
                what = "nothing" if kv_id == EMPTY else f"{self._kv_tokens[kv_id]}"
                self._fail(
                    f"position {position} of {seq_id} (page "
                    f"{sequence.table[position // self.page_size]}) should hold the KV after "
                    f"tokens {self._kv_tokens[wanted[position]]}, it holds that after {what}"
                )

    def _read(self, sequence: TapeSequence) -> list[int]:
        """KV ids from the first position still read to the last computed one."""
        positions = range(sequence.num_released, sequence.num_computed)
        return [self.tape[self._slot(sequence, position)] for position in positions]

    def _pages_read(self, sequence: TapeSequence) -> dict[int, int]:
        """KV ids by position, in all pages that are not released as a whole."""
        first = sequence.num_released // self.page_size * self.page_size
        positions = range(first, sequence.num_computed)
        return {position: self.tape[self._slot(sequence, position)] for position in positions}

    def _slot(self, sequence: TapeSequence, position: int) -> int:
        index, offset = divmod(position, self.page_size)
        return sequence.table[index] * self.page_size + offset

    def _table(self, seq_id: int) -> list[int]:
        return list(self._call(lambda: self.allocator.block_table(seq_id)))

    def _update_table(self, seq_id: int, first_changed: int) -> None:
        sequence = self.live[seq_id]
        sequence.table = sequence.table[:first_changed] + self._table(seq_id)[first_changed:]
        if len(sequence.table) < self.allocator.pages_for(len(sequence.token_ids)):
            self._fail(f"first_changed={first_changed} hides new pages of {seq_id}")

    def _apply(self, outcome: Allocation) -> None:
        """Run the copies: all sources are read before any destination is written."""
        size = self.page_size
        if outcome.copies:
            self.log.append("    " + ", ".join(f"copy {a} -> {b}" for a, b in outcome.copies))
        contents = [self.tape[a * size : (a + 1) * size] for a, _ in outcome.copies]
        for (_, page), content in zip(outcome.copies, contents, strict=True):
            self.tape[page * size : (page + 1) * size] = content

    def _kv_of(self, token_ids: Sequence[int]) -> list[int]:
        """The KV id at each position."""
        ids = []
        parent = EMPTY
        for index, token in enumerate(token_ids):
            key = (parent, token)
            if key not in self._kv_ids:
                self._kv_ids[key] = len(self._kv_tokens)
                self._kv_tokens.append(tuple(token_ids[: index + 1]))
            parent = self._kv_ids[key]
            ids.append(parent)
        return ids

    def _ask(self, request: Callable[[], Allocation | None]) -> Allocation | None:
        """Call for room; a refusal must have changed nothing."""
        before = (self.allocator.usage(), {seq_id: self._table(seq_id) for seq_id in self.live})
        outcome = self._call(request)
        if outcome is None:
            self.log[-1] += "  -> None"
            after = (self.allocator.usage(), {seq_id: self._table(seq_id) for seq_id in self.live})
            if after != before:
                self._fail(f"returned None, but changed {before} to {after}")
            self.check()
        return outcome

    def _call(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except Exception as error:
            raise ContractViolationError(f"{type(error).__name__}: {error}") from error

    def _fail(self, what: str) -> NoReturn:
        raise ContractViolationError(what)
