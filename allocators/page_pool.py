"""A fixed set of pages that allocators draw from."""
from __future__ import annotations


class PagePool:
    """`num_pages` pages of `page_size` token slots."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
