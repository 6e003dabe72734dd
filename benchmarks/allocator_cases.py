"""The three allocator operations that a serving step is made of, ready to be timed.

A case is (setup, operation): `setup` returns the operation's arguments and is not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

from allocators.base import KVCacheAllocator
from allocators.discovery import build
from allocators.page_pool import PagePool

PAGE_SIZE = 16
PROMPT_LEN = 128
STRATEGIES = ("contiguous", "paged", "paged_cow", "paged_prefix")
POOL_PAGES = (10_000, 100_000)


class Case(NamedTuple):
    """`operation(*setup())` is what is timed; `cleanup` (untimed) undoes it."""

    setup: Callable[[], tuple[Any, ...]]
    operation: Callable[..., Any]
    cleanup: Callable[[], None]


def prompts() -> Callable[[], list[int]]:
    """A source of 128-token prompts that share nothing."""
    numbers = count(1)
    return lambda: [next(numbers) for _ in range(PROMPT_LEN)]


def new_allocator(strategy: str, num_pages: int) -> KVCacheAllocator:
    """An allocator with 30 sequences running."""
    allocator = build(strategy, PagePool(num_pages, PAGE_SIZE))
    next_prompt = prompts()
    for seq_id in range(30):
        prompt = [-token for token in next_prompt()]
        allocator.allocate(seq_id, prompt, PROMPT_LEN, 0)
        allocator.commit(seq_id, prompt)
    return allocator


def allocate_case(allocator: KVCacheAllocator) -> Case:
    """Allocate a 128-token prompt that shares nothing."""
    next_prompt = prompts()
    return Case(
        lambda: (100, next_prompt(), 2 * PROMPT_LEN, 0),
        allocator.allocate,
        lambda: allocator.free(100),
    )


def allocate_hit_case(allocator: KVCacheAllocator) -> Case:
    """Allocate a 128-token prompt that was computed before."""
    prompt = prompts()()
    allocator.allocate(99, prompt, PROMPT_LEN, 0)
    allocator.commit(99, prompt)
    return Case(
        lambda: (100, prompt, 2 * PROMPT_LEN, 0),
        allocator.allocate,
        lambda: allocator.free(100),
    )


def append_case(allocator: KVCacheAllocator) -> Case:
    """Append a token; one in 16 takes a page."""
    allocator.allocate(100, [-1], 10**9, 0)
    state = allocator.sequences[100]

    def setup() -> tuple[int]:
        if state.length > 4096:
            allocator.truncate(100, 1)
        return (100,)

    return Case(setup, allocator.append, lambda: None)


def free_case(allocator: KVCacheAllocator) -> Case:
    """Free 16 pages of computed tokens."""
    next_prompt = prompts()

    def setup() -> tuple[int]:
        prompt = next_prompt() + next_prompt()
        allocator.allocate(100, prompt, len(prompt), 0)
        allocator.commit(100, prompt)
        return (100,)

    return Case(setup, allocator.free, lambda: None)


CASES: dict[str, Callable[[KVCacheAllocator], Case]] = {
    "allocate_128_tokens": allocate_case,
    "allocate_128_cached_tokens": allocate_hit_case,
    "append_token": append_case,
    "free_16_pages": free_case,
}
