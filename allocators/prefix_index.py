"""The reuse index of published pages: by chained hash, and by leading tokens of the next page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

ROOT = b""
"""Parent digest of a sequence's first page; other groups of layers have roots of their own."""


Entry = tuple[bytes, bytes, tuple[int, ...]]
"""A published page's digest, its parent's, and its tokens; bare because one is made a page."""


class Withdrawal(NamedTuple):
    """What came of taking a page out: the twin in its place, or -1; pages cut off."""

    successor: int
    lost: Sequence[int]


NOTHING_LOST = Withdrawal(-1, ())


class PrefixIndex:
    """Published pages as a forest: each page's predecessor is published too, so every page in
    the index can be reached from the root by looking up one digest after the other.

    A page whose contents are published already becomes a *twin*, which takes the first one's
    place when that is withdrawn. Publishing, withdrawing and looking up cost O(page_size) a
    page, whatever the index holds; a page withdrawn with its predecessor was published once.
    """

    def __init__(self, page_size: int) -> None:
        self._pack = Struct(f"<{page_size}q").pack
        self.page_of: dict[bytes, int] = {}
        self.published: dict[int, Entry] = {}
        self.twins: dict[int, bytes] = {}
        self._twins_of: dict[bytes, dict[int, None]] = {}
        self._children: dict[bytes, int | TokenTrie] = {}  # most pages have one: no trie then
        self.roots = {ROOT}

    def digest(self, parent: bytes, token_ids: Sequence[int]) -> bytes:
        """Digest of a full page and, through its parent's, of everything before it.

        BLAKE2b of 16 bytes, the same in every process and on every run. Among even 2^40 pages
        two that differ share one with a probability below 2^-48, so tokens need not be compared.
        """
        return blake2b(parent + self._pack(*token_ids), digest_size=16).digest()

    def holds(self, page: int) -> bool:
        """Whether the page must keep its contents: it is published, or a twin."""
        return page in self.published or page in self.twins

    def publish(self, page: int, parent: bytes, token_ids: tuple[int, ...]) -> bytes:
        """Make a full, computed page findable, and return its digest. It stays out where its
        predecessor is not published (it was released and evicted)."""
        digest = self.digest(parent, token_ids)
        if page in self.published or page in self.twins:
            return digest
        if digest in self.page_of:
            self.twins[page] = digest
            self._twins_of.setdefault(digest, {})[page] = None
        elif parent in self.page_of or parent in self.roots:
            self.page_of[digest] = page
            self.published[page] = (digest, parent, token_ids)
            if parent in self._children:
                self._add_sibling(parent, token_ids, page)
            else:
                self._children[parent] = page
        return digest

    def withdraw(self, page: int) -> Withdrawal:
        """Take out a page that the index holds. A twin takes its place; without one, all pages
        that could be reached only through it go as well."""
        if page in self.twins:
            self.withdraw_twin(page)
            return NOTHING_LOST
        entry = self.published.pop(page)
        digest, parent, token_ids = entry
        if digest in self._twins_of:
            successor = next(iter(self._twins_of[digest]))
            self.withdraw_twin(successor)
            self.published[successor] = entry
            self.page_of[digest] = successor
            self._remove_child(parent, token_ids)
            if parent in self._children:
                self._add_sibling(parent, token_ids, successor)
            else:
                self._children[parent] = successor
            return Withdrawal(successor, ())
        del self.page_of[digest]
        if type(self._children[parent]) is int:  # spares most pages the call
            del self._children[parent]
        else:
            self._remove_child(parent, token_ids)
        if digest not in self._children:
            return NOTHING_LOST
        return Withdrawal(-1, self._cut_below(digest))

    def is_followed(self, page: int) -> bool:
        """Whether withdrawing a published page would cut others off: they are published behind
        it, and no twin would take its place."""
        digest = self.published[page][0]
        return digest in self._children and digest not in self._twins_of

    def predecessor(self, page: int) -> int:
        """The page that a published page or a twin is reached through; -1 for a first page."""
        digest = self.twins.get(page)
        entry = self.published[page if digest is None else self.page_of[digest]]
        return self.page_of.get(entry[1], -1)

    def followers(self, page: int) -> list[int]:
        """Pages that are published directly behind a published page."""
        return self._child_pages(self.published[page][0])

    def withdraw_twin(self, page: int) -> int:
        """Take out a twin; returns the published page with the same contents."""
        digest = self.twins.pop(page)
        others = self._twins_of[digest]
        del others[page]
        if not others:
            del self._twins_of[digest]
        return self.page_of[digest]

    def _cut_below(self, digest: bytes) -> list[int]:
        """Forget the descendants of a page; returns them."""
        lost = self._child_pages(digest)
        del self._children[digest]
        for page in lost:  # which grows on the way
            digest = self.published.pop(page)[0]
            del self.page_of[digest]
            for twin in self._twins_of.pop(digest, ()):
                del self.twins[twin]
            lost += self._child_pages(digest)
            self._children.pop(digest, None)
        return lost

    def longest_partial(self, parent: bytes, token_ids: Sequence[int]) -> tuple[int, int]:
        """The page after `parent` that shares the most leading tokens with `token_ids`, and how
        many; (-1, 0) when none shares any."""
        children = self._children.get(parent)
        if children is None:
            return -1, 0
        if isinstance(children, TokenTrie):
            return children.longest(token_ids)
        count = common_prefix_len(self.published[children][2], token_ids)
        return (children, count) if count else (-1, 0)

    def check_integrity(self) -> None:
        """Raise AssertionError where the parts disagree."""
        assert self.page_of == {entry[0]: page for page, entry in self.published.items()}
        children: dict[bytes, set[int]] = {}
        for page, (digest, parent, token_ids) in self.published.items():
            assert self.digest(parent, token_ids) == digest, f"page {page} is not its digest"
            assert parent in self.roots or parent in self.page_of, f"page {page} is out of reach"
            assert self.longest_partial(parent, token_ids)[0] == page
            children.setdefault(parent, set()).add(page)
        assert children == {parent: set(self._child_pages(parent)) for parent in self._children}
        twins = {page: digest for digest, pages in self._twins_of.items() for page in pages}
        assert twins == self.twins and all(self._twins_of.values()), "twins disagree"
        assert self._twins_of.keys() <= self.page_of.keys(), "twins of nothing"
        assert self.twins.keys().isdisjoint(self.published), "a page is its own twin"

    def _add_sibling(self, parent: bytes, token_ids: tuple[int, ...], page: int) -> None:
        children = self._children[parent]
        if not isinstance(children, TokenTrie):
            only = children
            children = self._children[parent] = TokenTrie()
            children.insert(self.published[only][2], only)
        children.insert(token_ids, page)

    def _remove_child(self, parent: bytes, token_ids: tuple[int, ...]) -> None:
        children = self._children[parent]
        if isinstance(children, TokenTrie):
            children.remove(token_ids)
            if children.root:
                return
        del self._children[parent]

    def _child_pages(self, parent: bytes) -> list[int]:
        children = self._children.get(parent)
        if isinstance(children, TokenTrie):
            return list(children.pages())
        return [] if children is None else [children]


