"""A fixed set of pages that allocators draw from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class PagePool:
    """`num_pages` pages of `page_size` token slots, with the free ones and reference counts.

    Every operation is O(1) a page, whatever the pool's size; only construction is
    O(num_pages). Free pages are handed out last in, first out, and a new pool hands out
    0, 1, 2, ... in order.

    References are stored as those *beyond the first*: a page that nobody shares, which is most
    pages, then costs nothing to count.
    """

    __slots__ = ("extra_refs", "free_pages", "num_pages", "page_size")

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(
                f"a pool needs at least one page of one slot, got {num_pages} pages of {page_size}"
            )
        self.num_pages = num_pages
        self.page_size = page_size
        self.free_pages = list(range(num_pages - 1, -1, -1))
        self.extra_refs: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self.free_pages)

    def take(self, count: int, keep_free: int = 0) -> list[int] | None:
        """`count` free pages with one reference each, or None where fewer than
        `keep_free` would be left."""
        free = self.free_pages
        if count + keep_free > len(free):
            return None
        taken = free[: -count - 1 : -1]
        if count:
            del free[-count:]
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """Add a reference to each of these held pages."""
        extra = self.extra_refs
        for page in pages:
            extra[page] = extra.get(page, 0) + 1

    def drop(self, pages: Sequence[int]) -> Sequence[int]:
        """Drop a reference to each; return, in order, the pages that nobody references now.

        Those are not free yet: the caller hands them to `put_back` or keeps them to itself.
        """
        extra = self.extra_refs
        if not extra or extra.keys().isdisjoint(pages):
            return pages
        idle = []
        for page in pages:
            others = extra.get(page)
            if others is None:
                idle.append(page)
            elif others == 1:
                del extra[page]
            else:
                extra[page] = others - 1
        return idle

    def put_back(self, pages: Sequence[int]) -> None:
        """Make pages free that nobody references; the first of them is the next handed out."""
        self.free_pages += pages[::-1]

    def check_integrity(self, held: Iterable[int]) -> None:
        """Raise AssertionError unless `held` pages (each once) and the free ones make the pool."""
        pages = [*held, *self.free_pages]
        assert sorted(pages) == list(range(self.num_pages)), (
            f"{len(pages)} held and free pages, {len(set(pages))} of them distinct, "
            f"do not make up the pool's {self.num_pages}"
        )
        assert self.extra_refs.keys().isdisjoint(self.free_pages), "a free page is referenced"
        assert all(count > 0 for count in self.extra_refs.values()), "a stale reference count"
