"""Host time of the allocators beside vLLM's KVCacheManager, in one process.

Run it with a Python that has vLLM, from the repository root:
`path/to/vllm/python -m benchmarks.vllm_allocator`. Without vLLM it prints our own
figures only. Both sides see the same requests; what vLLM does when a request is made (hashing
its blocks) is untimed there, and our hashing is timed apart. A prompt's pages become findable
inside vLLM's `allocate_slots`; ours do in `commit`, so that is timed with it where it says so.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from allocators.base import KVCacheAllocator
from allocators.prefix_index import PrefixIndex
from benchmarks.allocator_cases import (
    CASES,
    PAGE_SIZE,
    POOL_PAGES,
    PROMPT_LEN,
    STRATEGIES,
    Case,
    new_allocator,
    prompts,
)

ROUNDS = 3000
CACHING = {"contiguous": False, "paged": False, "paged_cow": False, "paged_prefix": True}


def median_us(case: Case) -> float:
    """Median time of the operation in microseconds, the clock's own cost taken off."""
    clock = time.perf_counter_ns
    times, empty = [], []
    gc.collect()
    gc.disable()
    for _ in range(ROUNDS):
        arguments = case.setup()
        started = clock()
        case.operation(*arguments)
        times.append(clock() - started)
        started = clock()
        empty.append(clock() - started)
        case.cleanup()
    gc.enable()
    return (statistics.median(times) - statistics.median(empty)) / 1000


def allocate_and_publish_case(allocator: KVCacheAllocator) -> Case:
    """Allocate a fresh 128-token prompt and commit all of it."""
    next_prompt = prompts()

    def operation(prompt: list[int]) -> None:
        allocator.allocate(100, prompt, 2 * PROMPT_LEN, 0)
        allocator.commit(100, prompt)

    return Case(lambda: (next_prompt(),), operation, lambda: allocator.free(100))


def hashing_us() -> float:
    """Time to hash the eight pages of a 128-token prompt."""
    index, next_prompt = PrefixIndex(PAGE_SIZE), prompts()

    def operation(prompt: list[int]) -> None:
        parent = b""
        for start in range(0, PROMPT_LEN, PAGE_SIZE):
            parent = index.digest(parent, prompt[start : start + PAGE_SIZE])

    return median_us(Case(lambda: (next_prompt(),), operation, lambda: None))


def vllm_cases(num_pages: int, caching: bool) -> dict[str, Callable[[], Case]]:
    """The same operations on a KVCacheManager of one full-attention group."""
    import torch
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.request import Request

    init_none_hash(sha256)
    hasher = get_request_block_hasher(PAGE_SIZE, sha256) if caching else None
    spec = FullAttentionSpec(
        block_size=PAGE_SIZE, num_kv_heads=1, head_size=16, dtype=torch.float32
    )
    config = KVCacheConfig(num_pages, [], [KVCacheGroupSpec(["layer"], spec)])
    manager = KVCacheManager(
        config,
        max_model_len=100_000,
        scheduler_block_size=PAGE_SIZE,
        hash_block_size=PAGE_SIZE,
        enable_caching=caching,
    )
    next_prompt = prompts()
    made: list[Any] = []

    def request(prompt: list[int]) -> Any:
        name = f"request-{len(made)}"
        made.append(
            Request(name, prompt, SamplingParams(max_tokens=5000), None, block_hasher=hasher)
        )
        return made[-1]

    def allocate(req: Any) -> None:
        blocks, num_hits, *_ = manager.get_computed_blocks(req)
        manager.allocate_slots(req, req.num_tokens - num_hits, num_hits, blocks)

    def fresh() -> Case:
        return Case(lambda: (request(next_prompt()),), allocate, lambda: manager.free(made[-1]))

    def hit() -> Case:
        prompt = next_prompt()
        allocate(request(prompt))
        return Case(lambda: (request(prompt),), allocate, lambda: manager.free(made[-1]))

    def append() -> Case:
        def start() -> Any:
            allocate(request(next_prompt()))
            made[-1].num_computed_tokens = PROMPT_LEN
            return made[-1]

        start()

        def setup() -> tuple[Any, ...]:
            if made[-1].num_tokens > 4096:
                manager.free(made[-1])
                start()
            made[-1].append_output_token_ids(7)
            return made[-1], 1

        def cleanup() -> None:
            made[-1].num_computed_tokens += 1

        return Case(setup, manager.allocate_slots, cleanup)

    def free() -> Case:
        def setup() -> tuple[Any]:
            allocate(request(next_prompt() + next_prompt()))
            return (made[-1],)

        return Case(setup, manager.free, lambda: None)

    cases = dict(zip(CASES, (fresh, hit, append, free), strict=True))
    return cases | {"allocate_and_publish_128": fresh}


def main() -> None:
    """Print a row an operation and strategy."""
    try:
        import vllm
    except ImportError:
        vllm = None
        print("vLLM is not importable: our figures only", file=sys.stderr)
    print(f"hashing a {PROMPT_LEN}-token prompt takes us {hashing_us():.2f} us")
    heads = ["operation", "strategy", "pages", "us", "vLLM us", "ours / vLLM"]
    print("{:28}{:14}{:>8}{:>8}{:>9}{:>13}".format(*heads))
    ours: dict[str, Callable[[KVCacheAllocator], Case]] = dict(CASES)
    ours["allocate_and_publish_128"] = allocate_and_publish_case
    for num_pages in POOL_PAGES:
        theirs = {}
        for caching in (False, True) if vllm else ():
            for operation in ours:
                case = vllm_cases(num_pages, caching)[operation]()
                theirs[operation, caching] = median_us(case)
        for operation, make in ours.items():
            for strategy in STRATEGIES:
                took = median_us(make(new_allocator(strategy, num_pages)))
                row = f"{operation:28}{strategy:14}{num_pages:8}{took:8.2f}"
                peer = theirs.get((operation, CACHING[strategy]))
                print(row + (f"{peer:9.2f}{took / peer:13.2f}" if peer else ""))


if __name__ == "__main__":
    main()