class Edge:
    """Tokens that lead down a trie, and what they lead to: a page or a branching."""

    __slots__ = ("target", "token_ids")

    def __init__(self, token_ids: tuple[int, ...], target: int | dict[int, Edge]) -> None:
        self.token_ids = token_ids
        self.target = target


class TokenTrie:
    """Pages by their tokens, all of one length: a radix tree keyed by token."""

    __slots__ = ("root",)

    def __init__(self) -> None:
        self.root: dict[int, Edge] = {}

    def insert(self, token_ids: tuple[int, ...], page: int) -> None:
        """Add a page whose tokens are not in yet."""
        branches, rest = self.root, token_ids
        while True:
            edge = branches.get(rest[0])
            if edge is None:
                branches[rest[0]] = Edge(rest, page)
                return
            common = common_prefix_len(edge.token_ids, rest)
            if common < len(edge.token_ids):
                lower = Edge(edge.token_ids[common:], edge.target)
                edge.token_ids = rest[:common]
                edge.target = {lower.token_ids[0]: lower}
            assert isinstance(edge.target, dict), "tokens inserted twice"
            branches, rest = edge.target, rest[common:]

    def remove(self, token_ids: tuple[int, ...]) -> None:
        """Take out the page that holds exactly these tokens."""
        above: Edge | None = None
        branches, rest = self.root, token_ids
        edge = branches[rest[0]]
        while isinstance(edge.target, dict):
            rest = rest[len(edge.token_ids) :]
            above, branches = edge, edge.target
            edge = branches[rest[0]]
        del branches[rest[0]]
        if above is not None and len(branches) == 1:
            (only,) = branches.values()
            above.token_ids += only.token_ids
            above.target = only.target

    def longest(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """The page with the most leading tokens in common with `token_ids`, and how many."""
        edge: Edge | None = None
        branches = self.root
        matched = 0
        while matched < len(token_ids) and (found := branches.get(token_ids[matched])):
            edge = found
            common = common_prefix_len(edge.token_ids, token_ids[matched:])
            matched += common
            if common < len(edge.token_ids) or not isinstance(edge.target, dict):
                break
            branches = edge.target
        if edge is None:
            return -1, 0
        target = edge.target
        while isinstance(target, dict):
            target = next(iter(target.values())).target
        return target, matched

    def pages(self) -> Iterator[int]:
        """Every page."""
        pending = list(self.root.values())
        while pending:
            target = pending.pop().target
            if isinstance(target, dict):
                pending.extend(target.values())
            else:
                yield target


def common_prefix_len(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading elements that are equal."""
    length = min(len(left), len(right))
    if tuple(left[:length]) == tuple(right[:length]):
        return length
    for index in range(length):
        if left[index] != right[index]:
            return index
    return length
