"""The engine's own block tables: a strategy's answers are checked as they are entered here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from allocators.base import NULL_PAGE, UNCHANGED, Allocation, PageCopy
from harness.engine.allocator_call import AllocatorError, Call, shown
from harness.engine.held_sequence import HeldSequence, first_difference, leading_nulls
from harness.engine.page_book import PageBook


class SequenceBook:
    """The sequences of one group of layers; each method enters what a call came to.

    strategy: its name, for errors. book: of the pool. root: digest of no tokens, of this group.
    tracks: the strategy is told what is computed, so that it may claim prefix hits.

    Methods raise AllocatorError for an answer that breaks the contract. Where they return an
    Allocation, its `first_changed` is exact.
    """

    def __init__(self, strategy: str, book: PageBook, root: int, *, tracks: bool) -> None:
        self._strategy = strategy
        self._book = book
        self._counts = book.counts
        self._size = book.page_size
        self._root = root
        self._tracks = tracks
        self._held: dict[int, HeldSequence] = {}
        self._left: dict[int, HeldSequence] = {}
        self._num_swaps = 0

    def table(self, seq_id: int) -> list[int]:
        """The block table of a sequence, as last told."""
        return self._held[seq_id].pages

    def allocated(
        self, call: Call, seq_id: int, token_ids: Sequence[int], given: Allocation, table: list[int]
    ) -> Allocation:
        """A new sequence."""
        length, num_cached = len(token_ids), given.num_cached_tokens
        if not 0 <= num_cached < length:
            self.fail(
                call,
                f"returned num_cached_tokens={num_cached}: 0 to {length - 1} are possible, as the "
                "last token of a prompt is always computed",
            )
        self._check_room(call, table, length)
        self._check_pages(call, table)
        num_hits, num_partial = divmod(num_cached, self._size)
        for index in range(num_hits, len(table)):
            self._check_unmapped(call, table[index])
        self._copy(call, given.copies, table)
        digests = [self._root]
        if num_cached:
            self._check_hits(call, token_ids[:num_cached], table, digests)
        for index in range(num_hits + (num_partial > 0), len(table)):
            self._book.forget(table[index])
        held = HeldSequence(table, length, num_cached, digests)
        held.unused = tuple(copy.destination for copy in given.copies)
        self._enter(call, seq_id, held)
        return Allocation(num_cached, given.copies, 0)

    def needs_no_entry(
        self, seq_id: int, num_tokens: int, given: Allocation, table: Sequence[int]
    ) -> bool:
        """Whether an append that changed nothing was entered: the common case."""
        held = self._held[seq_id]
        pages, length, size = held.pages, held.length, self._size
        index = length // size
        if (
            length % size + num_tokens > size
            or not (given is UNCHANGED or given == _SILENCE)
            or index >= len(pages)
            or len(table) != len(pages)
            or table[index] != pages[index]
            or self._counts[pages[index]] > 1
        ):
            return False
        held.length = length + num_tokens
        return True

    def appended(
        self, call: Call, seq_id: int, num_tokens: int, given: Allocation, table: Sequence[int]
    ) -> Allocation:
        """A sequence with room for more tokens."""
        held = self._held[seq_id]
        new_len = held.length + num_tokens
        first, known = held.length // self._size, len(held.pages)
        self._check_room(call, table, new_len)
        said = first if given.first_changed is None else given.first_changed
        if given.copies or said < first or list(table[first:known]) != held.pages[first:]:
            changed = self._moved(call, held, 0 if given.copies else min(said, first), given, table)
        else:
            added = list(table[known:])
            for page in added:
                self._take(call, page)
            held.pages += added
            changed = known if added else sys.maxsize
        self._check_writable(call, seq_id, held, first, new_len)
        held.length = new_len
        if changed == sys.maxsize and not given.copies:
            return UNCHANGED
        return Allocation(0, given.copies, changed)

    def forked(
        self, call: Call, parent_id: int, child_id: int, given: Allocation, table: list[int]
    ) -> Allocation:
        """A new sequence that starts as a copy of another."""
        parent = self._held[parent_id]
        if given.num_cached_tokens != parent.length:
            self.fail(
                call,
                f"returned num_cached_tokens={given.num_cached_tokens}: the parent has "
                f"{parent.length}",
            )
        child = HeldSequence(table, parent.length, parent.num_committed, parent.digests.copy())
        self._check_room(call, table, child.length)
        for index, page in enumerate(table):
            if index >= len(parent.pages) or page != parent.pages[index]:
                self._check_unmapped(call, page)
        self._copy(call, given.copies, table)
        self._check_branch(call, child, parent.pages, given.copies)
        child.unused = tuple(copy.destination for copy in given.copies)
        self._enter(call, child_id, child)
        return Allocation(parent.length, given.copies, 0)

    def rebranched(
        self,
        call: Call,
        parents: Mapping[int, int],
        given: Allocation,
        tables: Mapping[int, list[int]],
    ) -> Allocation:
        """Sequences that go on as copies of others, all at once."""
        before = {parent_id: self._held[parent_id] for parent_id in parents.values()}
        self._copy(call, given.copies, [page for table in tables.values() for page in table])
        first_changed = sys.maxsize
        children: dict[int, HeldSequence] = {}
        for child_id, parent_id in parents.items():
            parent, old, table = before[parent_id], self._held[child_id], tables[child_id]
            child = HeldSequence(table, old.length, parent.num_committed, parent.digests.copy())
            self._check_room(call, table, child.length)
            if child_id != parent_id:
                self._check_branch(call, child, parent.pages, given.copies, old.num_released)
            first_changed = min(first_changed, first_difference(old.pages, table))
            children[child_id] = child
        for child_id in parents:
            self._unmap(self._held[child_id].pages)
        for child_id, child in children.items():
            self._enter(call, child_id, child)
        for child_id, parent_id in parents.items():
            shared = before[parent_id].pages
            for index, page in enumerate(tables[child_id]):
                is_shared = index < len(shared) and page == shared[index]
                if page != NULL_PAGE and not is_shared and self._counts[page] > 1:
                    self.fail(call, f"mapped page {page} for {child_id}: another maps it")
        return Allocation(given.num_cached_tokens, given.copies, first_changed)

    def committed(self, seq_id: int, token_ids: Sequence[int]) -> None:
        """Tokens that are computed."""
        held = self._held[seq_id]
        if self._tracks:
            self._book.write(held.pages, held.num_committed, token_ids, held.digests)
            held.num_committed += len(token_ids)
        held.unused, held.saved = (), []

    def truncated(self, call: Call, seq_id: int, new_len: int, table: Sequence[int]) -> None:
        """A sequence that is shorter now."""
        held, count = self._held[seq_id], len(table)
        self._check_room(call, table, new_len)
        if count > len(held.pages) or (count and table[-1] != held.pages[count - 1]):
            self.fail(call, "changed the entries of the block table that stay")
        self._unmap(held.pages[count:])
        del held.pages[count:]
        held.length = new_len
        held.num_committed = min(held.num_committed, new_len)
        del held.digests[new_len // self._size + 1 :]

    def released(self, seq_id: int, upto: int, table: Sequence[int]) -> None:
        """A sequence whose first `upto` tokens nobody reads again."""
        held = self._held[seq_id]
        last = min(upto, held.length) // self._size
        while held.num_released < last and table[held.num_released] == NULL_PAGE:
            self._book.unmap(held.pages[held.num_released])
            held.pages[held.num_released] = NULL_PAGE
            held.num_released += 1

    def left(self, seq_ids: Sequence[int], *, is_saved: bool) -> None:
        """Sequences that are swapped out. is_saved: with what they hold now; else what was saved of
        them before still stands."""
        self._num_swaps += 1
        for seq_id in seq_ids:
            held = self._left[seq_id] = self._held.pop(seq_id)
            held.swap = self._num_swaps
            if is_saved:
                held.saved = [self._book.contents.get(page) for page in held.pages]
            self._unmap(held.pages)

    def returned(
        self, call: Call, given: Allocation, tables: Mapping[int, list[int]]
    ) -> Allocation:
        """Sequences that are swapped in: whoever shared a page when they left may share again."""
        came_as: dict[int, tuple[int, int]] = {}
        for seq_id, table in tables.items():
            held = self._left.pop(seq_id)
            self._check_room(call, table, held.length)
            for index, page in enumerate(table):
                if page == NULL_PAGE:
                    continue
                self._check_pages(call, (page,))
                was = (held.swap, held.pages[index] if index < len(held.pages) else NULL_PAGE)
                if came_as.get(page) != was or was[1] == NULL_PAGE:
                    self._check_unmapped(call, page)
                came_as[page] = was
                self._book.map(page)
                content = held.saved[index] if index < len(held.saved) else None
                if content is None:
                    self._book.forget(page)
                else:
                    self._book.put(page, content)
            held.pages, held.num_released = table, leading_nulls(table)
            self._held[seq_id] = held
        return Allocation(0, given.copies, 0)

    def discarded(self, seq_id: int) -> None:
        """A swapped-out sequence that is given up."""
        del self._left[seq_id]

    def check_told(self, call: Call, seq_id: int, table: Sequence[int]) -> None:
        """Raise AllocatorError where a table was changed in silence. O(pages)."""
        pages = self._held[seq_id].pages
        if list(table) != pages:
            index = first_difference(pages, table)
            self.fail(
                call,
                f"finds the block table of sequence {seq_id} changed at entry {index} without "
                f"a word: {pages[index : index + 1]} became {list(table[index : index + 1])}; say "
                "so by `first_changed`",
            )

    def freed(self, seq_id: int, *, is_retracted: bool = False) -> None:
        """A sequence that is gone. is_retracted: its copies are not carried out either."""
        held = self._held.pop(seq_id)
        if is_retracted:
            for page in held.unused:
                self._book.forget(page)
        self._unmap(held.pages)

    def fail(self, call: Call, what: str) -> NoReturn:
        """Raise AllocatorError."""
        raise AllocatorError(f"allocator {self._strategy}: {call} {what}")

    def _enter(self, call: Call, seq_id: int, held: HeldSequence) -> None:
        held.num_released = leading_nulls(held.pages)
        mapped = held.pages[held.num_released :]
        self._check_pages(call, mapped)
        if len(set(mapped)) < len(mapped):
            self.fail(call, f"mapped a page twice in one block table: {shown(held.pages)}")
        for page in mapped:
            self._book.map(page)
        self._held[seq_id] = held

    def _unmap(self, pages: Sequence[int]) -> None:
        for page in pages:
            if page != NULL_PAGE:
                self._book.unmap(page)

    def _copy(self, call: Call, copies: Sequence[PageCopy], table: Sequence[int]) -> None:
        if not copies:
            return
        self._check_pages(call, [page for copy in copies for page in copy])
        stray = {copy.destination for copy in copies}.difference(table)
        if stray:
            self.fail(call, f"copies into page {min(stray)}, which is not in the block table")
        if self._tracks:
            self._book.copy(copies)

    def _check_pages(self, call: Call, pages: Sequence[int]) -> None:
        for page in pages:
            if type(page) is not int or not 0 <= page < self._book.num_pages:
                self.fail(
                    call,
                    f"mapped page {page!r}: the pool has pages 0 to {self._book.num_pages - 1}",
                )

    def _check_room(self, call: Call, table: Sequence[int], length: int) -> None:
        if len(table) * self._size < length:
            self.fail(
                call,
                f"left a block table of {len(table)} pages of {self._size}: too short for "
                f"{length} tokens",
            )

    def _check_unmapped(self, call: Call, page: int) -> None:
        """A page that is to be written is in no other block table."""
        if page == NULL_PAGE:
            return
        self._check_pages(call, (page,))
        if self._counts[page]:
            users = [s for s, held in self._held.items() if page in held.pages]
            user = f"sequence {users[0]}" if users else "another entry"
            self.fail(call, f"handed out page {page}, which {user} maps")

    def _check_hits(
        self, call: Call, token_ids: Sequence[int], table: Sequence[int], digests: list[int]
    ) -> None:
        """Each claimed page holds the KV of just these tokens. Adds the digests of full pages."""
        index = self._book.first_mismatch(token_ids, table, digests)
        if index is not None:
            holds = "other tokens" if table[index] in self._book.contents else "nothing computed"
            first = index * self._size
            self.fail(
                call,
                f"claims that {len(token_ids)} tokens are cached, but page {table[index]} (tokens "
                f"{first} to {min(first + self._size, len(token_ids)) - 1}) holds {holds}"
                + ("" if self._tracks else ": a strategy that reuses KV overrides `commit`"),
            )

    def _check_branch(
        self,
        call: Call,
        child: HeldSequence,
        source: Sequence[int],
        copies: Sequence[PageCopy],
        num_released: int = 0,
    ) -> None:
        """Each page that the parent has computed is shared with it or copied from it, but for those
        that the child has released before."""
        written = child.num_committed if self._tracks else child.length
        origin = {copy.destination: copy.source for copy in copies}
        for index in range(num_released, -(-written // self._size)):
            page, wanted = child.pages[index], source[index]
            if wanted in (page, origin.get(page), NULL_PAGE):
                continue
            content = self._book.contents.get(page)
            if content is None or content != self._book.contents.get(wanted):
                self.fail(
                    call,
                    f"left page {page} at entry {index}: no copy of the parent's page {wanted}",
                )

    def _moved(
        self, call: Call, held: HeldSequence, first: int, given: Allocation, table: Sequence[int]
    ) -> int:
        """Enter a table of which any entry from `first` on may be another; the first that is."""
        pages, written = held.pages, held.num_committed if self._tracks else held.length
        if given.first_changed is not None:
            first = min(given.first_changed, held.length // self._size)
        changed = [i for i in range(first, len(table)) if i >= len(pages) or table[i] != pages[i]]
        moves = [PageCopy(pages[i], table[i]) for i in changed if i * self._size < written]
        for move in moves:
            if move not in given.copies:
                self.fail(
                    call,
                    f"replaced page {move.source}, which holds tokens, by {move.destination} "
                    "without a copy",
                )
        self._unmap([pages[i] for i in changed if i < len(pages)] + pages[len(table) :])
        for index in changed:
            self._check_unmapped(call, table[index])
            self._book.map(table[index])
        self._copy(call, given.copies, table)
        for index in changed:
            if index * self._size >= held.length:
                self._book.forget(table[index])
        pages[first:] = table[first:]
        return min(changed, default=sys.maxsize)

    def _take(self, call: Call, page: int) -> None:
        """A page that is to be written."""
        self._check_unmapped(call, page)
        self._book.forget(page)
        self._book.map(page)

    def _check_writable(
        self, call: Call, seq_id: int, held: HeldSequence, first: int, new_len: int
    ) -> None:
        """No other sequence has tokens where the next ones are written."""
        for index in range(first, -(-new_len // self._size)):
            page = held.pages[index]
            if self._counts[page] == 1:
                continue
            offset = max(0, held.length - index * self._size)
            for other_id, place in self._users(page):
                other = self._held[other_id]
                if other_id != seq_id and other.length > place * self._size + offset:
                    self.fail(
                        call,
                        f"left page {page} to be written at token {held.length}, where sequence "
                        f"{other_id} has tokens of its own",
                    )

    def _users(self, page: int) -> Iterator[tuple[int, int]]:
        for seq_id, held in self._held.items():
            if page in held.pages:
                yield seq_id, held.pages.index(page)


_SILENCE = Allocation()
