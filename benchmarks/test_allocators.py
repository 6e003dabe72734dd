"""Host time of the allocators: `pytest benchmarks/test_allocators.py --benchmark-enable`.

Each operation on pools of 10,000 and 100,000 pages of 16 slots, which must make no difference.
`python -m benchmarks.vllm_allocator` prints the same figures beside vLLM's.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from allocators.prefix_index import PrefixIndex
from benchmarks.allocator_cases import CASES, POOL_PAGES, STRATEGIES, new_allocator, prompts

ROUNDS = 3000


@pytest.mark.parametrize("num_pages", POOL_PAGES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("operation", CASES)
def test_allocator(
    benchmark: BenchmarkFixture, operation: str, strategy: str, num_pages: int
) -> None:
    case = CASES[operation](new_allocator(strategy, num_pages))

    def setup() -> tuple[tuple[object, ...], dict[str, object]]:
        return case.setup(), {}

    benchmark.group = f"{operation} {strategy}"
    benchmark.pedantic(
        case.operation,
        setup=setup,
        teardown=lambda *_: case.cleanup(),
        rounds=ROUNDS,
        warmup_rounds=100,
    )


def test_hash_128_tokens(benchmark: BenchmarkFixture) -> None:
    index = PrefixIndex(16)
    prompt = prompts()()
    pages = [prompt[start : start + 16] for start in range(0, 128, 16)]

    def hash_chain() -> None:
        parent = b""
        for page in pages:
            parent = index.digest(parent, page)

    benchmark(hash_chain)
