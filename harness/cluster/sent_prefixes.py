"""What a router remembers of the prompts that it has sent where: an approximate prefix index."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

_NOBODY: Collection[int] = ()


class Holders(NamedTuple):
    """Replicas that were sent the first `num_tokens` tokens of a prompt."""

    num_tokens: int
    replicas: Collection[int]


class SentPrefixes:
    """Full pages of prompts by a hash chained from the page before, and who was sent them.

    Each replica's pages are forgotten in the order of their last use, once there are more than
    `pages_each`; a prompt's last page goes before its first. So whoever holds a page holds those
    before it. That is the index of the Gateway API inference extension (llm-d's
    `approx-prefix-cache-producer`: one LRU a server, and a map from hashes to servers); SGLang's
    router keeps a radix tree of characters to the same end. It is approximate: the router is not
    told what a replica computes, keeps or evicts.

    A look-up takes one walk over the prompt's pages, however many replicas there are; so does a
    note, in constant time a page.
    """

    def __init__(self, count: int, page_size: int, pages_each: int) -> None:
        self._page_size = page_size
        self._pages_each = pages_each
        self._holders: dict[int, dict[int, None]] = {}
        self._pages: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(count)]

    def digests(self, prompt_ids: Sequence[int]) -> list[int]:
        """Of each full page, and through its parent's of all before it. 64 bits of Python's hash
        of integers, the same in every process: at 2^27 pages two share one with a probability
        below 2^-10, and then a request is sent where it gains nothing."""
        prompt_ids = tuple(prompt_ids)
        size = self._page_size
        parent, digests = 0, []
        for end in range(size, len(prompt_ids) + 1, size):
            parent = hash((parent, *prompt_ids[end - size : end]))
            digests.append(parent)
        return digests

    def holders(self, digests: Sequence[int]) -> Iterator[Holders]:
        """Of the longest prefix that anybody was sent, then of the next shorter one that others
        were sent, too."""
        found: list[dict[int, None]] = []
        for digest in digests:
            replicas = self._holders.get(digest)
            if replicas is None:
                break
            found.append(replicas)
        told = 0
        for index in reversed(range(len(found))):
            if len(found[index]) > told:
                told = len(found[index])
                yield Holders((index + 1) * self._page_size, found[index])

    def note(self, replica: int, digests: Sequence[int]) -> None:
        """A prompt of these pages is sent to `replica`."""
        pages, holders = self._pages[replica], self._holders
        for digest in reversed(digests):
            if digest in pages:
                pages.move_to_end(digest)
            else:
                pages[digest] = None
                holders.setdefault(digest, {})[replica] = None
        while len(pages) > self._pages_each:
            digest, _ = pages.popitem(last=False)
            others = holders[digest]
            del others[replica]
            if not others:
                del holders[digest]

    @property
    def num_pages(self) -> int:
        """Remembered, a page once for each replica that was sent it."""
        return sum(map(len, self._pages))
