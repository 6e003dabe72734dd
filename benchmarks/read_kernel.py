"""A kernel that reads memory and does as good as nothing else: what reading alone can reach."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _read_kernel(source, sums, num_words, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Each program adds up TILES blocks of 32-bit words side by side and writes one number."""
    program = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int32)
    for tile in range(TILES):
        place = (program * TILES + tile) * BLOCK + lanes
        total += tl.load(source + place, mask=place < num_words, other=0)
    tl.store(sums + program, tl.sum(total, 0))


def read_all(source: Tensor, sums: Tensor, block: int, tiles: int) -> None:
    """Read every word of `source` (int32, contiguous) once; sums: int32, one a program."""
    words = source.numel()
    grid = (triton.cdiv(words, block * tiles),)
    _read_kernel[grid](source, sums, words, BLOCK=block, TILES=tiles, num_warps=8)


def num_programs(words: int, block: int, tiles: int) -> int:
    """Length that `sums` needs."""
    return int(triton.cdiv(words, block * tiles))
