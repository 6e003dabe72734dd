"""The border between the engine and a strategy: its answers are checked, its time is taken.

Nothing that a strategy says of itself reaches a decision, a class or a metric unchecked. A check
costs O(block-table entries that changed), so a sequence that grows by a token costs O(1).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from types import ModuleType

from allocators.base import UNCHANGED, Allocation, KVCacheAllocator, Usage
from allocators.layer_groups import LayerGroups
from harness.engine.allocator_call import AllocatorError, Call
from harness.engine.page_book import PageBook
from harness.engine.sequence_book import SequenceBook


class CheckedAllocator(KVCacheAllocator):
    """Passes calls on to `inner`; raises AllocatorError for an answer that breaks the contract and
    for an exception of the strategy's own. `first_changed` of what it returns is exact.

    book: of the pool that `inner` draws from. group: of layers, by its number.
    """

    name = "checked"

    def __init__(self, inner: KVCacheAllocator, book: PageBook, group: int = 0) -> None:
        super().__init__(inner.pool)
        self.sequences = inner.sequences
        self.inner = inner
        self._pages = book
        self._commits = inner.commits
        self._book = SequenceBook(_name(inner), book, root=-1 - group, tracks=self._commits)

    @property
    def commits(self) -> bool:
        return self._commits

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

    @property
    def shares_pool(self) -> bool:  # type: ignore[override]
        return self.inner.shares_pool

    def join(self, first: KVCacheAllocator, index: int) -> None:
        assert isinstance(first, CheckedAllocator)
        self.inner.join(first.inner, index)

    def allocate(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int = 0,
    ) -> Allocation | None:
        call = Call("allocate", (seq_id, token_ids, max_len, expected_len, keep_free))
        given = self._ask(call)
        if given is None:
            return None
        return self._book.allocated(call, seq_id, token_ids, given, self._table(call, seq_id))

    def allocate_from(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        max_len: int,
        expected_len: int,
        keep_free: int,
        num_cached: int,
    ) -> Allocation | None:
        arguments = (seq_id, token_ids, max_len, expected_len, keep_free, num_cached)
        call = Call("allocate_from", arguments)
        given = self._ask(call)
        if given is None:
            return None
        return self._book.allocated(call, seq_id, token_ids, given, self._table(call, seq_id))

    def append(self, seq_id: int, num_tokens: int = 1) -> Allocation | None:
        inner = self.inner
        begin = perf_counter_ns()
        try:  # written out, as it runs for every token
            given = inner.append(seq_id, num_tokens)
            table = inner.block_table(seq_id)
        except Exception as error:
            raise self._own_error(Call("append", (seq_id, num_tokens)), error) from error
        self._pages.host_ns += perf_counter_ns() - begin
        if given is None:
            return None
        if type(given) is Allocation and self._book.needs_no_entry(
            seq_id, num_tokens, given, table
        ):
            return UNCHANGED
        call = Call("append", (seq_id, num_tokens))
        self._check_kind(call, given)
        return self._book.appended(call, seq_id, num_tokens, given, table)

    def fork(
        self, parent_id: int, child_id: int, max_len: int, expected_len: int
    ) -> Allocation | None:
        call = Call("fork", (parent_id, child_id, max_len, expected_len))
        given = self._ask(call)
        if given is None:
            return None
        return self._book.forked(call, parent_id, child_id, given, self._table(call, child_id))

    def rebranch(self, parents: Mapping[int, int]) -> Allocation | None:
        call = Call("rebranch", (dict(parents),))
        given = self._ask(call)
        if given is None:
            return None
        tables = {child_id: self._table(call, child_id) for child_id in parents}
        return self._book.rebranched(call, parents, given, tables)

    def commit(self, seq_id: int, token_ids: Sequence[int]) -> None:
        self._book.committed(seq_id, token_ids)
        begin = perf_counter_ns()
        try:
            self.inner.commit(seq_id, token_ids)
        except Exception as error:
            raise self._own_error(Call("commit", (seq_id, token_ids)), error) from error
        self._pages.host_ns += perf_counter_ns() - begin

    def truncate(self, seq_id: int, new_len: int) -> None:
        call = Call("truncate", (seq_id, new_len))
        self._ask(call)
        self._book.truncated(call, seq_id, new_len, self._table(call, seq_id))

    def release(self, seq_id: int, upto: int) -> None:
        call = Call("release", (seq_id, upto))
        self._ask(call)
        self._book.released(seq_id, upto, self._table(call, seq_id))

    def swap_out(self, seq_ids: Sequence[int]) -> Allocation | None:
        call = Call("swap_out", (list(seq_ids),))
        self._check_told(call, seq_ids)
        given = self._ask(call)
        if given is not None:
            self._book.left(seq_ids, is_saved=True)
        return given

    def swap_in(self, seq_ids: Sequence[int]) -> Allocation | None:
        call = Call("swap_in", (list(seq_ids),))
        given = self._ask(call)
        if given is None:
            return None
        tables = {seq_id: self._table(call, seq_id) for seq_id in seq_ids}
        return self._book.returned(call, given, tables)

    def retract_swap_in(self, seq_ids: Sequence[int]) -> None:
        self._ask(Call("retract_swap_in", (list(seq_ids),)))
        self._book.left(seq_ids, is_saved=False)

    def discard_swapped(self, seq_id: int) -> None:
        self._ask(Call("discard_swapped", (seq_id,)))
        self._book.discarded(seq_id)

    def free(self, seq_id: int) -> None:
        call = Call("free", (seq_id,))
        self._check_told(call, (seq_id,))
        self._ask(call)
        self._book.freed(seq_id)

    def retract(self, seq_id: int) -> None:
        self._ask(Call("retract", (seq_id,)))
        self._book.freed(seq_id, is_retracted=True)

    def block_table(self, seq_id: int) -> Sequence[int]:
        """As last told: what was changed in silence is not in it."""
        return self._book.table(seq_id)

    def usage(self) -> Usage:
        """Checked against the block tables, and against what is computed in unmapped pages: a
        reuse index cannot return more than that."""
        call, book = Call("usage", ()), self._pages
        try:
            usage = mapped, cached, free = self.inner.usage()
        except Exception as error:
            raise self._own_error(call, error) from error
        if min(usage) < 0 or mapped + cached + free != book.num_pages:
            self._book.fail(call, f"returned {usage}: the pool has {book.num_pages} pages")
        if mapped != book.num_mapped:
            self._book.fail(call, f"returned {usage}: block tables map {book.num_mapped} pages")
        if cached > book.num_idle_computed:
            self._book.fail(
                call,
                f"returned {usage}: only {book.num_idle_computed} pages that no block table maps "
                "hold computed KV" + ("" if self._commits else ", as `commit` is not overridden"),
            )
        return usage

    def pages_needed(self, token_ids: Sequence[int], expected_len: int) -> int:
        return self.inner.pages_needed(token_ids, expected_len)

    def pages_needed_from(
        self, token_ids: Sequence[int], expected_len: int, num_cached: int
    ) -> int:
        return self.inner.pages_needed_from(token_ids, expected_len, num_cached)

    def pages_to_append(self, seq_id: int, num_tokens: int) -> int:
        return self.inner.pages_to_append(seq_id, num_tokens)

    def pages_to_fork(self, parent_id: int, max_len: int, expected_len: int) -> int:
        return self.inner.pages_to_fork(parent_id, max_len, expected_len)

    def pages_to_swap_in(self, seq_ids: Sequence[int]) -> int:
        return self.inner.pages_to_swap_in(seq_ids)

    def num_cached(self, token_ids: Sequence[int]) -> int:
        return self.inner.num_cached(token_ids)

    @property
    def max_sequence_pages(self) -> int:
        return self.inner.max_sequence_pages

    def mapped_pages(self) -> set[int]:
        return self.inner.mapped_pages()

    def check_integrity(self) -> None:
        self._check_told(Call("check_integrity", ()), tuple(self.sequences))
        self.inner.check_integrity()

    def _ask(self, call: Call) -> Allocation | None:
        begin = perf_counter_ns()
        try:
            answer = getattr(self.inner, call.name)(*call.arguments)
        except Exception as error:
            raise self._own_error(call, error) from error
        self._pages.host_ns += perf_counter_ns() - begin
        if answer is not None:
            self._check_kind(call, answer)
        return answer  # type: ignore[no-any-return]

    def _own_error(self, call: Call, error: Exception) -> Exception:
        """An AllocatorError for what a strategy raised, so that its OSError is not taken for a full
        disk. A MemoryError stays a MemoryError: the run is out of memory."""
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if isinstance(error, MemoryError):
            return MemoryError(str(error))
        where = _line_in(sys.modules[type(self.inner).__module__], error)
        return AllocatorError(f"allocator {_name(self.inner)}: {call} raised {said}{where}")

    def _check_kind(self, call: Call, answer: object) -> None:
        if not isinstance(answer, Allocation):
            self._book.fail(call, f"returned {answer!r}: neither an Allocation nor None")

    def _check_told(self, call: Call, seq_ids: Sequence[int]) -> None:
        for seq_id in seq_ids:
            self._book.check_told(call, seq_id, self._table(call, seq_id))

    def _table(self, call: Call, seq_id: int) -> list[int]:
        try:
            return list(self.inner.block_table(seq_id))
        except Exception as error:
            raise self._own_error(call, error) from error


def checked(strategies: Sequence[KVCacheAllocator], book: PageBook) -> KVCacheAllocator:
    """The strategies of all groups of layers over one pool, as one that is checked."""
    groups = [CheckedAllocator(each, book, number) for number, each in enumerate(strategies)]
    return groups[0] if len(groups) == 1 else LayerGroups(groups)


def _name(strategy: KVCacheAllocator) -> str:
    """Its class's where the class only inherits a name."""
    own = vars(type(strategy)).get("name")
    return own if isinstance(own, str) and own else type(strategy).__name__


def _line_in(module: ModuleType, error: Exception) -> str:
    """The last line of `module` that `error` came through."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(module, "__file__", None)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f" ({Path(str(file)).name}, line {lines[-1]})" if lines else ""
