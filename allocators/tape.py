"""An engine that drives an allocator over a token tape.

Every operation does what a real engine would do with the answer (apply copies, update its own
copy of the block table, write by slot) and then checks the contract of `allocators.base`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn, TypeVar

from allocators.base import NULL_PAGE, UNCHANGED, Allocation, KVCacheAllocator
from allocators.token_tape import EMPTY, Tape

T = TypeVar("T")


class ContractViolationError(AssertionError):
    """What an allocator did that the contract forbids."""


class TapeSequence:
    """The engine's view of a sequence: its tokens, the KV id that each is to get, how many are
    computed, its block table."""

    def __init__(
        self, token_ids: Sequence[int], kv_ids: Sequence[int], max_len: int, expected_len: int
    ) -> None:
        self.token_ids = list(token_ids)
        self.kv_ids = list(kv_ids)
        self.max_len = max_len
        self.expected_len = expected_len
        self.num_computed = 0
        self.num_released = 0
        self.table: list[int] = []

    def copy(self, max_len: int, expected_len: int) -> TapeSequence:
        """A branch with the same tokens; its table is not known yet."""
        other = TapeSequence(self.token_ids, self.kv_ids, max_len, expected_len)
        other.num_computed = self.num_computed
        other.num_released = self.num_released
        return other


class TapeEngine:
    """Drives one allocator; each method is an engine's action and raises
    ContractViolationError when the allocator breaks the contract.

    Methods that ask for room return whether it was granted. `log` tells what happened.

    num_withheld: free pages that another user of the pool holds during the next requests, as
        another layer group may. Such a refusal is as good as any: nothing has changed.
    """

    def __init__(self, allocator: KVCacheAllocator) -> None:
        self.num_withheld = 0
        self.allocator = allocator
        self.page_size = allocator.page_size
        self.num_pages = allocator.pool.num_pages
        self.tape = Tape(self.num_pages, self.page_size)
        self.live: dict[int, TapeSequence] = {}
        self.swapped: dict[int, tuple[TapeSequence, int, list[int]]] = {}
        self.log: list[str] = []
        self._refused: Callable[[], Allocation | None] | None = None

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int = 0,
        keep_free: int = 0,
    ) -> bool:
        """Admit a sequence; nothing of it is computed but what the allocator says is cached."""
        allocator = self.allocator
        outcome = self._ask_for_all(seq_id, token_ids, max_len, expected_len, keep_free)
        if outcome is None:
            needed = allocator.pages_for(max(len(token_ids), min(expected_len, max_len)))
            starved = self.live or self.num_withheld
            if not starved and needed + keep_free <= allocator.max_sequence_pages:
                self._fail(f"refused {needed} pages although no sequence holds any")
            return False
        sequence = self.live[seq_id] = TapeSequence(
            token_ids, self.tape.kv_ids(EMPTY, token_ids), max_len, expected_len
        )
        if not 0 <= outcome.num_cached_tokens < len(token_ids):
            self._fail(
                f"num_cached_tokens={outcome.num_cached_tokens} of {len(token_ids)}: the last "
                "token at least is to be computed"
            )
        sequence.num_computed = outcome.num_cached_tokens
        self._apply(outcome)
        self._update_table(seq_id, 0)
        usage = allocator.usage()
        if allocator.grows_on_demand and usage.free + usage.cached < keep_free:
            self._fail(f"keep_free={keep_free}, but only {usage} is left")
        self.check()
        return True

    def allocate_and_retract(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int = 0,
        keep_free: int = 0,
    ) -> bool:
        """Admit a sequence and undo that at once: no copy of it is carried out."""
        if self._ask_for_all(seq_id, token_ids, max_len, expected_len, keep_free) is None:
            return False
        self._refused = None
        self.log.append(f"retract({seq_id})  # its copies are not carried out")
        self._call(lambda: self.allocator.retract(seq_id))
        self.check()
        return True

    def append(self, seq_id: int, token_ids: Sequence[int]) -> bool:
        """Make room for these next tokens."""
        self.log.append(f"append({seq_id}, {len(token_ids)})  # for {list(token_ids)}")
        outcome = self._ask(lambda: self.allocator.append(seq_id, len(token_ids)))
        if outcome is None:
            return False
        sequence = self.live[seq_id]
        first = outcome.first_changed
        if first is None:  # entries before the one that is written next are as they were
            first = 0 if outcome.copies else len(sequence.token_ids) // self.page_size
        sequence.kv_ids += self.tape.kv_ids(sequence.kv_ids[-1], token_ids)
        sequence.token_ids += token_ids
        self._apply(outcome)
        self._update_table(seq_id, first)
        self.check()
        return True

    def compute(self, seq_id: int, num_tokens: int) -> None:
        """Write the next tokens' KV, as one step does for all that it runs, then commit them."""
        sequence = self.live[seq_id]
        start = sequence.num_computed
        end = min(len(sequence.token_ids), start + num_tokens)
        token_ids = sequence.token_ids[start:end]
        self.log.append(f"compute positions {start} to {end - 1} of {seq_id}; commit {token_ids}")
        self._write(seq_id, start, sequence.kv_ids[start:end])
        sequence.num_computed = end
        self._refused = None
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
        self._update_table(child_id, 0)
        self.check()
        return True

    def rebranch(self, parents: Mapping[int, int]) -> bool:
        """A beam step: each key goes on from its value; `are_beams` says for which that is."""
        self.log.append(f"rebranch({dict(parents)})")
        before = self.allocator.usage()
        refused, self._refused = self._refused, None
        outcome = self._ask(lambda: self.allocator.rebranch(parents))
        if outcome is None or outcome.first_changed == UNCHANGED.first_changed:
            self._refused = refused
        if outcome is None:
            return False
        after = self.allocator.usage()
        if after.mapped > before.mapped:
            self._fail(f"a beam step of as many sequences took more pages: {before} -> {after}")
        branches = {}
        for child_id, parent_id in parents.items():
            child, parent = self.live[child_id], self.live[parent_id]
            branches[child_id] = parent.copy(child.max_len, child.expected_len)
            branches[child_id].table = child.table
            branches[child_id].num_released = max(child.num_released, parent.num_released)
        self.live.update(branches)
        self._apply(outcome)
        for child_id in parents:
            self._update_table(child_id, outcome.first_changed or 0)
        self.check()
        return True

    def truncate(self, seq_id: int, new_len: int) -> None:
        """Reject the tokens from `new_len` on."""
        self.log.append(f"truncate({seq_id}, {new_len})")
        self._refused = None
        self._call(lambda: self.allocator.truncate(seq_id, new_len))
        sequence = self.live[seq_id]
        del sequence.token_ids[new_len:], sequence.kv_ids[new_len:]
        sequence.num_computed = min(sequence.num_computed, new_len)
        self.check()

    def release(self, seq_id: int, upto: int) -> None:
        """Never read the first `upto` tokens again."""
        self.log.append(f"release({seq_id}, {upto})")
        self._refused = None
        self._call(lambda: self.allocator.release(seq_id, upto))
        sequence = self.live[seq_id]
        sequence.num_released = max(sequence.num_released, upto)
        self.check()

    def swap_out(self, seq_ids: Sequence[int]) -> bool:
        """Save what the sequences hold, then give their pages up."""
        self.log.append(f"swap_out({list(seq_ids)})")
        self._refused = None
        saved = {seq_id: self._save(self.live[seq_id]) for seq_id in seq_ids}
        if self._ask(lambda: self.allocator.swap_out(seq_ids)) is None:
            return False
        for seq_id in seq_ids:
            self.swapped[seq_id] = (self.live.pop(seq_id), *saved[seq_id])
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
            self.live[seq_id], first, kv_ids = self.swapped.pop(seq_id)
            self._update_table(seq_id, 0)
            self._write(seq_id, first, kv_ids)
        self.check()
        return True

    def swap_in_and_retract(self, seq_ids: Sequence[int]) -> bool:
        """Get room again and give it up at once: nothing is written back."""
        self.log.append(f"swap_in({list(seq_ids)})")
        if self._ask(lambda: self.allocator.swap_in(seq_ids)) is None:
            return False
        self._refused = None
        self.log.append(f"retract_swap_in({list(seq_ids)})  # nothing was written back")
        self._call(lambda: self.allocator.retract_swap_in(seq_ids))
        self.check()
        return True

    def discard_swapped(self, seq_id: int) -> None:
        """Abort a swapped-out sequence."""
        self.log.append(f"discard_swapped({seq_id})")
        self._refused = None
        self._call(lambda: self.allocator.discard_swapped(seq_id))
        del self.swapped[seq_id]
        self.check()

    def free(self, seq_id: int) -> None:
        """End a sequence."""
        self.log.append(f"free({seq_id})")
        self._refused = None
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

    def are_beams(self, seq_ids: Iterable[int]) -> bool:
        """Whether these live sequences are as alike as those of one beam step: equally long, and
        nobody has released what another one would still write."""
        sequences = [self.live[seq_id] for seq_id in seq_ids]
        first = min(sequence.num_computed for sequence in sequences)
        return len({len(sequence.token_ids) for sequence in sequences}) == 1 and all(
            sequence.num_released <= first for sequence in sequences
        )

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
        """Every position that is computed and may still be read holds its KV."""
        start, end = sequence.num_released, sequence.num_computed
        wanted = sequence.kv_ids[start:end]
        found = self.tape.read(sequence.table, start, end)
        if found == wanted:
            return
        position = next(i for i, kv_id in enumerate(wanted, start) if found[i - start] != kv_id)
        self._fail(
            f"position {position} of {seq_id} (page {sequence.table[position // self.page_size]}) "
            f"should hold the KV after tokens {self.tape.tokens(wanted[position - start])}, it "
            f"holds that after {self.tape.tokens(found[position - start]) or 'nothing'}"
        )

    def _write(self, seq_id: int, start: int, kv_ids: Sequence[int]) -> None:
        sequence = self.live[seq_id]
        first, last = start // self.page_size, (start + len(kv_ids) - 1) // self.page_size
        for index in range(first, last + 1):
            if not 0 <= sequence.table[index] < self.num_pages:
                self._fail(f"entry {index} of {sequence.table} of {seq_id} is to be written")
        self.tape.write(sequence.table, start, kv_ids)

    def _save(self, sequence: TapeSequence) -> tuple[int, list[int]]:
        """The first position of the pages that are not released as a whole, and all KV ids
        computed from there on."""
        first = sequence.num_released // self.page_size * self.page_size
        return first, self.tape.read(sequence.table, first, sequence.num_computed)

    def _table(self, seq_id: int) -> list[int]:
        return list(self._call(lambda: self.allocator.block_table(seq_id)))

    def _update_table(self, seq_id: int, first_changed: int) -> None:
        sequence = self.live[seq_id]
        sequence.table = sequence.table[:first_changed] + self._table(seq_id)[first_changed:]
        if len(sequence.table) < self.allocator.pages_for(len(sequence.token_ids)):
            self._fail(f"first_changed={first_changed} hides new pages of {seq_id}")

    def _apply(self, outcome: Allocation) -> None:
        """Run the copies: all sources are read before any destination is written."""
        if outcome.copies:
            self.log.append("    " + ", ".join(f"copy {a} -> {b}" for a, b in outcome.copies))
            self.tape.copy(outcome.copies)

    def _ask_for_all(
        self, seq_id: int, token_ids: Sequence[int], max_len: int, expected_len: int, keep_free: int
    ) -> Allocation | None:
        """Call `allocate`, and remember a refusal that has no other reason than the pool."""
        self.log.append(
            f"allocate({seq_id}, {list(token_ids)}, max_len={max_len}, "
            f"expected_len={expected_len}, keep_free={keep_free})"
        )

        def request() -> Allocation | None:
            return self.allocator.allocate(seq_id, token_ids, max_len, expected_len, keep_free)

        outcome = self._ask(request)
        if outcome is None and not self.num_withheld:
            self._refused = request
        return outcome

    def _ask(self, request: Callable[[], Allocation | None]) -> Allocation | None:
        """Call for room; a refusal must have changed nothing."""
        before = (self.allocator.usage(), {seq_id: self._table(seq_id) for seq_id in self.live})
        outcome = self._call(lambda: self._with_less_room(request))
        if outcome is None:
            self.log[-1] += "  -> None"
            after = (self.allocator.usage(), {seq_id: self._table(seq_id) for seq_id in self.live})
            if after != before:
                self._fail(f"returned None, but changed {before} to {after}")
            self.check()
        self._check_refusal_stands()
        return outcome

    def _check_refusal_stands(self) -> None:
        if self._refused is None or self.num_withheld or not self.allocator.refusals_stand:
            return
        if self._call(self._refused) is not None:
            self._fail(
                "refusals_stand, but an allocate that was refused is granted although nothing was "
                "given back or committed since"
            )

    def _with_less_room(self, request: Callable[[], Allocation | None]) -> Allocation | None:
        pool = self.allocator.pool
        withheld = pool.take(min(self.num_withheld, pool.num_free))
        if not withheld:
            return request()
        self.log[-1] += f"  # {len(withheld)} free pages withheld"
        outcome = request()
        pool.put_back(withheld)
        return outcome

    def _call(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except Exception as error:
            raise ContractViolationError(f"{type(error).__name__}: {error}") from error

    def _fail(self, what: str) -> NoReturn:
        raise ContractViolationError(what)
