"""Decode attention on the CPU beside torch's SDPA on contiguous copies of the same KV.

    python -m benchmarks.cpu_attention [--threads 2] [--rounds 5] [--statistic median|best]

All contenders of a row take turns in one run, each with cold caches: in an engine the other layers
pass through them between two calls. `best` is for a machine that gives its processors to others
now and then: a thread that waits for its turn would decide a median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels import cpu
from kernels.cost import attention_cost

Q_HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64
SHAPES = ((8, 512), (8, 2048), (32, 512), (32, 2048))
PAGE_SIZES = (1, 16, 64)
EVICTING_BYTES = 256 * 2**20


def take_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call, one call of each contender a round, after one to warm up."""
    evicting = torch.zeros(EVICTING_BYTES // 4)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            evicting.add_(1.0)
            start = time.perf_counter()
            call()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def contenders(batch: int, context: int) -> dict[str, Callable[[], Tensor]]:
    """SDPA, our kernel without a table, with shuffled pages of each size, and a plain read."""
    slots = batch * context
    keys, values = torch.randn(2, slots, KV_HEADS, HEAD_DIM).unbind()
    query, out = torch.randn(2, batch, Q_HEADS, HEAD_DIM).unbind()
    bounds = torch.arange(batch + 1, dtype=torch.int32)
    lens = torch.full((batch,), context, dtype=torch.int32)
    dense = [
        cache.view(batch, context, KV_HEADS, HEAD_DIM).transpose(1, 2).contiguous()
        for cache in (keys, values)
    ]
    starts = torch.arange(0, slots, context, dtype=torch.int32)
    scale = HEAD_DIM**-0.5

    def paged(page_size: int) -> Callable[[], Tensor]:
        table = torch.randperm(slots // page_size).int().view(batch, -1)
        return lambda: cpu.paged_attention(
            query, keys, values, table, page_size, bounds, lens, scale=scale, out=out
        )

    return {
        "sdpa": lambda: scaled_dot_product_attention(query[:, :, None], *dense, enable_gqa=True),
        "contiguous": lambda: cpu.contiguous_attention(
            query, keys, values, starts, bounds, lens, scale=scale, out=out
        ),
        **{f"page {page_size}": paged(page_size) for page_size in PAGE_SIZES},
        "read": lambda: torch.stack((dense[0].sum(), dense[1].sum())),
    }


def main() -> None:
    """Print time ratios and bandwidths for every shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--statistic", choices=("median", "best"), default="median")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    statistic = {"median": statistics.median, "best": min}[options.statistic]

    start = time.perf_counter()
    contenders(1, 16)["contiguous"]()
    print(f"first call, compiling or from numba's cache: {time.perf_counter() - start:.2f} s")
    print(
        f"fp32, {Q_HEADS} query and {KV_HEADS} KV heads, D {HEAD_DIM}, {options.threads} threads, "
        f"{options.statistic} of {options.rounds}; shuffled pages, cold caches"
    )
    for batch, context in SHAPES:
        seconds = take_turns(contenders(batch, context), options.rounds)
        took = {name: statistic(times) for name, times in seconds.items()}
        moved = attention_cost(
            [1] * batch,
            [context] * batch,
            num_q_heads=Q_HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            element_bytes=4,
        ).moved_bytes
        print(f"\nbatch {batch}, context {context}")
        for name, took_s in took.items():
            print(
                f"  {name:<11}{took_s * 1e6:9.0f} us {moved / took_s / 1e9:6.1f} GB/s"
                f"   x SDPA {took_s / took['sdpa']:5.2f}"
                f"   x contiguous {took_s / took['contiguous']:5.2f}"
            )


if __name__ == "__main__":
    main()
